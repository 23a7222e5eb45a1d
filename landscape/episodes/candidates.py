"""From significant rises to rebounds: which rise is one of its own, and where it peaks, begins and ends, roughly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.episodes.curve import Array
from landscape.episodes.noise import Array as Floats
from landscape.episodes.scan import Scan, ScanDesign

_LEFT = 0.15
"""Share of the rise below which the curve counts as back at its level, for the rough boundaries."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A rebound, in bins."""

    score: float
    onset: int
    peak: int
    recovery: int
    """First bin that is back; the last bin if none is."""
    level: float
    top: float
    width: int
    """Of the later window that it was found with."""


def moving_mean(values: Array, width: int) -> Array:
    """Centered mean over `width` points (made odd), (n,) → (n,); shorter windows at the ends."""
    half = width // 2
    prefix = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (prefix[high] - prefix[low]) / (high - low)


def extent(values: Array, before: tuple[int, int], after: tuple[int, int], score: float) -> Candidate:
    """Follow a rise from the window `before` to the window `after` (half-open ranges) to its rebound's ends."""
    n, width = len(values), after[1] - after[0]
    smooth = moving_mean(values, max(width // 2, 1))
    low, high = float(values[slice(*before)].mean()), float(values[slice(*after)].mean())
    middle = (after[0] + after[1]) // 2
    back = np.flatnonzero(smooth[middle:] <= low + _LEFT * (high - low))
    stop = middle + int(back[0]) if len(back) else n
    peak = before[1] - 1 + int(smooth[before[1] - 1 : max(stop, after[0] + 1)].argmax())
    top = float(smooth[peak])
    below = np.flatnonzero(smooth[before[0] : peak + 1] <= low + _LEFT * (top - low))
    onset = before[0] + int(below[-1] if len(below) else smooth[before[0] : peak + 1].argmin())
    # The earlier window may lie on a descent: the level is what the curve came down to.
    level = min(low, float(smooth[onset]))
    back = np.flatnonzero(smooth[peak:] <= level + _LEFT * (top - level))
    recovery = peak + int(back[0]) if len(back) else n - 1
    return Candidate(score, onset, peak, recovery, level, top, width)


def find_candidates(
    values: Array, found: Scan, design: ScanDesign, center: Floats, spread: Floats, limit: int, lowest: float
) -> list[Candidate]:
    """The strongest rise, the strongest outside its rebound, and so on, down to a score.

    Args:
        values: (n,) binned.
        found: Its scan, with the rises kept.
        design: The scan's design.
        center: (contrasts,) mean of the null's maxima; spread: their standard deviation.
        limit: Largest number of candidates.
        lowest: Lowest score of any but the first.
    """
    scores = [
        np.where(np.isfinite(rise) & np.isfinite(spread[k]), rise - center[k], -np.inf) / min(spread[k], 1e30)
        for k, rise in enumerate(found.rises)
    ]
    result: list[Candidate] = []
    while len(result) < limit:
        k = int(np.argmax([s.max() for s in scores]))
        i = int(scores[k].argmax())
        if not np.isfinite(scores[k][i]) or found.rises[k][i] <= 0 or (result and scores[k][i] < lowest):
            break
        c = design.contrasts[k]
        first = int(c.positions[i])
        late = first + c.before + c.gap
        one = extent(values, (first, first + c.before), (late, late + c.width), float(scores[k][i]))
        result.append(one)
        for other, s in zip(design.contrasts, scores, strict=True):
            start = other.positions + other.before + other.gap
            # A rise that reaches into this rebound, or that only compares its two sides, is part of it.
            s[(start + other.width > one.onset) & (start <= max(one.recovery, late + c.width))] = -np.inf
            s[(other.positions + other.before // 2 <= one.onset) & (start >= one.recovery)] = -np.inf
        scores[k][i] = -np.inf
    return result
