"""What is listed beside the tested candidates: bad batches, and stretches that are not finite."""

from __future__ import annotations

import numpy as np

from landscape.episodes.curve import Array, Curve
from landscape.episodes.repair import Repaired
from landscape.episodes.results import Episode, Kind

LIMIT = 8
"""Bad batches listed at most."""
_SPIKE = 6.0
"""Noise units above which a repaired outlier is listed as a bad batch."""


def bad_batches(steps: Array, repaired: Repaired, unit: Array, name: str) -> list[Episode]:
    """Repaired outliers far above the noise's `unit` (n,), one entry each; the largest of many."""
    deviation = unit[repaired.outliers]
    high = np.flatnonzero(repaired.excess > _SPIKE * deviation)
    result = []
    for j in sorted(high[np.argsort(-repaired.excess[high])][:LIMIT]):
        i = int(repaired.outliers[j])
        before, after = steps[max(i - 1, 0)], steps[min(i + 1, len(steps) - 1)]
        height = float(repaired.excess[j])
        units = height / float(deviation[j]) if deviation[j] > 0 else float("inf")
        result.append(
            Episode(
                kind="spike",
                onset=float(before),
                peak=float(steps[i]),
                recovery=float(after),
                amplitude=height,
                amplitude_noise=units,
                amplitude_relative=float("nan"),
                duration=float(after - before),
                excess_area=height * float(after - before) / 2,
                second_descent_gain=float("nan"),
                p_value=1.0,
                flags=("bad_batch",),
                tested_curve=name,
                resolution=float(after - before) / 2,
            )
        )
    return result


def non_finite(curve: Curve) -> list[Episode]:
    """A stretch of NaN or infinite values is a divergence; one or two of them that pass are a spike, not tested."""
    result, steps = [], curve.all_steps
    for gap in curve.gaps:
        last = gap.last == len(steps) - 1
        short = gap.last - gap.first < 2 and not last
        kind: Kind = "spike" if short else "divergence"
        onset, end = float(steps[gap.first]), float(steps[gap.last if last else gap.last + 1])
        infinite, unknown = float("inf"), float("nan")
        result.append(
            Episode(
                kind=kind,
                onset=onset,
                peak=onset,
                recovery=end,
                amplitude=infinite,
                amplitude_noise=infinite,
                amplitude_relative=infinite,
                duration=end - onset,
                excess_area=infinite,
                second_descent_gain=unknown,
                p_value=1.0 if short else 0.0,
                flags=("non_finite", "right_censored") if last else ("non_finite",),
                resolution=float(np.diff(steps).min()),
            )
        )
    return result
