"""A test for evaluations: few points, far apart, whose noise is nearly white.

From 20 points nobody learns their noise's autocorrelation; a test that has to is blind there. Of evaluations more is
taken for known: the error of each one's own sample is white, and the run's own noise is no larger than that error. So
the statistic takes the noise for white: rises between windows of any two lengths, in units of a scale from second
differences, each pair standardized by its maximum in white noise. What it ignores is in the null distribution, computed
once from flat curves of such noise (`experiments/benchmarks/episodes_correction.py`): the score's center and scatter
over the number of points and, from 50 points on, the curve's redness outside its strongest rebound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landscape.episodes.candidates import extent
from landscape.episodes.correction import shipped
from landscape.episodes.curve import Array
from landscape.episodes.noise import Array as Floats
from landscape.episodes.noise import quantile_scale
from landscape.episodes.repair import Repaired
from landscape.episodes.scan import Contrast, Scan, ScanDesign, cumulative
from landscape.errors import UsageError

FILE = Path(__file__).with_name("evaluations.json")
LONGEST = 300
"""Points of a curve that the null distribution was computed for, at most; longer ones show their own noise."""
_GROWTH = 1.6
_RATIO = 4
"""Growth of the windows' lengths, and the largest ratio of an earlier to a later one."""
_REFERENCES = 200
_CLIP = 2.5
"""Scales at which second differences are cut: corners of trend and rebound are none of the noise's."""
_SPIKE = 4.0
"""Noise units by which one evaluation may exceed both its neighbors."""
_BLIND, _SEEING = 50, 100
"""Points up to which redness is not looked at, because most of what is seen is the rebound; and from which in full."""
_MOST_RED = 1.2

Allowed = tuple[NDArray[np.bool_] | None, ...]


