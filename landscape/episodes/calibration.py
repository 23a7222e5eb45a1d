"""p-values by resampling under the null, with sequential stopping.

The null: a flat trend, which is the least favorable of all trends that never rise, plus noise with the curve's own
spectrum, local scale and innovations. The spectrum is fitted to the variances measured at each time scale on the curve
without its trend and without its strongest rebound (which would be taken for slow noise and hide itself), and corrected
once so that resamples, measured in the same way, show the variances that the curve shows (indirect inference). A
curve shows little of its own slow noise; so the resamples come in equal parts from spectra 1.5, 2.5 and 3.5 standard
errors above the estimate, and more where the estimate has long memory. These numbers were
chosen on the benchmark's development split, for false-positive rates below 0.05 at noises that the model lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from landscape.episodes.candidates import extent
from landscape.episodes.curve import Array as Float64
from landscape.episodes.noise import Array, NoiseModel, block_scales, fit_noise, noise_design, variances
from landscape.episodes.scan import Scan, ScanDesign, cumulative, scan, scan_design
from landscape.episodes.trend import coarse_trend, trend_design

_FIRST = 99
"""Resamples after which a p-value is looked at."""
_UNDECIDED = 0.2
"""A p-value above this is good enough then."""
_CHUNK = 150
_PILOT = 64
"""Resamples for the correction of the spectrum."""
_ABOVE = (1.5, 2.5, 3.5)
"""Standard errors of the log variances that are added, at all time scales together."""
_SLOWER, _MOST = 10.0, 2.0
"""Standard errors more for each unit of the long-memory share of the estimate, and at most: long memory is where a
short curve shows least of its own noise."""
_MASKED = 0.35
"""Largest share of the curve that is taken for the strongest rebound."""


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """Maxima of resampled curves, and the scores made of them."""

    center: Array
    """(contrasts,) mean of the largest rise under the null."""
    spread: Array
    """(contrasts,) its standard deviation; infinite for contrasts that no allowed window pair has."""
    scores: Array
    """(resamples,) largest standardized maximum of each, sorted."""

    def score(self, maxima: Array) -> Array:
        """Standardize (..., contrasts) maxima and take the largest, (...)."""
        usable = np.isfinite(self.spread)
        return ((maxima[..., usable] - self.center[usable]) / self.spread[usable]).max(axis=-1, initial=-np.inf)

    def p_value(self, score: float) -> float:
        """(1 + number of resamples that reach the score) / (1 + resamples)."""
        reached = len(self.scores) - int(np.searchsorted(self.scores, score, side="left"))
        return (1 + reached) / (1 + len(self.scores))


@dataclass(frozen=True, eq=False)
class NoiseFit:
    """The noise of one curve: several models of its spectrum, and its local scale."""

    models: tuple[NoiseModel, ...]
    scale: Array
    """(n,) relative to the run's mean."""
    variance: float
    """Of a point where the scale is 1, by the estimate itself."""

    @property
    def deviation(self) -> Array:
        """(n,) standard deviation of a point's noise, by the estimate."""
        return self.scale * np.sqrt(self.variance)


@lru_cache(maxsize=32)
def _reference(points: int) -> tuple[Array, Array]:
    """Mean and standard deviation of each contrast's maximum for white noise: only to pick the strongest rebound."""
    design = scan_design(points)
    noise = np.random.default_rng(0).standard_normal((200, points), dtype=np.float32)
    maxima = scan(noise, design, (None,) * len(design.contrasts)).maxima
    return maxima.mean(axis=0), maxima.std(axis=0)


def strongest_rebound(values: Float64, found: Scan, design: ScanDesign) -> tuple[int, int]:
    """Half-open range of the points that the strongest rise belongs to."""
    center, spread = _reference(design.points)
    k = int(((found.maxima - center) / spread).argmax())
    c = design.contrasts[k]
    start = int(c.positions[int(found.rises[k].argmax())])
    late = start + c.before + c.gap
    one = extent(values, (start, start + c.before), (late, late + c.width), 0.0)
    first = min(one.onset, start + c.before)
    return first, min(one.recovery + 1, first + int(_MASKED * len(values)), len(values))


def _mirrored(residual: Array, first: int, stop: int) -> Array:
    """The residual with [first, stop) replaced by the neighbors of either side, read outwards."""
    n, length, result = len(residual), stop - first, residual.copy()
    left = length // 2
    if first < 8 or n - stop < 8:
        left = 0 if first < n - stop else length
    if left:
        result[first : first + left] = np.resize(residual[:first][::-1], left)
    if length > left:
        result[first + left : stop] = np.resize(residual[stop:], length - left)[::-1]
    return result


def fit_null(values: Float64, found: Scan, design: ScanDesign, seed: int) -> NoiseFit:
    """The noise of a curve (n,) whose scan, rises kept, is `found`."""
    n = len(values)
    noise = noise_design(n)
    squared = block_scales(values, noise) ** 2
    scale = np.sqrt(squared @ noise.profile)
    first, stop = strongest_rebound(values, found, design)
    edges = trend_design(n).edges
    clear = ((edges[1:] <= first) | (edges[:-1] >= stop)).astype(float)
    residual = values - coarse_trend(cumulative(values), n, clear if clear.any() else None)
    target = np.log(variances(cumulative(_mirrored(residual, first, stop)), squared, noise))
    pilot = fit_noise(np.exp(target), values, scale).sample(_PILOT, np.random.default_rng([seed, 1]))
    shown = np.log(scan(scale.astype(np.float32) * pilot, design, (None,) * len(design.contrasts)).variances)
    corrected, error = 2 * target - shown.mean(axis=0), shown.std(axis=0)
    estimate = fit_noise(np.exp(corrected), values, scale)
    more = min(_SLOWER * estimate.slow, _MOST)
    models = [fit_noise(np.exp(corrected + (z + more) * error), values, scale) for z in _ABOVE]
    return NoiseFit(tuple(models), scale, estimate.variance)


def _standardized(maxima: Array) -> NullDistribution:
    usable = np.isfinite(maxima).all(axis=0)
    safe = np.where(usable, maxima, 0)
    spread = safe.std(axis=0)
    center, spread = safe.mean(axis=0), np.where(usable & (spread > 0), spread, np.inf)
    null = NullDistribution(center, spread, np.empty(0))
    return NullDistribution(center, spread, np.sort(null.score(maxima[:-1])))


def calibrate(
    observed: Array,
    fit: NoiseFit,
    design: ScanDesign,
    allowed: tuple[NDArray[np.bool_] | None, ...],
    seed: int,
    resamples: int,
) -> NullDistribution:
    """Resample the null until the p-value of `observed`, (contrasts,) maxima, is known well enough."""
    rng = np.random.default_rng([seed, 2])
    maxima = np.empty((0, len(observed)))
    scale = fit.scale.astype(np.float32)
    null = None
    for total in (min(_FIRST, resamples), resamples):
        while len(maxima) < total:
            each = -(-min(_CHUNK, total - len(maxima)) // len(fit.models))
            noise = np.concatenate([model.sample(each, rng) for model in fit.models])
            maxima = np.concatenate([maxima, scan(scale * noise, design, allowed).maxima])
        # The curve is one of the sample that the maxima are standardized by, as any resample is.
        null = _standardized(np.concatenate([maxima, observed[None]]))
        if null.p_value(float(null.score(observed))) > _UNDECIDED:
            break
    assert null is not None
    return null
