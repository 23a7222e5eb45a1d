"""Filling a grid from few evaluations: interpolation, refined where it is wrong, with a bound that was tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree
from torch import nn

from landscape.errors import UsageError
from landscape.measurement import Batch
from landscape.slices.grid import SliceOptions, prepare_slice
from landscape.slices.result import SliceResult

Array = np.ndarray

FIRST_NODES = 7
"""Points an axis of the first, coarse grid."""

HELD_OUT = 64
"""Random points at which an interpolation is tested before it is believed."""

_ROUND = 32
_MARGIN = 2
"""A round is held to a part of the tolerance: the worst of thousands of points is worse than the worst of tens."""

_NEIGHBORS = 4
_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Filled:
    """A grid of which some points were evaluated and the others interpolated."""

    values: Array
    """(points, ...) on the whole grid; where the function is not finite, so are they."""
    evaluated: Array
    """Where the value is the function's own, bool in the shape of ``values``."""
    error_bound: float
    """Largest error at ``num_held_out`` random points that the interpolation had not seen when it was tested there."""
    num_held_out: int
    converged: bool
    """The bound is within the tolerance."""

    @property
    def coverage(self) -> float:
        """With 95 % confidence, at least this share of the interpolated points is within ``error_bound``.

        All of k random points were: 0.05^(1/k), whatever the function (Wilks, 1941).
        """
        return (1 - _CONFIDENCE) ** (1 / self.num_held_out) if self.num_held_out else 0.0


@dataclass(frozen=True, eq=False)
class AdaptiveSlice:
    """A slice that was filled from fewer evaluations than it has points."""

    slice: SliceResult
    """``standard_error`` is NaN where the loss is interpolated."""
    filled: Filled
    tolerance: float

    @property
    def num_evaluations(self) -> int:
        """Points of the grid at which the loss was measured."""
        return int(self.filled.evaluated.sum())


def adaptive_slice(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    dims: int = 2,
    points: int | tuple[int, int] = 51,
    radius: float | tuple[float, float] = 1.0,
    normalization: str | None = None,
    space: str = "adapter",
    seed: int = 0,
    *,
    tolerance: float = 0.01,
    max_evaluations: int | None = None,
    **options: Unpack[SliceOptions],
) -> AdaptiveSlice:
    """`loss_slice` on a fine grid from few evaluations; see `fill`.

    Args:
        tolerance: largest error of interpolated points, as a share of the range of the finite losses.
        max_evaluations: default: as many as the grid has points.

    Raises:
        UsageError, LandscapeError: as `loss_slice` and `fill`.
    """
    began = time.perf_counter()
    prepared = prepare_slice(model, batches, dims, points, radius, normalization, space, seed, **options)
    errors: dict[tuple[float, ...], float] = {}

    def evaluate(coordinates: Array) -> Array:
        row = prepared.evaluate(coordinates)
        errors.update(zip(map(tuple, coordinates.tolist()), row.standard_error, strict=True))
        return row.loss

    filled = fill(evaluate, prepared.axes, tolerance=tolerance, max_evaluations=max_evaluations, seed=seed)
    known = [errors.get(tuple(point), np.nan) for point in grid_points(prepared.axes).tolist()]
    result = prepared.result(filled.values, np.array(known), time.perf_counter() - began)
    return AdaptiveSlice(result, filled, tolerance)


