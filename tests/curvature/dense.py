"""Matrices with a known spectrum, as operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Dense:
    """A matrix as an operator that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.products += 1
        assert vector.dtype == self.dtype
        assert vector.shape == (self.size,)
        return self.matrix @ vector


def with_spectrum(eigenvalues: Any, seed: int = 7) -> Tensor:
    """A symmetric float64 matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    columns = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    matrix = columns @ torch.diag(values) @ columns.T
    return (matrix + matrix.T) / 2


BULK = np.cos(np.linspace(0.1, np.pi - 0.1, 60))
SPECTRA: dict[str, np.ndarray] = {
    "bulk": BULK,
    "negative end dominates": np.r_[1.3, 1.1, BULK, -3.4, -3.7, -9.0],
    "rank five": np.r_[3.0, 2.0, 1.0, -4.0, -5.0, np.zeros(40)],
    "repeated": np.r_[2.0, 2.0, 2.0, -1.0, -1.0, np.zeros(20)],
    "decaying": 1.0 / np.arange(1, 61) ** 2,
    "identity": np.ones(30),
    "zero": np.zeros(30),
    "tiny scale": 1e-12 * np.r_[5.0, BULK],
    "huge scale": 1e12 * np.r_[5.0, BULK],
    "one by one": np.array([-2.0]),
    "two by two": np.array([-2.0, 1.0]),
}
