"""Flags of one rebound: what else could explain it, or limits what can be said of it."""

from __future__ import annotations

import numpy as np

from landscape.episodes.candidates import moving_mean
from landscape.episodes.curve import Array, Bins, Curve
from landscape.episodes.marks import Marks

_FEW_POINTS, _FEW_INSIDE = 100, 5
_RATE_FELL = 0.5


def shape_flags(curve: Curve, marks: Marks, bins: Bins, at: tuple[int, int, int], recovered: bool) -> tuple[str, ...]:
    """Flags of the rebound with onset, peak and recovery at the given points."""
    onset, peak, recovery = at
    names = set(marks.flags(onset, peak))
    if len(curve.values) < _FEW_POINTS or recovery - onset < _FEW_INSIDE:
        names.add("resolution")
    rate = curve.learning_rate
    if rate is not None and rate[peak] > 0 and rate[recovery] < (1 - _RATE_FELL) * rate[peak]:
        names.add("schedule_confounded")
    if not recovered:
        names.add("right_censored")
    inside = np.searchsorted(bins.edges, [onset, recovery], side="right") - 1
    if _repeats(bins.values, int(inside[0]), int(inside[1])):
        names.add("periodic")
    return tuple(sorted(names))


def _repeats(values: Array, onset: int, recovery: int) -> bool:
    """Whether the curve looks alike one and two rebounds' lengths away: autocorrelation above 0.3 at both lags."""
    n, length = len(values), recovery - onset
    if length < 3 or 6 * length > n:
        return False
    residual = values - moving_mean(values, 2 * length)
    residual = np.clip(residual, *np.quantile(residual, [0.02, 0.98]))
    spectrum = np.abs(np.fft.rfft(residual - residual.mean(), 2 * n)) ** 2
    correlation = np.fft.irfft(spectrum)[:n]
    correlation /= max(float(correlation[0]), np.finfo(float).tiny)
    low, high = int(0.6 * length), int(np.ceil(1.6 * length))
    lag = low + int(correlation[low : high + 1].argmax())
    return bool(correlation[lag] > 0.3 and correlation[min(2 * lag, n - 1)] > 0.3)
