"""From standardized scores to p-values: a null distribution computed once, for what resampling leaves out.

Resamples take the curve's estimated noise for the truth. How far scores of curves without an episode scatter beyond
that, and where their center lies, depends on the curve's length, tails, redness and memory. Both were regressed on
these over thousands of simulated curves of known noise (white, autoregressive, heavy-tailed, periodic, long memory),
all at flat trends: prepivoting (Beran 1988) with a regression. `experiments/benchmarks/episodes_correction.py` writes
the coefficients.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from landscape.episodes.noise import Array

FILE = Path(__file__).with_name("correction.json")
SMALLEST = 1e-4
"""Least p-value; those below one in the number of simulated curves continue the exponential tail."""
MARGIN = 2.4
"""Added to the center for a unit of memory: the regression alone leaves 0.1 of curves of memory 0.35 at p ≤ 0.05."""
TAILS = np.concatenate([np.arange(0.995, 0.1, -0.005), np.geomspace(0.1, 0.002, 40)])
"""Tail probabilities of the table."""


@dataclass(frozen=True, eq=False)
class Correction:
    """The distribution of scores of curves without an episode."""

    location: tuple[float, ...]
    """Coefficients of the center in `terms`."""
    log_scale: tuple[float, ...]
    """Coefficients of the logarithm of the scatter."""
    quantiles: tuple[float, ...]
    """Of the score minus its center over its scatter, at `TAILS`."""
    decay: float
    """Of the tail beyond the last quantile: p falls as exp(-excess/decay)."""
    about: dict[str, Any]
    """How it was computed."""

    def p_value(self, score: float, features: Array) -> float:
        """Share of curves without an episode, and with such features, that reach a standardized score."""
        return self.tail(score, terms(features[None])[0])

    def tail(self, score: float, x: Array) -> float:
        """The same for a curve whose regressors are x (k,)."""
        at = (score - float(x @ self.location)) / float(np.exp(x @ self.log_scale))
        last = self.quantiles[-1]
        if at > last:
            return max(float(TAILS[-1] * np.exp((last - at) / self.decay)), SMALLEST)
        return float(np.exp(np.interp(at, self.quantiles, np.log(TAILS), left=0.0)))

    def exceeded(self, share: float, x: Array) -> float:
        """The score that this share of such curves, 0.995 to 0.002, reaches."""
        at = float(np.interp(-np.log(share), -np.log(TAILS), self.quantiles))
        return float(x @ self.location) + at * float(np.exp(x @ self.log_scale))


_MEMORY = 9
"""Column of the memory in `terms`."""


def terms(features: Array) -> Array:
    """Regressors (m, k) of features (m, 4): log points, log fourth moment, short redness, memory."""
    length = (features[:, 0] - 5.8) / 0.6
    tails = np.minimum(features[:, 1], 3.0) - 1.1
    red, memory = features[:, 2], features[:, 3]
    columns = (
        np.ones(len(features)), length, length**2, tails, tails**2, red, red**2, red * length,
        red**2 * length, memory, memory**2, memory * length,
    )  # fmt: skip
    return np.stack(columns, axis=1)


def fit_correction(scores: Array, features: Array, weights: Array, about: dict[str, Any]) -> Correction:
    """`regressed` on `terms`, with the margin for long memory."""
    found = regressed(scores, terms(features), weights, about)
    return _shifted(found, MARGIN)


def regressed(scores: Array, x: Array, weights: Array, about: dict[str, Any]) -> Correction:
    """Weighted regression of scores (m,), and of the logarithm of their scatter, on x (m, k); table of what remains."""
    root = np.sqrt(weights)
    scatter = np.ones(len(scores))
    log_scale = np.zeros(x.shape[1])
    location = log_scale
    for _ in range(4):
        row = root / scatter
        location = np.linalg.lstsq(x * row[:, None], scores * row, rcond=None)[0]
        size = np.log(np.abs(scores - x @ location) + 0.1)
        log_scale = np.linalg.lstsq(x * root[:, None], size * root, rcond=None)[0]
        scatter = np.exp(x @ log_scale)
    rest = (scores - x @ location) / scatter
    order = np.argsort(rest)
    above = 1 - (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    quantiles = np.interp(-TAILS, -above, rest[order])
    high = rest > quantiles[int((TAILS > 0.02).sum())]
    beyond = rest[high] - rest[high].min()
    decay = float((weights[high] * beyond).sum() / weights[high].sum())
    a, b, c = (tuple(np.round(v, 5).tolist()) for v in (location, log_scale, quantiles))
    return Correction(a, b, c, round(decay, 5), about)


def without_margin(correction: Correction) -> Correction:
    """What the regression alone says."""
    return _shifted(correction, -MARGIN)


def _shifted(correction: Correction, margin: float) -> Correction:
    location = list(correction.location)
    location[_MEMORY] = round(location[_MEMORY] + margin, 5)
    return replace(correction, location=tuple(location))


@lru_cache(maxsize=2)
def shipped(path: Path = FILE) -> Correction:
    """The one that comes with the package, or another that `write` wrote."""
    known = json.loads(path.read_text(encoding="utf-8"))
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    return Correction(**known)


def write(correction: Correction, path: Path = FILE) -> None:
    """Write the coefficients."""
    path.write_text(json.dumps(asdict(correction), indent=1) + "\n", encoding="utf-8")
