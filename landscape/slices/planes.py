"""Lines and planes through snapshots, and the principal plane of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import UsageError, unknown
from landscape.slices.coordinates import Coordinates, Vector

CENTERS = ("last", "mean")
"""What a principal plane passes through: the last snapshot, or the mean of all."""

_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Plane:
    """A line or plane in the space of the trainable parameters: origin + Σ cₖ·dₖ.

    ``origin`` is (n,), ``directions`` (dims, n), of any lengths and angles.
    """

    origin: Tensor
    directions: Tensor
    explained: np.ndarray | None = None
    """Of a principal plane: each direction's share of the snapshots' squared distances from the origin, (dims,)."""

    @property
    def dims(self) -> int:
        """1 or 2."""
        return len(self.directions)

    def at(self, coordinates: Sequence[float] | np.ndarray) -> Tensor:
        """The point (n,) at coordinates (dims,)."""
        weights = torch.as_tensor(np.asarray(coordinates), dtype=self.directions.dtype, device=self.directions.device)
        return torch.addmv(self.origin, self.directions.T, weights)

    def project(self, point: Tensor) -> tuple[np.ndarray, float]:
        """Coordinates (dims,) of the nearest point of the plane, and the Euclidean distance to it; in float64."""
        directions = self.directions.double()
        difference = point.to(self.origin).double() - self.origin.double()
        gram, right = directions @ directions.T, directions @ difference
        coordinates = torch.linalg.solve(gram, right)
        distance = (difference - coordinates @ directions).norm()
        return coordinates.cpu().numpy(), float(distance)


def line_through(model: nn.Module, first: Vector, second: Vector) -> Plane:
    """The line with ``first`` at coordinate 0 and ``second`` at 1.

    Raises:
        UsageError: the snapshots are equal, not finite, or of another adapter.
    """
    start, end = _finite(model, [first, second])
    if torch.equal(start, end):
        raise UsageError("snapshots: equal; there is no line through one point")
    return Plane(start, (end - start).unsqueeze(0))


def plane_through(model: nn.Module, first: Vector, second: Vector, third: Vector) -> Plane:
    """The plane with ``first`` at (0, 0), ``second`` at (length, 0), and ``third`` above the first axis.

    Directions are orthonormal, so that distances and angles on a picture are those in parameter space (Garipov et al.,
    Loss Surfaces, Mode Connectivity, 2018).

    Raises:
        UsageError: the snapshots lie on a line, are not finite, or of another adapter.
    """
    origin, *others = _finite(model, [first, second, third])
    one, two = (point.double() - origin.double() for point in others)
    along = one / one.norm()
    # Twice, since once leaves a remainder as large as rounding times |two|.
    across = two - (along @ two) * along
    across -= (along @ across) * along
    eps = torch.finfo(origin.dtype).eps
    if not bool(one.any()) or float(across.norm()) <= 8 * eps * float(two.norm() + origin.double().norm()):
        raise UsageError("snapshots: the three lie on a line; use line_through")
    return Plane(origin, torch.stack([along, across / across.norm()]).to(origin.dtype))


def principal_plane(model: nn.Module, snapshots: Sequence[Vector], dims: int = 2, center: str = "last") -> Plane:
    """The plane that fits a trajectory best: principal components of the snapshots' differences from a center.

    Several runs are fitted jointly by passing their snapshots one after the other, then rather with ``center="mean"``.
    Only a few snapshots are held at a time: the components come from the (m, m) Gram matrix of the differences, for
    which each snapshot is read about m/b times in blocks of b; a sequence may read its items from disk.

    Args:
        model: whose trainable parameters the snapshots are.
        snapshots: m of them, in order.
        dims: 1 or 2.
        center: ``last`` (Li et al., 2018) or ``mean``; the origin of the plane.

    Raises:
        UsageError: fewer snapshots than dims + 1, snapshots that are equal, not finite, or of another adapter.
    """
    if center not in CENTERS:
        raise unknown("center", center, CENTERS)
    if dims not in (1, 2):
        raise UsageError(f"dims: {dims}; allowed: 1, 2")
    if len(snapshots) <= dims:
        raise UsageError(f"snapshots: {len(snapshots)}; a principal plane of {dims} dimensions needs {dims + 1}")
    reader = _Differences(Coordinates(model), snapshots)
    gram = reader.gram()
    count = len(snapshots)
    centering = np.eye(count) - 1 / count if center == "mean" else np.eye(count)
    values, vectors = np.linalg.eigh(centering @ gram @ centering)
    values, vectors = values[::-1][:dims], vectors[:, ::-1][:, :dims]
    total = float(np.trace(centering @ gram @ centering))
    if not values[-1] > 1e-12 * max(values[0], np.finfo(float).tiny):
        raise UsageError(f"snapshots: they span fewer than {dims} dimensions")
    # A component's sign is arbitrary: the largest weight is positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(dims)])
    weights = centering @ vectors / np.sqrt(values)
    shift = np.full((count, 1), 1 / count if center == "mean" else 0.0)
    *directions, offset = reader.combine(np.hstack([weights, shift]))
    return Plane(reader.last + offset.to(reader.last), torch.stack(directions).to(reader.last), values / total)


class _Differences:
    """Snapshots minus the last of them, in float64, a block at a time: differences of near points stay precise."""

    def __init__(self, coordinates: Coordinates, snapshots: Sequence[Vector]) -> None:
        self._coordinates, self._snapshots = coordinates, snapshots
        self.last = self.read(len(snapshots) - 1)
        size = max(1, _BLOCK_BYTES // (8 * coordinates.size))
        self._blocks = [range(i, min(i + size, len(snapshots))) for i in range(0, len(snapshots), size)]

    def gram(self) -> np.ndarray:
        """Inner products, (m, m)."""
        gram = np.zeros((len(self._snapshots),) * 2)
        for position, rows in enumerate(self._blocks):
            left = self._block(rows)
            for columns in self._blocks[: position + 1]:
                right = left if columns == rows else self._block(columns)
                product = (left @ right.T).cpu().numpy()
                gram[rows.start : rows.stop, columns.start : columns.stop] = product
                gram[columns.start : columns.stop, rows.start : rows.stop] = product.T
        return gram

    def combine(self, weights: np.ndarray) -> Tensor:
        """Σᵢ wᵢₖ·differenceᵢ from (m, k) weights: (k, n) float64."""
        device = self.last.device
        total = torch.zeros(weights.shape[1], self._coordinates.size, dtype=torch.float64, device=device)
        for rows in self._blocks:
            total += torch.as_tensor(weights[rows.start : rows.stop].T.copy(), device=device) @ self._block(rows)
        return total

    def _block(self, rows: range) -> Tensor:
        return torch.stack([self.read(row) for row in rows]).double() - self.last.double()

    def read(self, index: int) -> Tensor:
        """One snapshot, (n,)."""
        vector = self._coordinates.vector(self._snapshots[index], f"snapshots[{index}]")
        if not bool(torch.isfinite(vector).all()):
            raise UsageError(f"snapshots[{index}]: NaN or infinite parameters; the run had diverged")
        return vector


def _finite(model: nn.Module, snapshots: Sequence[Vector]) -> list[Tensor]:
    reader = _Differences(Coordinates(model), snapshots)
    return [reader.read(index) for index in range(len(snapshots))]
