"""Numbers read off slices: how wide, how anisotropic, how non-convex, each with its error over directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from landscape.errors import UsageError
from landscape.slices.result import SliceResult

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A mean over random directions (or planes) with its standard error; NaN of one."""

    value: float
    standard_error: float
    num_draws: int


@dataclass(frozen=True)
class Flatness:
    """Of several slices through one point. Everything is in units of the slices' coordinates, so it compares runs
    only under one normalization, and no slice that is not random says anything about others.
    """

    delta: float
    width: Estimate
    """Length around the origin on which the loss is at most origin + ``delta``; infinite where a slice never rises
    so far: make its radius larger."""
    anisotropy: Estimate
    """Largest ÷ smallest principal curvature in size at the origin of each plane, at least 1; NaN of 1D slices."""
    nonconvexity: Estimate
    """Share of each slice's inner points where some curvature is negative (beyond rounding)."""


def flatness(slices: Sequence[SliceResult], delta: float) -> Flatness:
    """Flatness numbers of slices that differ in their directions.

    Both axes of a plane count as directions for the width; a plane counts once for the other two.

    Args:
        slices: of one model, with the origin among their points; usually `SliceEnsemble.slices`.
        delta: rise of the loss, in nats.

    Raises:
        UsageError: no slices, ``delta`` not positive, fewer than 5 points, or no origin among the points.
    """
    if not slices:
        raise UsageError("slices: none")
    if not 0 < delta < math.inf:
        raise UsageError(f"delta: {delta}; allowed: numbers greater than 0")
    for position, item in enumerate(slices):
        if any(len(axis) < 5 or not (axis == 0).any() for axis in item.axes):
            raise UsageError(f"slices[{position}]: allowed: at least 5 points an axis, coordinate 0 among them")
    widths = [width(axis, values, delta) for item in slices for axis, values in _central_lines(item)]
    return Flatness(
        delta,
        _estimate(widths),
        _estimate([anisotropy(item) for item in slices]),
        _estimate([nonconvexity(item) for item in slices]),
    )


def width(axis: Array, values: Array, delta: float) -> float:
    """Length around 0 on which a cubic spline of the values stays within value(0) + ``delta``.

    Exact for polynomials up to the third degree. Where a value is not finite, the length ends at the last finite one;
    infinite where neither happens within the axis.
    """
    center = int(np.flatnonzero(axis == 0)[0])
    if not np.isfinite(values[center]):
        return math.nan
    broken = np.flatnonzero(~np.isfinite(values))
    start = int(broken[broken < center].max(initial=-1)) + 1
    stop = int(broken[broken > center].min(initial=len(values)))
    left = axis[start] if start > 0 else -math.inf
    right = axis[stop - 1] if stop < len(values) else math.inf
    if stop - start >= 2:
        crossings = CubicSpline(axis[start:stop], values[start:stop]).solve(values[center] + delta, extrapolate=False)
        left = crossings[crossings < 0].max(initial=left)
        right = crossings[crossings > 0].min(initial=right)
    return float(right - left)


def anisotropy(item: SliceResult) -> float:
    """Largest ÷ smallest principal curvature, in size, at the origin of a plane; exact for quadratics."""
    if item.dims == 1:
        return math.nan
    i, j = (int(np.flatnonzero(axis == 0)[0]) for axis in item.axes)
    if not (0 < i < len(item.axes[0]) - 1 and 0 < j < len(item.axes[1]) - 1):
        return math.nan
    curvatures = np.abs(_curvatures(item)[i - 1, j - 1])
    return float(curvatures.max() / curvatures.min()) if curvatures.min() > 0 else math.inf


def nonconvexity(item: SliceResult) -> float:
    """Share of the inner points at which the smallest curvature, by central differences, is negative.

    Differences below what rounding of the loss can cause count as zero; inner points next to a value that is not
    finite are left out; NaN without any other.
    """
    smallest = _curvatures(item)[..., 0]
    eps = np.finfo(np.float64 if item.precision == "float64" else np.float32).eps
    spacing = min(float(np.diff(axis).min()) for axis in item.axes)
    rounding = 8 * eps * np.abs(item.loss[item.finite]).max(initial=0) / spacing**2
    known = np.isfinite(smallest)
    return float((smallest[known] < -rounding).mean()) if known.any() else math.nan


def _curvatures(item: SliceResult) -> Array:
    """Eigenvalues of the Hessian in slice coordinates at the inner points, ascending in the last axis."""
    with np.errstate(invalid="ignore"):
        if item.dims == 1:
            return _second(item.loss, item.axes[0], 0)[:, None]
        values, (x, y) = item.loss, item.axes
        xx, yy = _second(values, x, 0)[:, 1:-1], _second(values, y, 1)[1:-1]
        corners = values[2:, 2:] - values[2:, :-2] - values[:-2, 2:] + values[:-2, :-2]
        xy = corners / np.outer(x[2:] - x[:-2], y[2:] - y[:-2])
        center, radius = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        return np.stack([center - radius, center + radius], axis=-1)


def _second(values: Array, axis: Array, along: int) -> Array:
    """Second derivatives at the inner points of an axis with any spacing."""
    values = np.moveaxis(values, along, -1)
    slopes = np.diff(values) / np.diff(axis)
    return np.moveaxis(2 * np.diff(slopes) / (axis[2:] - axis[:-2]), -1, along)


def _central_lines(item: SliceResult) -> list[tuple[Array, Array]]:
    """Coordinates and values along each axis through the origin."""
    if item.dims == 1:
        return [(item.axes[0], item.loss)]
    i, j = (int(np.flatnonzero(axis == 0)[0]) for axis in item.axes)
    return [(item.axes[0], item.loss[:, j]), (item.axes[1], item.loss[i])]


def _estimate(draws: Sequence[float]) -> Estimate:
    values = np.array(draws)
    with np.errstate(invalid="ignore"):
        spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), spread, len(values))
