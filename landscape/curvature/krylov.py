"""What Krylov methods share: the operators they multiply by, an orthonormal basis that grows, and their checks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.measurement import NonFiniteLossError

MAX_ASYMMETRY = 0.02
"""Relative to the operator's norm; bfloat16 models were seen to reach 0.004, float32 models 1e-7."""
BREAKDOWN = 10
"""Multiples of the rounding level below which what is left of a product is taken for noise."""
_BLOCK_ROWS = 16


class SymmetricOperator(Protocol):
    """What an eigensolver needs of a matrix: products with vectors (size,) of its dtype on its device."""

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def __matmul__(self, vector: Tensor, /) -> Tensor: ...


class Basis:
    """Orthonormal rows (l + m, n): l locked vectors and the m of a Krylov sequence, grown without copying."""

    def __init__(self, locked: Tensor) -> None:
        self._locked = locked
        self._blocks: list[Tensor] = []
        self.steps = 0

    def restart(self, vectors: Tensor) -> None:
        """Only these (p, n) remain of the sequence."""
        self._blocks, self.steps = [], 0
        for vector in vectors:
            self.append(vector)

    def append(self, vector: Tensor) -> None:
        """One more vector (n,), orthonormal to the others."""
        row = self.steps % _BLOCK_ROWS
        if row == 0:
            self._blocks.append(vector.new_zeros(_BLOCK_ROWS, len(vector)))
        self._blocks[-1][row] = vector
        self.steps += 1

    def _rows(self) -> list[Tensor]:
        if not self._blocks:
            return [self._locked]
        last = self._blocks[-1][: (self.steps - 1) % _BLOCK_ROWS + 1]
        return [self._locked, *self._blocks[:-1], last]

    def orthogonalize(self, vector: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """The vector less its projection, and its coefficients on the locked rows (l,) and on the sequence (m,)."""
        rows = self._rows()
        coefficients = np.zeros(sum(len(block) for block in rows))
        for _ in range(2):
            parts = [block @ vector for block in rows]
            for block, part in zip(rows, parts, strict=True):
                vector = torch.addmv(vector, block.T, part, alpha=-1)
            coefficients += torch.cat(parts).double().cpu().numpy()
        return vector, coefficients[: len(self._locked)], coefficients[len(self._locked) :]

    def combine(self, weights: np.ndarray) -> Tensor:
        """Rows (p, n) with the given weights (m, p) on the sequence's vectors."""
        total = self._locked.new_zeros(weights.shape[1], self._locked.shape[1])
        first = 0
        for block in self._rows()[1:]:
            part = torch.as_tensor(weights[first : first + len(block)].T, dtype=block.dtype, device=block.device)
            total.addmm_(part, block)
            first += len(block)
        return total


def finite_product(operator: SymmetricOperator, vector: Tensor) -> Tensor:
    """``operator @ vector``.

    Raises:
        NonFiniteLossError: it is NaN or infinite.
    """
    product = operator @ vector
    if not bool(torch.isfinite(product).all()):
        raise NonFiniteLossError("a product with the Hessian is not finite; the parameters have diverged")
    return product


def check_symmetry(asymmetry: float, scale: float) -> None:
    """Refuse an operator whose products differ from those of a symmetric one by too much.

    Args:
        asymmetry: norm of what should vanish.
        scale: of the operator's own norm.

    Raises:
        LandscapeError: names the share and what to do.
    """
    if asymmetry > MAX_ASYMMETRY * scale:
        raise LandscapeError(
            f"the Hessian is not symmetric (by {asymmetry / scale:.2g} of its norm): an operation of the model "
            "has a wrong second derivative; load it with attn_implementation='eager' and without fused kernels"
        )