def fill(
    function: Callable[[Array], Array],
    axes: tuple[Array, ...],
    *,
    tolerance: float = 0.01,
    max_evaluations: int | None = None,
    seed: int = 0,
) -> Filled:
    """Values of ``function`` on the grid of ``axes``, evaluated where interpolation is not good enough.

    A coarse grid, denser towards the edges, is interpolated by polyharmonic splines (Duchon, 1977). Each round then
    evaluates new points, half of them where the splines r⁵ and r³ differ most and half at random, and notes how wrong
    r⁵ was there. Once it was nowhere wrong by more than half the tolerance, it is tested at `HELD_OUT` more
    random points; if one of them is out of tolerance, refinement goes on with all points so far. The interpolation that
    is returned is the one that was tested.

    Points that are not finite stay as they are and are left out of the interpolation. A point is taken to be like its
    nearest evaluated neighbors where these agree on being finite or not; where they do not, it is worth evaluating.

    Args:
        function: from points (k, dims) to values (k,).
        axes: coordinates along each axis, ascending.
        tolerance: share of the range of the finite values found.
        max_evaluations: when to give up; ``converged`` is then False.
        seed: of the random points.

    Raises:
        UsageError: a tolerance that is not between 0 and 1, or a budget below the first grid.
    """
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance: {tolerance}; allowed: greater than 0 and less than 1")
    shape = tuple(map(len, axes))
    search = _Search(function, axes, np.random.default_rng(seed))
    budget = search.size if max_evaluations is None else max_evaluations
    first = _coarse(shape)
    if budget < len(first):
        raise UsageError(f"max_evaluations: {budget}; allowed: at least {len(first)}, the first grid")
    search.evaluate(first)
    while True:
        smooth, rough = search.predict("quintic"), search.predict("cubic")
        # Rounds that grow keep their number small where little can be interpolated.
        room = min(max(_ROUND, search.num_evaluated // 4), budget - search.num_evaluated)
        worst = search.worst(smooth, rough, room // 2)
        wrong = search.errors(smooth, worst)
        held_out = search.random(room - len(worst))
        missed = search.errors(smooth, held_out)
        within = np.concatenate([wrong, missed]).max(initial=0) <= tolerance * search.extent / _MARGIN
        if within and (left := budget - search.num_evaluated) > 0:
            missed = search.errors(smooth, search.random(min(HELD_OUT, left)))
        bound = float(missed.max(initial=0))
        converged = within and bound <= tolerance * search.extent
        if converged or search.num_evaluated >= min(budget, search.size):
            values = np.where(search.evaluated, search.values, smooth)
            complete = search.num_evaluated == search.size
            return Filled(
                values.reshape(shape),
                search.evaluated.reshape(shape),
                0.0 if complete else bound,
                0 if complete else len(missed),
                bool(converged or complete),
            )


class _Search:
    """The points of a grid, some of them evaluated."""

    def __init__(self, function: Callable[[Array], Array], axes: tuple[Array, ...], rng: np.random.Generator) -> None:
        self._function, self._rng = function, rng
        self._points = grid_points(axes)
        low, high = self._points.min(axis=0), self._points.max(axis=0)
        self._scaled = (self._points - low) / (high - low)
        self.size = len(self._points)
        self._blocks: Any = np.ravel_multi_index(tuple((self._scaled.T * 7.999).astype(int)), (8,) * len(axes))
        self.values = np.full(self.size, np.nan)
        self.evaluated = np.zeros(self.size, dtype=bool)

    @property
    def num_evaluated(self) -> int:
        return int(self.evaluated.sum())

    @property
    def extent(self) -> float:
        """Range of the finite values."""
        finite = self.values[np.isfinite(self.values)]
        return float(np.ptp(finite)) if len(finite) else 0.0

    def evaluate(self, indices: Array) -> None:
        if len(indices):
            self.values[indices] = self._function(self._points[indices])
            self.evaluated[indices] = True

    def errors(self, predicted: Array, indices: Array) -> Array:
        """Evaluate points, and say how wrong the prediction was: infinitely, if about being finite."""
        self.evaluate(indices)
        actual, expected = self.values[indices], predicted[indices]
        finite = np.isfinite(actual), np.isfinite(expected)
        with np.errstate(invalid="ignore"):
            difference = np.abs(actual - expected)
        return np.select([finite[0] & finite[1], ~finite[0] & ~finite[1]], [difference, 0.0], np.inf)

    def predict(self, kernel: str) -> Array:
        """On the whole grid: a polyharmonic spline of the finite values, and other values where they are nearest."""
        known = np.isfinite(self.values)
        result = self.values[self._nearest(1)[:, 0]]
        spline = np.isfinite(result)
        if known.sum() >= 3 * (self._points.shape[1] + 1):
            result[spline] = RBFInterpolator(self._scaled[known], self.values[known], kernel=kernel)(
                self._scaled[spline]
            )
        return result

    def worst(self, smooth: Array, rough: Array, count: int) -> Array:
        """Unevaluated points between finite and other ones, then those where two predictions differ most: of every
        block of the grid one, then another.
        """
        nearest = np.isfinite(self.values[self._nearest(_NEIGHBORS)])
        undecided: Any = nearest.any(axis=1) & ~nearest.all(axis=1)
        left = self._shuffled()
        with np.errstate(invalid="ignore"):
            doubt = np.nan_to_num(np.abs(smooth - rough)[left])
        left = left[np.argsort(-doubt, kind="stable")]
        blocks: Array = self._blocks[left]
        place = np.empty(len(left))
        for block in np.unique(blocks):
            members = np.flatnonzero(blocks == block)
            place[members] = np.arange(len(members))
        return left[np.lexsort((place, ~undecided[left]))[:count]]

    def random(self, count: int) -> Array:
        """Unevaluated points."""
        return self._shuffled()[:count]

    def _shuffled(self) -> Array:
        return self._rng.permutation(np.flatnonzero(~self.evaluated))

    def _nearest(self, count: int) -> Array:
        """Indices of the evaluated points nearest to each point, (size, count)."""
        known: Any = np.flatnonzero(self.evaluated)
        places: Any = KDTree(self._scaled[known]).query(self._scaled, k=min(count, len(known)))[1]
        return known[places.reshape(self.size, -1)]


def grid_points(axes: tuple[Array, ...]) -> Array:
    """(points, dims), the last axis fastest."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def _coarse(shape: tuple[int, ...]) -> Array:
    """Flat indices of a coarse grid on Chebyshev-Lobatto points, edges included."""
    fractions = (1 - np.cos(np.linspace(0, np.pi, FIRST_NODES))) / 2
    nodes = [np.unique(np.rint(fractions * (count - 1)).astype(int)) for count in shape]
    return np.ravel_multi_index(tuple(map(np.ravel, np.meshgrid(*nodes, indexing="ij"))), shape)
