"""What people use today, each at its documented settings and with one knob that can be tuned to a false-positive rate.

Strengths are in the unit of the method's own threshold, so that "documented settings" is a threshold on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from landscape.episodes.benchmark import Detection, Detector
from landscape.episodes.curve import Array
from landscape.episodes.repair import repair
from landscape.episodes.synthetic import SyntheticCurve

EMA = 0.1
"""Weight of the newest value in exponential smoothing: TensorBoard's slider at 0.9."""


def smoothed(values: Array) -> Array:
    """Exponential moving average that starts at the first value."""
    from scipy.signal import lfilter, lfiltic

    start = lfiltic([EMA], [1, EMA - 1], [values[0]])
    return np.asarray(lfilter([EMA], [1, EMA - 1], values, zi=start)[0])


def noise_unit(values: Array) -> float:
    """Standard deviation from the median size of first differences, as for white noise."""
    return float(np.median(np.abs(np.diff(values))) / 0.6745 / np.sqrt(2)) or 1.0


def _peaks(curve: SyntheticCurve, values: Array) -> list[Detection]:
    from scipy.signal import find_peaks, peak_widths

    values = values[curve.warmup_steps :]
    peaks, properties = find_peaks(values, prominence=0)
    prominence = properties["prominences"]
    keep = np.argsort(-prominence)[:20]
    peaks, prominence = peaks[keep], prominence[keep]
    bases = (prominence, properties["left_bases"][keep], properties["right_bases"][keep])
    _, _, left, right = peak_widths(values, peaks, rel_height=0.9, prominence_data=bases)
    unit, shift = noise_unit(curve.values), curve.steps[curve.warmup_steps]
    rows = zip(left + shift, peaks + shift, right + shift, prominence / unit, strict=True)
    return [Detection(*(float(v) for v in row)) for row in rows]


def find_peaks_raw(curve: SyntheticCurve) -> list[Detection]:
    """scipy.signal.find_peaks on the raw curve; strength: prominence in noise units; widths at 0.9."""
    return _peaks(curve, curve.values)


def find_peaks_smoothed(curve: SyntheticCurve) -> list[Detection]:
    """The same on repaired, exponentially smoothed values."""
    return _peaks(curve, smoothed(repair(curve.values).values))


def spike_score(curve: SyntheticCurve, window: int = 128) -> list[Detection]:
    """OLMo-core's stability monitor: standard deviations above the mean of the last 128 values, runs joined."""
    y = curve.values
    window = min(window, len(y) // 3)
    windows = np.lib.stride_tricks.sliding_window_view(y[:-1], window)
    z = (y[window:] - windows.mean(axis=1)) / np.maximum(windows.std(axis=1), np.finfo(float).tiny)
    result: list[Detection] = []
    high = np.flatnonzero(z > 2)
    for run in np.split(high, np.flatnonzero(np.diff(high) > 5) + 1):
        if len(run):
            top = run[z[run].argmax()]
            at = curve.steps[window + np.array([run[0], top, run[-1]])]
            result.append(Detection(*at.tolist(), strength=float(z[top])))
    return result


def smoothed_extrema(curve: SyntheticCurve) -> list[Detection]:
    """EMA + argrelextrema of order 1 % of the run; strength: height above the higher neighboring minimum."""
    from scipy.signal import argrelextrema

    y = smoothed(curve.values)
    order = max(len(y) // 100, 1)
    tops, bottoms = (argrelextrema(y, f, order=order)[0] for f in (np.greater, np.less))
    unit, result = noise_unit(curve.values), []
    for top in tops:
        left, right = bottoms[bottoms < top], bottoms[bottoms > top]
        if len(left):
            end = int(right[0]) if len(right) else len(y) - 1
            height = y[top] - max(y[left[-1]], y[end])
            at = curve.steps[[left[-1], top, end]]
            result.append(Detection(*at.tolist(), strength=float(height / unit)))
    return result


def change_points(curve: SyntheticCurve) -> list[Detection]:
    """ruptures: PELT on a piecewise constant mean (l2, BIC penalty 2σ²·log n); a segment above both neighbors.

    Needs the optional package ruptures. Strength: the segment's level above the higher of its neighbors.
    """
    import ruptures  # type: ignore[import-not-found]

    y = repair(curve.values).values
    unit = noise_unit(y)
    search = ruptures.KernelCPD(kernel="linear", min_size=3).fit(y[:, None] / unit)
    edges = np.array([0, *(search.predict(pen=2 * np.log(len(y))) or [])])
    levels = np.array([y[a:b].mean() for a, b in itertools.pairwise(edges)])
    result = []
    for k in range(1, len(levels) - 1):
        height = levels[k] - max(levels[k - 1], levels[k + 1])
        if height > 0:
            a, b = int(edges[k]), int(edges[k + 1]) - 1
            at = curve.steps[[a, a + int(y[a : b + 1].argmax()), b]]
            result.append(Detection(*at.tolist(), strength=float(height / unit)))
    return result


@dataclass(frozen=True)
class Rival:
    """A detector and the threshold that its documentation or its users name."""

    detector: Detector
    documented: float


RIVALS: dict[str, Rival] = {
    "find_peaks": Rival(find_peaks_raw, 4.0),
    "find_peaks, smoothed": Rival(find_peaks_smoothed, 4.0),
    "OLMo spike score": Rival(spike_score, 6.0),
    "EMA + argrelextrema": Rival(smoothed_extrema, 0.0),
    "ruptures": Rival(change_points, 0.0),
}


def installed() -> dict[str, Rival]:
    """The rivals that can run here."""
    from importlib.util import find_spec

    missing: Callable[[str], bool] = lambda name: name == "ruptures" and find_spec("ruptures") is None  # noqa: E731
    return {name: rival for name, rival in RIVALS.items() if not missing(name)}
