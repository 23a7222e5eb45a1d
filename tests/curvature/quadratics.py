"""Functions to climb, and the largest value of a quadratic within a ball from its dense eigendecomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor


class Function:
    """A differentiable function of an offset, and where it was evaluated."""

    def __init__(self, function: Callable[[Tensor], Tensor], size: int, dtype: torch.dtype = torch.float64) -> None:
        self.function, self.size, self.dtype, self.device = function, size, dtype, torch.device("cpu")
        self.offsets: list[Tensor] = []

    def loss_at(self, offset: Tensor | None) -> float:
        offset = torch.zeros(self.size, dtype=self.dtype) if offset is None else offset
        assert offset.dtype == self.dtype
        self.offsets.append(offset)
        return float(self.function(offset))

    def value_and_gradient_at(self, offset: Tensor | None) -> tuple[float, Tensor]:
        value = self.loss_at(offset)
        at = self.offsets[-1].clone().requires_grad_()
        return value, torch.autograd.grad(self.function(at), at)[0]


def quadratic(gradient: Tensor, hessian: Tensor) -> Function:
    return Function(lambda u: 2.5 + gradient @ u + u @ (hessian @ u) / 2, len(gradient), gradient.dtype)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64))[0]


def problem(eigenvalues: np.ndarray, gradient: np.ndarray | float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A gradient, given by its norm or its coordinates in the eigenbasis, and a Hessian."""
    columns = rotation(len(eigenvalues))
    if isinstance(gradient, float):
        draws = np.random.default_rng(seed).standard_normal(len(eigenvalues))
        gradient = gradient * draws / np.linalg.norm(draws)
    hessian = columns @ torch.diag(torch.from_numpy(eigenvalues)) @ columns.T
    return columns @ torch.from_numpy(gradient), (hessian + hessian.T) / 2


BULK = np.cos(np.linspace(0.1, np.pi - 0.1, 100))
NO_TOP = np.r_[0.0, np.full(100, 0.002)]

PROBLEMS: dict[str, tuple[np.ndarray, np.ndarray | float]] = {
    "linear": (np.zeros(20), 1.0),
    "the gradient decides": (np.r_[3.0, BULK], 10.0),
    "outliers": (np.r_[9.0, 5.0, 4.5, BULK], 0.02),
    "negative end dominates": (np.r_[3.1, 2.5, BULK, -3.4, -3.7], 0.02),
    "no gradient": (np.r_[3.0, BULK], np.zeros(101)),
    "no gradient along the top": (np.r_[3.0, BULK], NO_TOP),
    "convex": (np.r_[4.0, 3.0, BULK + 1], 0.05),
    "concave, maximum on the sphere": (BULK - 2, 1.0),
    "concave, maximum inside": (BULK - 2, 0.01),
    "the start is a maximum": (BULK - 2, np.zeros(100)),
}


def quadratic_maximum(gradient: Tensor, hessian: Tensor, rho: float) -> float:
    """The maximum of gᵀu + ½uᵀHu over ‖u‖ ≤ ρ.

    At it (λI - H)u = g with λ ≥ max(0, λmax(H)), and λ > 0 only on the sphere, so λ is the root of the secular
    equation ‖(λI - H)⁻¹g‖ = ρ (Conn, Gould and Toint, Trust-Region Methods, 2000, chapter 7). In the hard case it
    has none: λ = λmax, and u is filled up along the first eigenvector.
    """
    values, vectors = np.linalg.eigh(hessian.numpy())
    g = vectors.T @ gradient.numpy()

    def solution(multiplier: float) -> np.ndarray:
        gaps = multiplier - values
        return np.divide(g, gaps, out=np.zeros_like(g), where=g != 0)

    def excess(multiplier: float) -> float:
        return float(np.linalg.norm(solution(multiplier))) - rho

    least = max(0.0, values[-1])
    scale = max(float(np.abs(values).max()), float(np.linalg.norm(g)) / rho, 1e-30)
    if values[-1] < 0 and excess(0.0) <= 0:
        u = solution(0.0)
    elif excess(least + 1e-13 * scale) <= 0:
        u = solution(least + 1e-13 * scale)
        if values[-1] >= 0:
            u[-1] = np.sqrt(rho**2 - u[:-1] @ u[:-1])
    else:
        root: Any = brentq(excess, least + 1e-13 * scale, least + 2 * scale)  # to 2e-12, absolutely
        u = solution(root)
    return float(g @ u + u @ (values * u) / 2)
