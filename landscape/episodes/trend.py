"""A coarse non-increasing trend of many curves at once, taken away before noise is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from landscape.episodes.noise import quantile_scale

Array = NDArray[np.floating]
_BLOCKS, _POINTS = 24, 12
_DROP, _AROUND, _STAYS = 5.0, 12, 0.6
"""A drop is a step down of so many robust standard deviations of steps, and the means of so many points on either side
differ by this share of it or more."""


@dataclass(frozen=True, eq=False)
class TrendDesign:
    """Blocks of a curve of n points: at most 24, of 12 points or more."""

    edges: NDArray[np.int64]
    interpolation: Array
    """(blocks, n) from values at the blocks' centers to values at the points, extrapolated as constant."""


@lru_cache(maxsize=32)
def trend_design(points: int) -> TrendDesign:
    """The blocks for curves of n points."""
    blocks = int(np.clip(points // _POINTS, 2, _BLOCKS))
    edges = np.linspace(0, points, blocks + 1).astype(np.int64)
    centers = (edges[1:] + edges[:-1]) / 2
    rows = [np.interp(np.arange(points) + 0.5, centers, row) for row in np.eye(blocks)]
    return TrendDesign(edges, np.stack(rows).astype(np.float32))


def antitone(means: Array, weights: Array) -> Array:
    """Non-increasing least-squares fit of (..., k) values with (k,) weights, by the min-max formula.

    g_k = min over i ≤ k of max over j ≥ k of the weighted mean of values i to j (Robertson, Wright and Dykstra 1988,
    1.4.8): O(k²) for each curve, but without a loop over curves. Weights may be zero: those blocks take a neighbor's
    level.
    """
    k = means.shape[-1]
    weight_sums = np.concatenate([[0], np.cumsum(weights)])
    sums = np.concatenate([np.zeros((*means.shape[:-1], 1), means.dtype), np.cumsum(means * weights, axis=-1)], axis=-1)
    total = weight_sums[None, 1:] - weight_sums[:-1, None]
    usable = np.triu(np.ones((k, k), bool)) & (total > 0)
    averages = (sums[..., None, 1:] - sums[..., :-1, None]) / np.where(usable, total, 1).astype(means.dtype)
    averages = np.where(usable, averages, -np.inf)
    largest = np.maximum.accumulate(averages[..., ::-1], axis=-1)[..., ::-1]
    largest = np.where(np.isfinite(largest), largest, np.inf)
    return np.diagonal(np.minimum.accumulate(largest, axis=-2), axis1=-2, axis2=-1)


def coarse_trend(prefix: Array, points: int, weights: Array | None = None) -> Array:
    """Non-increasing trend of curves given by their cumulative sums, (..., n + 1) → (..., n)."""
    design = trend_design(points)
    sizes = np.diff(design.edges).astype(prefix.dtype)
    means = np.diff(prefix[..., design.edges], axis=-1) / sizes
    return antitone(means, sizes if weights is None else sizes * weights) @ design.interpolation.astype(prefix.dtype)


def without_drops(values: Array) -> Array:
    """The curve with sudden drops to a lower level taken out, (n,) → (n,): a trend's steps are none of the noise's."""
    steps = np.diff(values)
    size = _DROP * float(quantile_scale(steps - np.median(steps)))
    result = values.copy()
    for at in np.flatnonzero(steps < -size):
        before, after = values[max(at + 1 - _AROUND, 0) : at + 1], values[at + 1 : at + 1 + _AROUND]
        if before.mean() - after.mean() >= -_STAYS * steps[at]:
            result[at + 1 :] -= steps[at]
    return result


def monotone_trend(values: Array) -> Array:
    """Non-increasing least-squares fit (pool adjacent violators, O(n))."""
    levels: list[float] = []
    sizes: list[int] = []
    for value in values.tolist():
        level, size = value, 1
        while levels and levels[-1] < level:
            previous, count = levels.pop(), sizes.pop()
            level, size = (level * size + previous * count) / (size + count), size + count
        levels.append(level)
        sizes.append(size)
    return np.repeat(levels, sizes)
