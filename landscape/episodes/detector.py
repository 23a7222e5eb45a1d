"""Rebounds of a loss curve with a p-value: `detect_episodes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.episodes.boundaries import refine_onset, refine_recovery
from landscape.episodes.calibration import NoiseFit, NullDistribution, calibrate, fit_null, without_stretches
from landscape.episodes.candidates import Candidate, find_candidates, moving_mean
from landscape.episodes.control import Control, adjust
from landscape.episodes.curve import Array, Bins, Curve, binned, dithered, prepare, quantum
from landscape.episodes.flags import shape_flags
from landscape.episodes.marks import Marks, allowed_positions, find_marks, without_epoch_jumps
from landscape.episodes.repair import Repaired, repair
from landscape.episodes.results import Episode, Kind
from landscape.episodes.scan import ScanDesign, scan, scan_design
from landscape.episodes.trend import without_drops
from landscape.errors import UsageError

VERSION = 2
"""Raised when the same curve gets another verdict: results that were kept are then tested again."""

RESAMPLES = 99
"""Of the null, unless told otherwise."""
_LIMIT = 8
"""Candidates reported at most, beside those that a mark explains and single bad batches."""
_RECOVERED, _LOST = 0.8, 0.2
"""Shares of the rise that must be lost again for an episode and for a partial one."""
_DESCENT = 1.0
"""Noise units that the curve must have come down before a rebound; less is `rebound_only`."""
_LONG = 8
"""Points a bin above which a point's noise is read from within the bins."""
_PASSES = 4
"""Times that the rest of a curve is tested, at most."""
_HOPELESS = 0.5
"""p-value, by the pass before, above which the rest is not tested again."""
_MARGIN = 0.1
"""Share of an episode's length that is set aside with it on either side."""
_SPIKE = 6.0
"""Noise units above which a repaired outlier is listed as a bad batch."""


@dataclass(frozen=True, eq=False)
class _Subject:
    """One curve under test, at full resolution and binned."""

    curve: Curve
    values: Array
    """Repaired, jumps at epochs' ends taken out."""
    bins: Bins
    marks: Marks
    name: str

    @property
    def centers(self) -> Array:
        return (self.bins.edges[1:] + self.bins.edges[:-1] - 1) / 2

    def unit(self, fit: NoiseFit) -> Array:
        """(points,) standard deviation of one point's noise: of its bin's mean, and of points within bins."""
        variance = fit.deviation**2
        if self.bins.size > _LONG:
            # Steps between the means of many points are mostly trend where it is steep; points within a bin are not.
            variance = self.bins.within + np.minimum(variance, self.bins.within)
        elif self.bins.size > 1:
            variance = variance + self.bins.within
        return np.sqrt(np.interp(np.arange(len(self.values)), self.centers, variance))


