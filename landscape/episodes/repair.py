"""Outliers of one or two points, which are bad batches and no episodes, taken out before anything is estimated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_THRESHOLD = 4.0
_BLOCKS = 16


@dataclass(frozen=True, eq=False)
class Repaired:
    """Values without outliers, and where the outliers were."""

    values: NDArray[np.float64]
    outliers: NDArray[np.int64]
    excess: NDArray[np.float64]
    """(outliers,) what was taken away."""


def running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of five neighbors, (n,) → (n,); the ends are mirrored. A sorting network: no sort a point."""
    p = np.pad(values, 2, mode="reflect")
    a, b, c, d, e = (p[k : len(p) - 4 + k] for k in range(5))
    low, high = np.minimum(a, b), np.maximum(a, b)
    low2, high2 = np.minimum(c, d), np.maximum(c, d)
    # The least and the largest of the four cannot be the median of five.
    x, y = np.maximum(low, low2), np.minimum(high, high2)
    return np.maximum(np.minimum(x, y), np.minimum(np.maximum(x, y), e))


def repair(values: NDArray[np.float64], quantum: float = 0.0) -> Repaired:
    """Replace points that leave the median of five by more than four local standard deviations (Hampel 1974).

    Discrete values are told by their `quantum`: of two levels the rarer one is no outlier.
    """
    if len(values) < 5:
        return Repaired(values, np.empty(0, np.int64), np.empty(0))
    median = running_median(values)
    deviation = values - median
    size = np.abs(deviation)
    blocks = int(np.clip(len(values) // 50, 1, _BLOCKS))
    edges = np.linspace(0, len(values), blocks + 1).astype(int)
    # Deviations from a median of five are zero at every fifth point or more, so the quantile is a high one.
    scale = np.concatenate([np.full(b - a, np.quantile(size[a:b], 0.8)) for a, b in itertools.pairwise(edges)])
    outliers = np.flatnonzero(size > _THRESHOLD * np.maximum(scale, quantum))
    cleaned = values.copy()
    cleaned[outliers] = median[outliers]
    return Repaired(cleaned, outliers, deviation[outliers])
