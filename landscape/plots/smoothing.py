"""Centered smoothing for display. Detection and every reported number use the raw values.

An exponential moving average lags: a rebound appears late and lower. A centered local-linear fit does not shift a peak
and, unlike a plain kernel mean, does not bend at the two ends of a curve.
"""

from __future__ import annotations

import numpy as np

from landscape.plots.curves import FloatArray

KERNEL_REACH = 3.0
"""Points further than this many bandwidths get weight zero."""


def default_bandwidth(steps: int) -> float:
    """1.5 % of the run in whole steps, at least 1: enough for batch noise, too little to hide a rebound."""
    return float(max(1, round(0.015 * steps)))


def local_linear(x: FloatArray, y: FloatArray, bandwidth: float) -> FloatArray:
    """The intercepts of Gaussian-weighted linear fits centered at each ``x`` (points,), sorted and finite.

    Args:
        bandwidth: standard deviation of the Gaussian kernel, in the units of ``x``; 0 returns ``y`` unchanged.

    Source: Fan and Gijbels, Local Polynomial Modelling and Its Applications (1996), section 3.1.
    """
    if bandwidth <= 0 or len(x) < 3:
        return np.array(y, dtype=float)
    sums = np.zeros((5, len(x)))  # Σw, Σwd, Σwd², Σwy, Σwdy with d the distance from the center
    reach = KERNEL_REACH * bandwidth
    sums += _moments(np.zeros(len(x)), y, bandwidth)
    for offset in range(1, len(x)):
        distance = x[offset:] - x[:-offset]
        if distance.min() > reach:
            break
        near = distance <= reach
        sums[:, :-offset] += _moments(distance, y[offset:], bandwidth) * near
        sums[:, offset:] += _moments(-distance, y[:-offset], bandwidth) * near
    weight, first, second, value, slope = sums
    determinant = weight * second - first**2
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = (second * value - first * slope) / determinant
    # A point without neighbors inside the kernel has no slope: it stays as it is.
    return np.where(determinant > 1e-12 * weight**2 * bandwidth**2, fit, value / weight)


def _moments(distance: FloatArray, y: FloatArray, bandwidth: float) -> FloatArray:
    weight = np.exp(-0.5 * (distance / bandwidth) ** 2)
    return np.stack([weight, weight * distance, weight * distance**2, weight * y, weight * distance * y])