def detect_episodes(
    steps: ArrayLike,
    values: ArrayLike,
    warmup_steps: float = 0,
    alpha: float = 0.05,
    seed: int = 0,
    learning_rate: ArrayLike | None = None,
    epoch_steps: Sequence[float] = (),
    resume_steps: Sequence[float] = (),
    standard_errors: ArrayLike | None = None,
    control: Control | ArrayLike | None = None,
    resamples: int = RESAMPLES,
) -> list[Episode]:
    """Every candidate rebound of a loss curve, most significant first; those with p_value <= alpha count.

    The null hypothesis is a trend that never rises, except where a mark explains it, plus noise with the curve's own
    autocorrelation, level dependence and tails. The p-values allow for having searched all positions and time scales.

    Args:
        steps: (n,) strictly increasing.
        values: (n,) losses; NaN and infinite values are divergences, p-value 0.
        warmup_steps: Steps at the beginning in which a rise does not count.
        alpha: Level of the test: which candidates a caller should count, and after which the rest is tested again.
        seed: Of the resampling.
        learning_rate: (n,) or None; a rise with the learning rate does not count, a recovery with its fall is flagged.
        epoch_steps: Steps at which an epoch begins.
        resume_steps: Steps at which training was resumed.
        standard_errors: (n,) of the values, such as an evaluation's; the noise is never taken for less.
        control: A curve of the same batches' difficulty (see `landscape.episodes.control`).
        resamples: Of the null. They give the scores' center and scatter; p-values down to 0.0001 need no more of them.

    Raises:
        UsageError: bad input, named (see `landscape.episodes.curve.prepare`).
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha: {alpha!r} must lie between 0 and 1.")
    if resamples < 19:
        raise UsageError(f"resamples: {resamples!r} must be 19 or more.")
    if not np.isfinite(warmup_steps) or warmup_steps < 0:
        raise UsageError(f"warmup_steps: {warmup_steps!r} must be 0 or more.")
    curve = prepare(steps, values, learning_rate, standard_errors)
    found = _non_finite(curve)
    if np.ptp(curve.values) <= 0:
        return found
    marks = find_marks(curve, warmup_steps, tuple(epoch_steps), tuple(resume_steps))
    adjusted, name = adjust(curve, control)
    # A power of two, so that no digit changes: squares of very large or small losses would leave the range of floats.
    unit = 2.0 ** np.clip(np.round(np.log2(np.ptp(adjusted))), -1000, 1000)
    errors = None if curve.errors is None else curve.errors / unit
    level = quantum(adjusted / unit)
    repaired = repair(dithered(adjusted / unit, level, seed), level)
    tested = _tested(replace(curve, errors=errors), repaired, marks, name, seed, resamples, alpha)
    found += [one.times(float(unit)) for one in tested]
    return sorted(found, key=lambda e: (e.p_value, -e.amplitude_noise))


@dataclass(frozen=True, eq=False)
class _Pass:
    """One test of what no earlier pass has found."""

    fit: NoiseFit
    null: NullDistribution
    episodes: list[Episode]


def _tested(
    curve: Curve, repaired: Repaired, marks: Marks, name: str, seed: int, resamples: int, alpha: float
) -> list[Episode]:
    """Candidates with their p-values, and what marks and bad batches explain."""
    flat = without_epoch_jumps(repaired.values, marks.epochs) if len(marks.epochs) else repaired.values
    subject = _Subject(curve, flat, binned(flat), marks, name)
    if np.ptp(flat) <= 0:
        return _bad_batches(subject, repaired, np.zeros_like(flat))
    first, tested = _passes(subject, seed, resamples, alpha)
    explained = _bad_batches(subject, repaired, subject.unit(first.fit))
    if marks.zones or flat is not repaired.values:
        explained += _explained(subject, repaired, first.fit, first.null, tested)
    return tested + explained


def _passes(subject: _Subject, seed: int, resamples: int, alpha: float) -> tuple[_Pass, list[Episode]]:
    """Test, set aside what counts, test the rest, and so on: rebounds hide one another in the noise's estimate.

    Step-down: a pass is made only if the one before found something, and no p-value is below that of a pass before, so
    that the chance of any episode too many stays alpha. From the second pass on p-values are doubled: boundaries that
    missed a little of an episode must not make another.
    """
    # float32 would lose a small rebound on a large offset; the resamples have none.
    values = subject.bins.values - subject.bins.values.mean()
    test = first = _pass(subject, values, (), seed, resamples)
    counted: list[Episode] = []
    for k in range(_PASSES):
        gate, times = max((e.p_value for e in counted), default=0.0), min(k + 1, 2)
        fresh = [replace(e, p_value=min(max(times * e.p_value, gate), 1.0)) for e in test.episodes]
        fresh = _distinct(fresh, counted)
        counted += [e for e in fresh if e.p_value <= alpha]
        rest = [e for e in fresh if e.p_value > alpha]
        if len(rest) == len(fresh):
            return first, counted + rest
        taken = _taken(subject, counted)
        filled = without_stretches(values, taken)
        allowed = _allowed(subject, scan_design(len(values)), taken)
        again = scan(filled, scan_design(len(values)), allowed, calm=without_drops(filled))
        if test.null.p_value(float(test.null.score(again.maxima))) > _HOPELESS:
            return first, counted + rest
        test = _pass(subject, filled, taken, seed, resamples)
    return first, counted


def _taken(subject: _Subject, episodes: list[Episode]) -> tuple[tuple[int, int], ...]:
    """Bins of episodes, with a margin on either side."""
    steps, edges, bins = subject.curve.steps, subject.bins.edges, len(subject.bins.values)
    result = []
    for e in episodes:
        at = np.searchsorted(edges, np.searchsorted(steps, [e.onset, e.recovery]), side="right") - 1
        margin = int(_MARGIN * (at[1] - at[0])) + max(bins // 100, 2)
        result.append((max(int(at[0]) - margin, 0), min(int(at[1]) + margin + 1, bins)))
    return tuple(sorted(result))


def _allowed(
    subject: _Subject, design: ScanDesign, taken: tuple[tuple[int, int], ...]
) -> tuple[NDArray[np.bool_] | None, ...]:
    """Window pairs clear of every zone and of what is set aside."""
    edges = subject.bins.edges
    zones = tuple(("taken", int(edges[a]), int(edges[b])) for a, b in taken)
    marks = replace(subject.marks, zones=subject.marks.zones + zones)
    return allowed_positions(marks, subject.bins, design)


def _pass(subject: _Subject, values: Array, taken: tuple[tuple[int, int], ...], seed: int, resamples: int) -> _Pass:
    """Test centered bins (n,) outside the stretches that are taken."""
    design = scan_design(len(values))
    allowed = _allowed(subject, design, taken)
    calm = without_drops(values)
    whole = scan(values, design, (None,) * len(design.contrasts), True, calm)
    fit = fit_null(values, whole, design, seed)
    certain = _certainty(subject.curve, subject.bins, fit)
    seen = scan(values, design, allowed, True, calm).times(certain)
    null = calibrate(fit, design, allowed, seed, resamples)
    found = find_candidates(values, seen, design, null.center, null.spread, _LIMIT, null.quantile(0.3))
    return _Pass(fit, null, [_episode(subject, c, fit, null.p_value(c.score)) for c in found])


def _distinct(episodes: list[Episode], others: list[Episode]) -> list[Episode]:
    """Without those that, at full resolution, overlap another or a more significant one by half of the shorter."""
    result: list[Episode] = []
    for one in episodes:
        overlaps = (
            min(one.recovery, e.recovery) - max(one.onset, e.onset) > 0.5 * min(one.duration, e.duration)
            for e in [*others, *result]
        )
        if not any(overlaps):
            result.append(one)
    return result


def _certainty(curve: Curve, bins: Bins, fit: NoiseFit) -> float:
    """What rises are multiplied by where the values' own standard errors exceed the noise that the curve shows."""
    if curve.errors is None:
        return 1.0
    known = np.sqrt(np.add.reduceat(curve.errors**2, bins.edges[:-1])) / np.diff(bins.edges)
    return float(min(1.0, np.sqrt((fit.deviation**2).mean() / max((known**2).mean(), np.finfo(float).tiny))))


