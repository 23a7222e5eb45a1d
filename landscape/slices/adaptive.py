"""Filling a grid from few evaluations: interpolation, refined where it is wrong, with a bound that was tested."""

from __future__ import annotations

import math
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

HELD_OUT = 100
"""Random points at which an interpolation is tested before it is believed; of a small grid, a sixth of its points."""

SAFETY = 2.5
"""``error_bound`` over what the test saw."""

KERNELS = ("quintic", "cubic", "linear")
"""Polyharmonic splines r⁵, r³ and r: the smoother the surface, the better the first; edges and noise want the last."""

_ROUND = 32
_STRICTER = 2
"""A round is held to a part of the tolerance: the worst of thousands of points is worse than the worst of tens."""

_NEIGHBORS = 4
_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Filled:
    """A grid of which some points were evaluated and the others interpolated.

    Two statements about the interpolated points, of different kinds. ``coverage`` holds for every function: with 95 %
    confidence, at least that share is within ``held_out_error``. ``error_bound`` is for all of them and has a margin,
    since no number of tested points excludes a dent between them. Over four surfaces each of nine kinds (quadratics,
    saddles, valleys, basins, waves, soft maxima, walls) 200 other points were within it 99 times in 100 (95 for walls,
    whose loss grows by many orders of magnitude inside the grid; 65 for surfaces with a kink), and always within the
    tolerance.
    """

    values: Array
    """(points, ...) on the whole grid; where the function is not finite, so are they."""
    evaluated: Array
    """Where the value is the function's own, bool in the shape of ``values``."""
    held_out_error: float
    """Largest error at ``num_held_out`` random points that the interpolation had not seen when it was tested there."""
    error_bound: float
    """`SAFETY` · ``held_out_error``, times how much more two splines differ anywhere than at the held-out points."""
    num_held_out: int
    num_tests: int
    """Interpolations that were tested; the last was returned."""
    converged: bool
    """The bound is within the tolerance."""

    @property
    def coverage(self) -> float:
        """With 95 % confidence, at least this share of the points that were unknown is within ``held_out_error``.

        All of k random points were: α^(1/k), whatever the function (Wilks, 1941). The j-th of several tests has
        α = 0.05 / 2ʲ, so that together they err once in 20 times.
        """
        level = (1 - _CONFIDENCE) / 2**self.num_tests
        return level ** (1 / self.num_held_out) if self.num_held_out else 0.0


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

    A coarse grid, denser towards the edges, is interpolated by polyharmonic splines (Duchon, 1977). Each round
    evaluates new points, half of them where the splines differ most and half at random; the spline that was best there
    is used from then on. Once it was nowhere wrong by more than half the tolerance, it is tested at `HELD_OUT`
    more random points; if the bound that they give is out of tolerance, refinement goes on with all points so far. The
    interpolation that is returned is the one that was tested.

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
    held_out, num_tests = min(HELD_OUT, search.size // 6), 0
    while True:
        search.refine(tolerance / _STRICTER, budget - held_out)
        guess, doubt = search.guess()
        unknown = np.flatnonzero(~search.evaluated)
        tested = search.random(min(held_out, budget - search.num_evaluated))
        worst = float(search.errors(guess, tested).max(initial=0))
        num_tests += 1
        bound = SAFETY * worst * _ratio(doubt[unknown].max(initial=0), doubt[tested].max(initial=0))
        converged = bool(len(tested) > 0 and bound <= tolerance * search.extent)
        if converged or search.num_evaluated >= min(budget, search.size):
            break
    values, seen = np.where(search.evaluated, search.values, guess).reshape(shape), search.evaluated.reshape(shape)
    if search.num_evaluated == search.size:
        return Filled(values, seen, 0.0, 0.0, 0, num_tests, converged=True)
    if not len(tested):
        worst = bound = math.inf
    return Filled(values, seen, worst, bound, len(tested), num_tests, converged)


def _ratio(anywhere: float, tested: float) -> float:
    return max(1.0, anywhere / tested) if tested > 0 else 1.0


class _Search:
    """The points of a grid, some of them evaluated."""

    def __init__(self, function: Callable[[Array], Array], axes: tuple[Array, ...], rng: np.random.Generator) -> None:
        self._function, self._rng = function, rng
        self._points = grid_points(axes)
        low, high = self._points.min(axis=0), self._points.max(axis=0)
        self._scaled = (self._points - low) / (high - low)
        self._kernel = KERNELS[0]
        self.size = len(self._points)
        self._blocks: Any = np.ravel_multi_index(tuple((self._scaled.T * 15.999).astype(int)), (16,) * len(axes))
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
        indices = indices[~self.evaluated[indices]]
        if len(indices):
            self.values[indices] = self._function(self._points[indices])
            self.evaluated[indices] = True

    def errors(self, predicted: Array, indices: Array) -> Array:
        """Evaluate points, and say how wrong the prediction was: infinitely, if about being finite."""
        self.evaluate(indices)
        actual, expected = self.values[indices], predicted[indices]
        agree = np.isfinite(actual) == np.isfinite(expected)
        return np.where(agree, _difference(actual, expected), np.inf)

    def refine(self, tolerance: float, limit: int) -> None:
        """Rounds of new points until one finds no error above a share of the range; at most ``limit`` points in all."""
        # Rounds that grow keep their number small where little can be interpolated.
        while (room := min(max(_ROUND, self.num_evaluated // 4), limit - self.num_evaluated)) > 0:
            splines = {kernel: self._predict(kernel) for kernel in KERNELS}
            doubt = np.max([_difference(splines[self._kernel], other) for other in splines.values()], axis=0)
            worst = self._worst(doubt, room // 2)
            rest = self._shuffled()
            chosen = np.concatenate([worst, rest[~np.isin(rest, worst)][: room - len(worst)]])
            errors = {kernel: self.errors(spline, chosen) for kernel, spline in splines.items()}
            done = errors[self._kernel].max(initial=0) <= tolerance * self.extent
            squares = {kernel: np.square(found[np.isfinite(found)]).sum() for kernel, found in errors.items()}
            self._kernel = min(KERNELS, key=squares.__getitem__)
            if done:
                return

    def guess(self) -> tuple[Array, Array]:
        """The best spline on the whole grid, and how much another one differs from it."""
        best, other = self._predict(self._kernel), self._predict(KERNELS[0 if self._kernel == KERNELS[1] else 1])
        return best, _difference(best, other)

    def _predict(self, kernel: str) -> Array:
        """On the whole grid: a polyharmonic spline of the finite values, and other values where they are nearest."""
        known = np.isfinite(self.values)
        result = self.values[self._nearest(1)[:, 0]]
        spline = np.isfinite(result)
        if known.sum() >= 3 * (self._points.shape[1] + 1):
            result[spline] = RBFInterpolator(self._scaled[known], self.values[known], kernel=kernel)(
                self._scaled[spline]
            )
        return result

    def _worst(self, doubt: Array, count: int) -> Array:
        """Unevaluated points between finite and other ones, then those of the largest doubt: of every block of the grid
        one, then another.
        """
        nearest = np.isfinite(self.values[self._nearest(_NEIGHBORS)])
        undecided: Any = nearest.any(axis=1) & ~nearest.all(axis=1)
        left = self._shuffled()
        left = left[np.argsort(-doubt[left], kind="stable")]
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


def _difference(first: Array, second: Array) -> Array:
    """Absolute; 0 where either is not finite."""
    finite = np.isfinite(first) & np.isfinite(second)
    return np.abs(np.subtract(first, second, out=np.zeros(len(first)), where=finite))


def grid_points(axes: tuple[Array, ...]) -> Array:
    """(points, dims), the last axis fastest."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def _coarse(shape: tuple[int, ...]) -> Array:
    """Flat indices of a coarse grid on Chebyshev-Lobatto points, edges included."""
    fractions = (1 - np.cos(np.linspace(0, np.pi, FIRST_NODES))) / 2
    nodes = [np.unique(np.rint(fractions * (count - 1)).astype(int)) for count in shape]
    return np.ravel_multi_index(tuple(map(np.ravel, np.meshgrid(*nodes, indexing="ij"))), shape)