def _lengths(points: int) -> list[int]:
    result, width = [1], 1.0
    while round(width := max(width * _GROWTH, width + 1)) <= max(points // 5, 3):
        result.append(round(width))
    return result


@lru_cache(maxsize=32)
def evaluation_design(points: int) -> ScanDesign:
    """Window pairs for n points: the later window has 2 points to a fifth of the curve, the earlier 1 or more."""
    contrasts = []
    nothing = np.empty((0, 0))
    for late in _lengths(points)[1:]:
        for early in _lengths(points):
            if not late // 3 <= early <= _RATIO * late:
                continue
            for gap in sorted({0, late // 2, late}):
                if early + gap + late <= points:
                    positions = np.arange(points - early - gap - late + 1)
                    contrasts.append(Contrast(late, early, gap, positions, 1, nothing))
    return ScanDesign(points, tuple(contrasts), nothing, ())


def relative_scale(errors: Array | None, points: int) -> Array:
    """(n,) noise of each point relative to the others: as the standard errors have it, those of 0 as the mean one.

    Raises:
        UsageError: an infinite error.
    """
    if errors is not None and np.isinf(errors).any():
        raise UsageError("standard_errors: infinite; give the standard error of every value, 0 if unknown.")
    if errors is None or not (errors > 0).any():
        return np.ones(points)
    known = np.where(errors > 0, errors, errors[errors > 0].mean())
    return known / np.sqrt((known**2).mean())


def white_scan(curves: Array, scale: Array, design: ScanDesign, allowed: Allowed | None = None) -> Scan:
    """Every rise of (..., n) curves in standard deviations of its own where noise is white with this scale (n,)."""
    prefix, squared = cumulative(curves - curves[..., :1]), cumulative(scale**2)
    rises = []
    for k, c in enumerate(design.contrasts):
        early, late = c.positions, c.positions + c.before + c.gap
        rise = (prefix[..., late + c.width] - prefix[..., late]) / c.width
        rise -= (prefix[..., early + c.before] - prefix[..., early]) / c.before
        variance = (squared[late + c.width] - squared[late]) / c.width**2
        variance += (squared[early + c.before] - squared[early]) / c.before**2
        rise /= np.sqrt(variance)
        mask = None if allowed is None else allowed[k]
        rises.append(rise if mask is None else np.where(mask, rise, -np.inf))
    maxima = np.stack([r.max(axis=-1, initial=-np.inf) for r in rises], axis=-1)
    return Scan(tuple(rises), maxima, np.empty(0))


@lru_cache(maxsize=32)
def _reference(points: int) -> tuple[Array, Array]:
    """Mean and standard deviation of each pair's maximum in white noise of variance 1."""
    noise = np.random.default_rng(0).standard_normal((_REFERENCES, points))
    maxima = white_scan(noise, np.ones(points), evaluation_design(points)).maxima
    return maxima.mean(axis=0), maxima.std(axis=0)


def _clipped_scale(differences: Array) -> float:
    """Root mean square of differences, the large ones cut: with few of them a quantile alone is too rough."""
    sizes, scale = np.abs(differences), float(quantile_scale(differences))
    for _ in range(2):
        scale = float(np.sqrt((np.minimum(sizes, _CLIP * scale) ** 2).mean()))
    return scale


def _second_differences(values: Array, scale: Array, width: int) -> Array:
    """Mean of a window minus the mean of its two neighbors', in standard deviations of white noise of this scale."""
    sums, variances = (s[width:] - s[:-width] for s in (cumulative(values), cumulative(scale**2)))
    first, middle, last = (np.arange(len(values) + 1 - 3 * width) + k * width for k in range(3))
    difference = sums[middle] - 0.5 * (sums[first] + sums[last])
    return difference / np.sqrt(variances[middle] + 0.25 * (variances[first] + variances[last]))


def noise_level(values: Array, scale: Array) -> float:
    """Standard deviation of a point's noise where the relative scale is 1."""
    level = _clipped_scale(_second_differences(values, scale, 1))
    return max(level, 1e-9 * float(np.ptp(values)), np.finfo(float).tiny)


def redness(values: Array, scale: Array, masked: tuple[int, int]) -> float:
    """Log deviation of means of two points over that of points, outside a stretch: 0 for white noise."""
    found = []
    for width in (1, 2):
        differences = _second_differences(values, scale, width)
        first = np.arange(len(differences))
        clear = differences[(first + 3 * width <= masked[0]) | (first >= masked[1])]
        found.append(_clipped_scale(clear if len(clear) >= max(len(values) // 6, 4) else differences))
    return float(np.clip(np.log(found[1] / found[0]), -_MOST_RED, _MOST_RED)) if min(found) > 0 else 0.0


def tempered(values: Array, scale: Array, quantum: float = 0.0) -> Repaired:
    """One evaluation that stands far above both neighbors is cut; two in a row are not."""
    neighbors = np.maximum(np.append(values[1:], -np.inf), np.append(-np.inf, values[:-1]))
    neighbors[0] = np.inf  # Where a run begins it is high.
    most = neighbors + _SPIKE * np.maximum(noise_level(values, scale) * scale, quantum)
    high = np.flatnonzero(values > most)
    return Repaired(np.minimum(values, most), high, (values - neighbors)[high])


def terms(points: int, red: float) -> Array:
    """(8,) regressors of a score."""
    length = (np.log(points) - 4.2) / 0.8
    seen = red * float(np.clip(np.log(points / _BLIND) / np.log(_SEEING / _BLIND), 0, 1))
    return np.array([1.0, length, length**2, length**3, seen, seen**2, seen * length, seen**2 * length])


@dataclass(frozen=True, eq=False)
class EvaluationNull:
    """What scores of evaluations without an episode are like."""

    center: Array
    """(contrasts,) mean of the largest rise in white noise of the level that was found."""
    spread: Array
    """(contrasts,) its standard deviation."""
    known: Array
    """`terms` of the curve."""

    def score(self, maxima: Floats) -> Floats:
        """Standardize (..., contrasts) maxima and take the largest, (...)."""
        return ((maxima - self.center) / self.spread).max(axis=-1, initial=-np.inf)

    def p_value(self, score: float) -> float:
        """How often a curve without an episode reaches the score."""
        return shipped(FILE).tail(score, self.known) if np.isfinite(score) else 1.0

    def quantile(self, share: float) -> float:
        """Score that this share of such curves stays below."""
        return shipped(FILE).exceeded(1 - share, self.known)


@dataclass(frozen=True, eq=False)
class EvaluationTest:
    """The noise of one curve, its scan and the null distribution of its score."""

    deviation: Array
    """(n,) standard deviation of a point's noise."""
    null: EvaluationNull
    seen: Scan


def examined(values: Array, scale: Array, allowed: Allowed | None = None) -> EvaluationTest:
    """Scan evaluations (n,) of relative scale (n,), with p-values for the window pairs that are allowed.

    Positions that are not allowed only lower a score, so the null is that of all.
    """
    points, design = len(values), evaluation_design(len(values))
    level = noise_level(values, scale)
    whole = white_scan(values, level * scale, design)
    seen = whole if allowed is None else white_scan(values, level * scale, design, allowed)
    center, spread = _reference(points)
    k = int(((whole.maxima - center) / spread).argmax())
    c, first = design.contrasts[k], int(whole.rises[k].argmax())
    late = first + c.before + c.gap
    strongest = extent(values, (first, first + c.before), (late, late + c.width), 0.0)
    masked = (strongest.onset, min(strongest.recovery + 1, strongest.onset + points // 2))
    known = terms(points, redness(values, scale, masked))
    return EvaluationTest(level * scale, EvaluationNull(center, spread, known), seen)