def _explained(
    subject: _Subject, repaired: Repaired, fit: NoiseFit, null: NullDistribution, tested: list[Episode]
) -> list[Episode]:
    """Rises that would have been significant but for a mark; p-value 1."""
    raw = _with_values(subject, repaired.values)
    values = raw.bins.values - raw.bins.values.mean()
    design = scan_design(len(values))
    found = scan(values, design, (None,) * len(design.contrasts), keep=True)
    lowest = null.quantile(0.95)
    result = []
    for c in find_candidates(values, found, design, null.center, null.spread, _LIMIT, lowest):
        one = _episode(raw, c, fit, 1.0)
        if not any(one.onset <= e.peak and e.onset <= one.peak and e.p_value < 1 for e in tested) and one.flags:
            result.append(one)
    return _distinct(result, [])


def _with_values(subject: _Subject, values: Array) -> _Subject:
    """The same subject with other values."""
    return replace(subject, values=values, bins=binned(values))


def _bad_batches(subject: _Subject, repaired: Repaired, unit: Array) -> list[Episode]:
    """Repaired outliers far above the noise, one entry each; the largest of many."""
    deviation = unit[repaired.outliers]
    high = np.flatnonzero(repaired.excess > _SPIKE * deviation)
    steps, result = subject.curve.steps, []
    for j in sorted(high[np.argsort(-repaired.excess[high])][:_LIMIT]):
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
                tested_curve=subject.name,
                resolution=float(after - before) / 2,
            )
        )
    return result


