"""Does a curve's noise forget, or has it long memory? Decided by likelihood, because windows show too little of it.

Long memory makes noise wander as rebounds do, and the few longest windows of a curve hardly show it. Its whole spectrum
does: Whittle's likelihood (1953) of fractional noise |2 sin(ω/2)|^-2d against that of AR(1) noise, each at its best.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from landscape.episodes.noise import Array, quantile_scale

_DECAYS = np.arange(0, 0.97, 0.02)
_MEMORIES = np.arange(0.05, 0.5, 0.05)
_OUTLIER, _FAR = 4.0, 3.0
"""Robust standard deviations at which points, and differences, are cut."""


@lru_cache(maxsize=32)
def _spectra(points: int) -> tuple[Array, Array]:
    """AR(1) and fractional spectra at the Fourier frequencies of n points, (models, frequencies)."""
    omega = 2 * np.pi * np.arange(1, (points - 1) // 2 + 1) / points
    short = 1 / (1 - 2 * _DECAYS[:, None] * np.cos(omega) + _DECAYS[:, None] ** 2)
    return short, (2 * np.sin(omega / 2)) ** (-2 * _MEMORIES[:, None])


def _log_likelihoods(periodogram: Array, spectra: Array) -> Array:
    """Whittle's, at the best scale of each spectrum."""
    scale = (periodogram / spectra).mean(axis=1)
    return -(np.log(scale) * spectra.shape[1] + np.log(spectra).sum(axis=1))


def noise_memory(residual: Array) -> float:
    """Memory d of a residual (n,) of even scale, times the probability that it is not AR(1) instead; 0 to 0.45."""
    n = len(residual)
    centered = residual - residual.mean()
    most = _OUTLIER * float(quantile_scale(centered))
    periodogram = np.abs(np.fft.rfft(np.clip(centered, -most, most)))[1 : (n - 1) // 2 + 1] ** 2
    if not periodogram.any():
        return 0.0
    short, long = (_log_likelihoods(periodogram, spectra) for spectra in _spectra(n))
    odds = float(np.clip(long.max() - short.max(), -30, 30))
    return float(_MEMORIES[int(long.argmax())] / (1 + np.exp(-odds)))


def short_redness(residual: Array, scale: Array) -> float:
    """Log variance of means of two points times two over that of points, by second differences: 0 for white noise."""
    result = []
    for h in (1, 2):
        sums = np.concatenate([[0.0], np.cumsum(residual)])
        c = [sums[k * h : len(sums) - (3 - k) * h] for k in range(4)]
        difference = (1.5 * (c[2] - c[1]) - 0.5 * (c[3] - c[0])) / h
        difference = difference / scale[(3 * h) // 2 :][: len(difference)]
        most = _FAR * float(quantile_scale(difference))
        result.append(h * float(np.minimum(difference**2, most**2).mean()))
    return float(np.log(result[1] / result[0])) if min(result) > 0 else 0.0
