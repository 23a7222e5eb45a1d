"""Where a rebound begins and ends, to the resolution of the curve: two lines that meet, on the repaired values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.episodes.curve import Array
from landscape.episodes.trend import monotone_trend

_POINTS = 240
"""Windows longer than this are averaged to it before the fit."""
_CANDIDATES = 80
_HEIGHT = 0.8
"""The fit looks at a rise up to this share of its height: the top of a smooth rebound bends the line."""
_BACK = 0.1
"""Share of the rise below which a fall counts as complete."""


@dataclass(frozen=True, eq=False)
class Kink:
    """Where two fitted lines meet."""

    at: float
    """Index into the window."""
    level: float
    slope: float
    """Of the line after the kink, a point."""


def two_lines(y: Array) -> Kink:
    """Least-squares fit of two lines that meet, by a search over where they do.

    Args:
        y: (m,) values. The first line may fall, as a trend does; where it would rise it is flat.
    """
    factor = -(-len(y) // _POINTS)
    used = len(y) // factor * factor
    z = y[:used].reshape(-1, factor).mean(axis=1)
    m = len(z)
    t = np.arange(m, dtype=np.float64)
    kinks = np.unique(np.linspace(1, max(m - 3, 1), min(m, _CANDIDATES)))
    before = np.minimum(t - kinks[:, None], 0)
    after = np.maximum(t - kinks[:, None], 0)
    sloped = _fit(np.stack([np.ones_like(before), before, after], axis=2), z)
    flat = _fit(np.stack([np.ones_like(before), after], axis=2), z)
    wrong = sloped[0][:, 1] > 0
    error = np.where(wrong, flat[1], sloped[1])
    best = int(error.argmin())
    level, slope = (flat[0][best] if wrong[best] else sloped[0][best][[0, 2]]).tolist()
    return Kink(float(kinks[best]) * factor + (factor - 1) / 2, level, slope / factor)


def _fit(design: Array, z: Array) -> tuple[Array, Array]:
    """Coefficients (k, p) and squared errors (k,) of least squares for (k, m, p) designs."""
    moment = np.einsum("kmp,m->kp", design, z)
    gram = np.einsum("kmp,kmq->kpq", design, design)
    gram += 1e-9 * np.eye(design.shape[2]) * np.trace(gram, axis1=1, axis2=2)[:, None, None]
    coefficients = np.linalg.solve(gram, moment[..., None])[..., 0]
    return coefficients, (z**2).sum() - (coefficients * moment).sum(axis=1)


def refine_onset(y: Array, onset: int, peak: int, level: float, top: float) -> Kink:
    """The onset of a rise found roughly at `onset`; the kink's position is an index into y."""
    high = np.flatnonzero(y[onset : peak + 1] >= level + _HEIGHT * (top - level))
    end = min(max(onset + (int(high[0]) if len(high) else peak - onset) + 1, onset + 4), len(y))
    margin = max(int(0.7 * (end - onset)), round(0.015 * len(y)), 4)
    start = max(onset - margin, 0)
    kink = two_lines(y[start:end] - level)
    return Kink(start + kink.at, level + kink.level, kink.slope)


def refine_recovery(y: Array, peak: int, rough: int, level: float, top: float) -> int:
    """First point at which a non-increasing fit of what follows the peak is back.

    The fit looks past the rough recovery by as much again, so that the noise's first dip below the level, which comes
    early on a slow way down, does not end the episode.
    """
    stop = min(2 * rough - peak + max(round(0.02 * len(y)), 4), len(y))
    factor = -(-(stop - peak) // _POINTS)
    count = (stop - peak) // factor
    fitted = monotone_trend(y[peak : peak + count * factor].reshape(count, factor).mean(axis=1))
    back = np.flatnonzero(fitted <= level + _BACK * (top - level))
    at = peak + int(back[0]) * factor + (factor - 1) // 2 if len(back) else rough
    return int(np.clip(at, peak + 1, len(y) - 1))