def _non_finite(curve: Curve) -> list[Episode]:
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


def _episode(subject: _Subject, found: Candidate, fit: NoiseFit, p_value: float) -> Episode:
    """Boundaries at full resolution, sizes, kind and flags of one candidate."""
    y, edges, n = subject.values, subject.bins.edges, len(subject.values)
    offset = float(subject.bins.values.mean())
    onset_at, peak_at, recovery_at = (int(edges[b]) for b in (found.onset, found.peak, found.recovery))
    recovery_at = n - 1 if found.recovery == len(edges) - 2 else recovery_at
    start = refine_onset(y, onset_at, peak_at, found.level + offset, found.top + offset)
    smooth = moving_mean(y, max(int(found.width * subject.bins.size / 3), 1))
    onset = int(np.clip(round(start.at), 0, n - 3))
    late = max(peak_at, onset + 1)
    reach = int(found.width * subject.bins.size / 2) + 1
    low, high = max(late - reach, onset + 1), min(late + reach, n)
    peak = low + int(smooth[low:high].argmax()) if high > low else late
    level, top = start.level, float(smooth[peak])
    if top <= level:
        level, top = found.level + offset, found.top + offset
    height = max(top - level, 1e-12 * (1 + abs(top)))
    rest = smooth[peak:]
    lost = float((top - rest.min()) / height)
    recovery = n - 1
    if lost >= _LOST:
        floor = max(level, float(rest.min()))
        back = np.flatnonzero(rest <= floor + 0.15 * (top - floor))
        recovery = refine_recovery(y, peak, peak + int(back[0]), floor, top)
    unit = float(subject.unit(fit)[onset])
    descent = float(smooth[: max(round(0.01 * n), 3)].mean()) - level if onset > 0 else 0.0
    kind = _kind(lost, descent, unit)
    steps = subject.curve.steps
    widths = np.diff(steps[onset : recovery + 1])
    excess = np.maximum(y[onset:recovery] - level, 0)
    return Episode(
        kind=kind,
        onset=float(steps[onset]),
        peak=float(steps[peak]),
        recovery=float(steps[recovery]),
        amplitude=height,
        amplitude_noise=height / max(unit, np.finfo(float).tiny),
        amplitude_relative=height / descent if descent > 0 else float("nan"),
        duration=float(steps[recovery] - steps[onset]),
        excess_area=float((excess * widths).sum()),
        second_descent_gain=level - float(rest.min()),
        p_value=p_value,
        flags=shape_flags(subject.curve, subject.marks, subject.bins, (onset, peak, recovery), lost >= _RECOVERED),
        tested_curve=subject.name,
        resolution=float((steps[-1] - steps[0]) / (n - 1)) * max(1.0, (recovery - onset) / 240),
    )


def _kind(lost: float, descent: float, unit: float) -> Kind:
    if lost < _LOST:
        return "divergence"
    if descent < _DESCENT * unit:
        return "rebound_only"
    return "episode" if lost >= _RECOVERED else "partial"
