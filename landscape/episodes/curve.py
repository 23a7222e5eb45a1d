"""Checks of what a user hands in, and the curve in the form that the detector works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.errors import UsageError

MIN_POINTS = 20
"""Fewer finite points than this say nothing about their own noise."""
MAX_BINS = 640
"""Longer curves are averaged to this many points before the test."""
_TIES = 0.2
_AROUND = 15
"""Bins on either side that variances within bins are averaged over."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gap:
    """A stretch of values that are NaN or infinite."""

    first: int
    last: int
    """Index of the last non-finite point."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Finite points of a curve, with the positions of what was not finite."""

    steps: Array
    values: Array
    errors: Array | None
    """Standard errors of the values, where they are known."""
    learning_rate: Array | None
    gaps: tuple[Gap, ...]
    all_steps: Array
    """Steps of all points, finite or not."""


def numbers(name: str, data: ArrayLike, length: int | None = None) -> Array:
    """A one-dimensional float array, or an error that names the argument.

    Raises:
        UsageError: not numbers, not one-dimensional, or not of the given length.
    """
    try:
        array = np.asarray(data, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: expected numbers, got {type(data).__name__} ({error}).") from None
    if array.ndim != 1:
        raise UsageError(f"{name}: expected one dimension, got shape {array.shape}.")
    if length is not None and len(array) != length:
        raise UsageError(f"{name}: {len(array)} values for {length} steps; give one a step.")
    return array


def check_steps(steps: Array) -> None:
    """Raise UsageError unless the steps are finite and increase strictly."""
    if not np.isfinite(steps).all():
        raise UsageError(f"steps: {steps[~np.isfinite(steps)][0]} at position {int((~np.isfinite(steps)).argmax())}.")
    wrong = np.flatnonzero(np.diff(steps) <= 0)
    if len(wrong):
        i = int(wrong[0])
        raise UsageError(
            f"steps: {steps[i + 1]:g} follows {steps[i]:g} at position {i + 1}; steps must increase strictly "
            "(pass one run at a time, and one value a step)."
        )


def _gaps(finite: NDArray[np.bool_]) -> tuple[Gap, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate([[True], finite, [True]]).astype(int)))
    return tuple(Gap(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True))


def prepare(
    steps: ArrayLike,
    values: ArrayLike,
    learning_rate: ArrayLike | None = None,
    standard_errors: ArrayLike | None = None,
) -> Curve:
    """Check a curve and set aside its non-finite points.

    Raises:
        UsageError: lengths that differ, steps that repeat or go back, or fewer than `MIN_POINTS` finite values.
    """
    at = numbers("steps", steps)
    y = numbers("values", values, len(at))
    check_steps(at)
    finite = np.isfinite(y)
    if finite.sum() < MIN_POINTS:
        raise UsageError(f"values: {int(finite.sum())} finite points; at least {MIN_POINTS} are needed.")
    rate = None if learning_rate is None else numbers("learning_rate", learning_rate, len(at))[finite]
    errors = None if standard_errors is None else numbers("standard_errors", standard_errors, len(at))[finite]
    if errors is not None and (np.isnan(errors).any() or (errors < 0).any()):
        raise UsageError("standard_errors: negative or NaN; give the standard error of every value, 0 if unknown.")
    return Curve(at[finite], y[finite], errors, rate, _gaps(finite), at)


def in_logarithms(curve: Curve) -> Curve:
    """The logarithms of a curve's values; errors become relative ones.

    Raises:
        UsageError: a value that has none.
    """
    wrong = np.flatnonzero(curve.values <= 0)
    if len(wrong):
        value, step = curve.values[wrong[0]], curve.steps[wrong[0]]
        raise UsageError(f"logarithm: {value:g} at step {step:g} has none; only values above 0 do.")
    errors = None if curve.errors is None else curve.errors / curve.values
    return replace(curve, values=np.log(curve.values), errors=errors)


def quantum(values: Array) -> float:
    """Distance between neighboring levels of discrete values, 0 for others.

    Discrete are values of which more than a fifth equal their neighbor; the quantum is the 5 % quantile of the other
    differences.
    """
    sizes = np.abs(np.diff(values))
    if (sizes == 0).mean() <= _TIES or not sizes.any():
        return 0.0
    return float(np.quantile(sizes[sizes > 0], 0.05))


def dithered(values: Array, quantum: float, seed: int) -> Array:
    """Discrete values with uniform noise of their own rounding added; others as they are.

    Robust scales of values with many ties are zero or one quantum, at random.
    """
    if quantum <= 0:
        return values
    return values + quantum * np.random.default_rng([seed, 3]).uniform(-0.5, 0.5, len(values))


@dataclass(frozen=True, eq=False)
class Bins:
    """Means over neighboring points."""

    edges: NDArray[np.int64]
    """(bins + 1,) first point of each bin, and the number of points."""
    values: Array
    within: Array
    """(bins,) variance of points about their bin's mean, the mean over neighboring bins; 0 where a bin is a point."""

    @property
    def size(self) -> float:
        """Points a bin."""
        return float(self.edges[-1]) / len(self.values)


def binned(values: Array) -> Bins:
    """At most `MAX_BINS` means of nearly equal numbers of points; short curves are left as they are."""
    bins = -(-len(values) // -(-len(values) // MAX_BINS))
    edges = np.linspace(0, len(values), bins + 1).astype(np.int64)
    if bins == len(values):
        return Bins(edges, values, np.zeros(bins))
    sizes = np.diff(edges)
    means = np.add.reduceat(values, edges[:-1]) / sizes
    centered = values - np.repeat(means, sizes)
    within = np.add.reduceat(centered**2, edges[:-1]) / sizes
    # A slope through the bin is no noise: its variance there is a twelfth of its squared fall.
    within = np.maximum(within - np.gradient(means) ** 2 / 12, 0.1 * within)
    box = np.full(2 * _AROUND + 1, 1 / (2 * _AROUND + 1))
    around = np.convolve(np.pad(within, _AROUND, mode="reflect"), box, "valid")
    return Bins(edges, means, around)


def positions(steps: Array, marks: Sequence[float]) -> NDArray[np.int64]:
    """Index of the first point at or after each mark; marks outside the curve are left out."""
    at = np.searchsorted(steps, np.asarray(list(marks), dtype=np.float64))
    return np.unique(at[(at > 0) & (at < len(steps))])
