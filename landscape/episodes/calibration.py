"""p-values by resampling under the null, corrected for what a curve does not show of its own noise.

The null: a flat trend, which is the least favorable of all trends that never rise, plus noise with the curve's own
spectrum, local scale and innovations. The spectrum is fitted to the variances measured at each time scale on the curve
without its trend and without its strongest rebound (which would be taken for slow noise and hide itself), and corrected
once so that resamples, measured in the same way, show the variances that the curve shows (indirect inference).
Standardized by the resamples' scores, the curve's score is turned into a p-value by a distribution that was computed
once, from curves whose noise is known: `landscape.episodes.correction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from landscape.episodes.candidates import extent, find_candidates
from landscape.episodes.correction import shipped
from landscape.episodes.curve import Array as Float64
from landscape.episodes.memory import noise_memory, short_redness
from landscape.episodes.noise import (
    Array,
    NoiseModel,
    block_scales,
    fit_noise,
    noise_design,
    quantile_scale,
    variances,
)
from landscape.episodes.scan import Scan, ScanDesign, cumulative, measured, scan, scan_design
from landscape.episodes.trend import coarse_trend, trend_design, without_drops

_CHUNK = 150
_PILOT = 64
"""Resamples for the correction of the spectrum."""
_MASKED = 0.35
"""Largest share of the curve that is taken for the strongest rebound."""
_HIGH, _OTHERS, _MASKED_ALL = 3.5, 6, 0.55
"""Height in standard deviations of the residual above which other rebounds are taken out too, how many are looked at,
and the largest share of the curve that all of them may have. Noise of the models seldom rises so high."""


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """Maxima of resampled curves, and the scores made of them."""

    center: Array
    """(contrasts,) mean of the largest rise under the null."""
    spread: Array
    """(contrasts,) its standard deviation; infinite for contrasts that no allowed window pair has."""
    scores: Array
    """(resamples,) largest standardized maximum of each."""
    features: Array
    """(4,) of the curve's noise, as `NoiseFit` has them."""

    def score(self, maxima: Array) -> Array:
        """Standardize (..., contrasts) maxima and take the largest, (...)."""
        usable = np.isfinite(self.spread)
        return ((maxima[..., usable] - self.center[usable]) / self.spread[usable]).max(axis=-1, initial=-np.inf)

    def p_value(self, score: float) -> float:
        """How often a curve without an episode, with noise like this, reaches the score."""
        return shipped().p_value(self.standardized(score), self.features) if np.isfinite(score) else 1.0

    def standardized(self, score: float) -> float:
        """In standard deviations of the resamples' scores from their mean."""
        return (score - float(self.scores.mean())) / max(float(self.scores.std()), np.finfo(float).tiny)

    def quantile(self, share: float) -> float:
        """Score that this share of the resamples stays below."""
        return float(np.quantile(self.scores, share)) if np.isfinite(self.scores).all() else np.inf


@dataclass(frozen=True, eq=False)
class NoiseFit:
    """The noise of one curve: a model of its spectrum, and its local scale."""

    model: NoiseModel
    scale: Array
    """(n,) relative to the run's mean."""
    features: Array
    """(4,) what the correction of p-values looks at."""

    @property
    def deviation(self) -> Array:
        """(n,) standard deviation of a point's noise, by the estimate."""
        return self.scale * np.sqrt(self.model.variance)


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


def split_trend(values: Float64, stretches: tuple[tuple[int, int], ...]) -> tuple[Float64, Float64]:
    """Non-increasing trend of what lies outside the half-open stretches, and the residual with the stretches filled."""
    n = len(values)
    edges = trend_design(n).edges
    clear = np.ones(len(edges) - 1)
    for first, stop in stretches:
        clear[(edges[1:] > first) & (edges[:-1] < stop)] = 0
    trend = np.asarray(coarse_trend(cumulative(values), n, clear if clear.any() else None), np.float64)
    residual = values - trend
    for first, stop in stretches:
        if stop - first < n - 16:
            residual = np.asarray(_mirrored(residual, first, stop), np.float64)
    return trend, residual


def without_stretches(values: Float64, stretches: tuple[tuple[int, int], ...]) -> Float64:
    """The values with the stretches replaced by trend and by noise like their neighbors'."""
    trend, residual = split_trend(values, stretches)
    result = values.copy()
    for first, stop in stretches:
        result[first:stop] = (trend + residual)[first:stop]
    return result


def _without_rebounds(values: Float64, found: Scan, design: ScanDesign) -> Float64:
    """Residual without trend, strongest rebound, and others that are high above the noise: each hides the others."""
    strongest = strongest_rebound(values, found, design)
    values = np.asarray(without_drops(values), np.float64)
    _, residual = split_trend(values, (strongest,))
    lowest = _HIGH * float(quantile_scale(residual))
    height = values[slice(*strongest)].max() - values[max(strongest[0] - 3, 0) : strongest[0] + 3].mean()
    if height < lowest:
        return residual
    stretches, share = [strongest], (strongest[1] - strongest[0]) / len(values)
    for c in find_candidates(values, found, design, *_reference(design.points), _OTHERS, -np.inf):
        share += (c.recovery + 1 - c.onset) / len(values)
        apart = all(c.onset >= stop or c.recovery < first for first, stop in stretches)
        if apart and c.top - c.level >= lowest and share <= _MASKED_ALL:
            stretches.append((c.onset, c.recovery + 1))
    return split_trend(values, tuple(sorted(stretches)))[1] if len(stretches) > 1 else residual


def fit_null(values: Float64, found: Scan, design: ScanDesign, seed: int) -> NoiseFit:
    """The noise of a curve (n,) whose scan, rises kept, is `found`."""
    noise = noise_design(len(values))
    squared = block_scales(values, noise) ** 2
    scale = np.sqrt(squared @ noise.profile)
    residual = _without_rebounds(values, found, design)
    target = np.log(variances(cumulative(residual), squared, noise))
    pilot = fit_noise(np.exp(target), values, scale).sample(_PILOT, np.random.default_rng([seed, 1]))
    shown = np.log(measured(scale.astype(np.float32) * pilot, design)[1])
    corrected = 2 * target - shown.mean(axis=0)
    model = fit_noise(np.exp(corrected), values, scale)
    return NoiseFit(model, scale, _features(residual, scale, model))


def _features(residual: Array, scale: Array, model: NoiseModel) -> Array:
    """Length, tails, redness at short time scales and memory: what the correction of scores looks at."""
    tails = float(np.log((model.innovations.astype(np.float64) ** 4).mean()))
    return np.array([np.log(len(residual)), tails, short_redness(residual, scale), noise_memory(residual / scale)])


def calibrate(
    fit: NoiseFit,
    design: ScanDesign,
    allowed: tuple[NDArray[np.bool_] | None, ...],
    seed: int,
    resamples: int,
) -> NullDistribution:
    """Resample the null."""
    rng = np.random.default_rng([seed, 2])
    scale = fit.scale.astype(np.float32)
    chunks = []
    for done in range(0, resamples, _CHUNK):
        noise = fit.model.sample(min(_CHUNK, resamples - done), rng)
        chunks.append(scan(scale * noise, design, allowed).maxima)
    maxima = np.concatenate(chunks)
    usable = np.isfinite(maxima).all(axis=0)
    safe = np.where(usable, maxima, 0)
    spread = safe.std(axis=0)
    center, spread = safe.mean(axis=0), np.where(usable & (spread > 0), spread, np.inf)
    null = NullDistribution(center, spread, np.empty(0), fit.features)
    return NullDistribution(center, spread, null.score(maxima), fit.features)
