"""Rises at every time scale: mean of a later window minus mean of an earlier one, over its own noise.

Under any non-increasing trend such a rise has expectation ≤ 0, and it is largest, path by path, when the trend is flat:
the flat trend is the least favorable null. So one statistic tests "the trend never increases" without fitting it.
Each rise is divided by the curve's own noise at that time scale, which is estimated from second differences and
smoothed over the time scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from landscape.episodes.noise import Array, block_scales, noise_design, variances
from landscape.episodes.trend import coarse_trend

_SHAPES = ((1.0, 0.0), (1.0, 1.0), (3.0, 0.5))
"""(width of the earlier window, gap between the two) in widths of the later window."""


def cumulative(curves: Array) -> Array:
    """Sums of the first 0, 1, ..., n points, (..., n) → (..., n + 1)."""
    prefix = np.zeros((*curves.shape[:-1], curves.shape[-1] + 1), curves.dtype)
    np.cumsum(curves, axis=-1, out=prefix[..., 1:])
    return prefix


@dataclass(frozen=True, eq=False)
class Contrast:
    """One shape of window pair at one width; positions are the first points of the earlier window."""

    width: int
    before: int
    gap: int
    positions: NDArray[np.int64]
    stride: int
    scale_weights: Array
    """(blocks, positions): squared local scales of the blocks → that of the difference."""


@dataclass(frozen=True, eq=False)
class ScanDesign:
    """Every contrast for curves of n points, and how variances are smoothed over time scales."""

    points: int
    contrasts: tuple[Contrast, ...]
    smoothing: Array
    """(noise widths, scan widths): log variances measured → log variances used."""
    width_index: tuple[int, ...]
    """For each contrast the column of its width."""


@lru_cache(maxsize=32)
def scan_design(points: int) -> ScanDesign:
    """Later windows from 1 % to 16 % of the curve, in steps of 1.45."""
    smallest, largest = max(3, round(points / 100)), max(points // 6, 3)
    widths: list[int] = []
    width = float(smallest)
    while round(width) <= largest:
        widths.append(round(width))
        width = max(width * 1.45, width + 1)
    noise = noise_design(points)
    contrasts, index = [], []
    for column, h in enumerate(widths):
        for before_ratio, gap_ratio in _SHAPES:
            before, gap = round(before_ratio * h), round(gap_ratio * h)
            span = before + gap + h
            if span > points:
                continue
            stride = max(1, h // 4)
            positions = np.arange(0, points - span + 1, stride)
            mean_profile = np.concatenate([np.zeros((noise.blocks, 1)), np.cumsum(noise.profile, axis=1)], axis=1)
            early = (mean_profile[:, positions + before] - mean_profile[:, positions]) / before
            late_from = positions + before + gap
            late = (mean_profile[:, late_from + h] - mean_profile[:, late_from]) / h
            weights = (early / before + late / h) / (1 / before + 1 / h)
            contrasts.append(Contrast(h, before, gap, positions, stride, weights.astype(np.float32)))
            index.append(column)
    return ScanDesign(points, tuple(contrasts), _smoothing(noise.widths, noise.dof, widths), tuple(index))


def _smoothing(measured: Sequence[int], dof: Array, wanted: Sequence[int]) -> Array:
    """Weighted quadratic regression of the log variance on the log width, as a matrix (measured, wanted)."""
    degree = 2 if len(measured) > 4 else 1
    basis = np.vander(np.log(measured), degree + 1)
    weighted = basis * dof[:, None]
    hat = np.linalg.solve(basis.T @ weighted, weighted.T)
    # Beyond the largest width that is measured the variance falls as that of independent noise does, 1/h.
    last = np.log(measured[-1])
    inside = np.minimum(np.log(wanted), last)
    return (np.vander(inside, degree + 1) @ hat).T


@dataclass(frozen=True, eq=False)
class Scan:
    """Standardized rises of some curves."""

    rises: tuple[Array, ...]
    """For each contrast (..., positions)."""
    maxima: Array
    """(..., contrasts)."""
    variances: Array
    """(..., noise widths)."""

    def times(self, factor: float) -> Scan:
        """With every rise multiplied by a factor."""
        return Scan(tuple(factor * rise for rise in self.rises), factor * self.maxima, self.variances)


def measured(curves: Array, design: ScanDesign, calm: Array | None = None) -> tuple[Array, Array]:
    """(squared block scales, variances at each of the noise's widths) of (..., n) curves; `calm` as for `scan`."""
    noise = noise_design(design.points)
    squared = block_scales(curves, noise) ** 2
    calm = curves if calm is None else calm
    calm = calm - calm[..., :1]
    flattened = cumulative(calm - coarse_trend(cumulative(calm), design.points))
    return squared, variances(flattened, squared, noise)


def scan(
    curves: Array,
    design: ScanDesign,
    allowed: tuple[NDArray[np.bool_] | None, ...],
    keep: bool = False,
    calm: Array | None = None,
) -> Scan:
    """Every standardized rise of (..., n) curves, and the largest for each contrast.

    Args:
        curves: (..., n).
        design: `scan_design(n)`.
        allowed: For each contrast the positions that count, or None for all.
        keep: Return the rises themselves too.
        calm: The curves without sudden drops, which are none of the noise's; its variance is measured on them.
    """
    n = design.points
    curves = curves - curves[..., :1]
    prefix = cumulative(curves)
    squared, found = measured(curves, design, calm)
    spread = np.exp(0.5 * (np.log(found) @ design.smoothing))
    rises, maxima = [], []
    for k, c in enumerate(design.contrasts):
        middle, late = c.before, c.before + c.gap
        stop = n - late - c.width + 1
        early_mean = (prefix[..., middle : middle + stop : c.stride] - prefix[..., : stop : c.stride]) / c.before
        rise = (
            prefix[..., late + c.width : late + c.width + stop : c.stride] - prefix[..., late : late + stop : c.stride]
        ) / c.width
        rise -= early_mean
        rise /= np.sqrt(squared @ c.scale_weights)
        mask = allowed[k]
        if mask is not None:
            rise = np.where(mask, rise, -np.inf)
        maxima.append(rise.max(axis=-1) / spread[..., design.width_index[k]])
        if keep:
            rises.append(rise / spread[..., design.width_index[k], None])
    return Scan(tuple(rises), np.stack(maxima, axis=-1), found)
