"""How much a curve rises at all: a measure that every curve has, detected episode or not.

The amplitude of a detected episode compares badly: where a method removes an episode there is none, and 0 in its place
would mix what is absent with what is below the noise. The largest rise of the smoothed curve over its running minimum
is the same quantity without a decision: continuous, 0 for a curve that never rises, and near the amplitude where an
episode is clear. Noise puts a floor under it, which methods compared on the same batches share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from landscape.episodes.curve import Array, check_steps, numbers
from landscape.episodes.repair import repair
from landscape.errors import UsageError

SMOOTHING = 0.015
"""Standard deviation of the Gaussian kernel, as a share of the points: a triangular rebound that lasts 10 % of the run
keeps three quarters of its amplitude, one of 5 % half."""


@dataclass(frozen=True)
class Rise:
    """The largest rise of a curve.

    Attributes:
        amplitude: largest smoothed loss minus the smallest before it, in the loss's unit.
        excess_area: the smoothed loss above its running minimum, summed over the steps: loss x steps.
        trough: step of that minimum.
        peak: step of the largest.
    """

    amplitude: float
    excess_area: float
    trough: float
    peak: float


def largest_rise(steps: ArrayLike, values: ArrayLike, warmup_steps: float = 0, smoothing: float = SMOOTHING) -> Rise:
    """The largest rise of a curve (n,), bad batches of one or two points taken out.

    Of a curve with NaN or infinite values the finite points count: what it climbed before it was lost.

    Args:
        warmup_steps: steps at the beginning that are left out.
        smoothing: standard deviation of the kernel as a share of the points.

    Raises:
        UsageError: lengths that differ, steps that repeat or go back, or fewer than 3 finite points after the warm-up.
    """
    at = numbers("steps", steps)
    y = numbers("values", values, len(at))
    check_steps(at)
    kept = np.isfinite(y) & (at > warmup_steps)
    if kept.sum() < 3:
        raise UsageError(f"values: {int(kept.sum())} finite points after the warm-up; at least 3 are needed.")
    at, y = at[kept], smoothed(repair(y[kept]).values, smoothing)
    low = np.minimum.accumulate(y)
    excess = y - low
    peak = int(excess.argmax())
    trough = int(y[: peak + 1].argmin())
    area = float((excess[1:] * np.diff(at)).sum())
    return Rise(float(excess[peak]), area, float(at[trough]), float(at[peak]))


def smoothed(values: Array, share: float) -> Array:
    """Gaussian kernel means, weights renormalized at the ends, (n,) → (n,)."""
    deviation = share * len(values)
    reach = int(np.ceil(3 * deviation))
    if reach < 1:
        return values
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(deviation, 1e-9)) ** 2)
    weights = np.convolve(np.ones(len(values)), kernel, mode="full")[reach:-reach]
    return np.convolve(values, kernel, mode="full")[reach:-reach] / weights
