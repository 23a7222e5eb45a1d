"""Rebounds of a loss curve with a p-value: `detect_episodes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from landscape.episodes.boundaries import refine_onset, refine_recovery
from landscape.episodes.calibration import NoiseFit, NullDistribution, calibrate, fit_null, without_stretches
from landscape.episodes.candidates import Candidate, find_candidates, moving_mean
from landscape.episodes.control import Control, adjust
from landscape.episodes.curve import Array, Bins, Curve, binned, dithered, in_logarithms, prepare, quantum
from landscape.episodes.evaluations import (
    LONGEST,
    Allowed,
    EvaluationNull,
    evaluation_design,
    examined,
    relative_scale,
    tempered,
)
from landscape.episodes.flags import shape_flags
from landscape.episodes.marks import Marks, allowed_positions, find_marks, without_epoch_jumps
from landscape.episodes.noise import Array as Floats
from landscape.episodes.repair import Repaired, repair
from landscape.episodes.results import Episode, Kind
from landscape.episodes.scan import Scan, ScanDesign, scan, scan_design
from landscape.episodes.trend import without_drops
from landscape.episodes.untested import bad_batches, non_finite
from landscape.errors import UsageError, unknown

VERSION = 3
"""Raised when the same curve gets another verdict: results that were kept are then tested again."""

CurveKind = Literal["steps", "evaluation"]
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
_AFTER = 0.2
"""Share of a rise out of the warm-up that must lie after it, for the rise to be tested."""
_EXPLAINING = frozenset({"warmup", "resume", "schedule_confounded", "epoch_edge"})
"""Flags of a mark that can explain a rise."""
_MARGIN = 0.1
"""Share of an episode's length that is set aside with it on either side."""


@dataclass(frozen=True, eq=False)
class _Subject:
    """One curve under test, at full resolution and binned."""

    curve: Curve
    values: Array
    """Repaired, jumps at epochs' ends taken out."""
    bins: Bins
    marks: Marks
    name: str
    scale: Array | None = None
    """(points,) relative noise of evaluations; None: tested as steps."""

    @property
    def design(self) -> ScanDesign:
        points = len(self.bins.values)
        return scan_design(points) if self.scale is None else evaluation_design(points)

    @property
    def centers(self) -> Array:
        return (self.bins.edges[1:] + self.bins.edges[:-1] - 1) / 2

    def unit(self, deviation: Floats) -> Array:
        """(points,) standard deviation of one point's noise, from that of the bins' means and of points within bins."""
        variance = deviation**2
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
    kind: CurveKind = "steps",
    logarithm: bool = False,
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
        epoch_steps: Steps at which an epoch begins; of no account to evaluations.
        resume_steps: Steps at which training was resumed.
        standard_errors: (n,) of the values. Of steps the noise is never taken for less; of evaluations they say how
            the noise's scale differs from one to the next.
        control: A curve of the same batches' difficulty (see `landscape.episodes.control`).
        resamples: Of the null. They give the scores' center and scatter; p-values down to 0.0001 need no more of them.
        kind: "evaluation" for few points far apart, whose noise is nearly white (`landscape.episodes.evaluations`);
            more than 300 of them show their own noise and are tested as steps.
        logarithm: Test the values' logarithms, which gradient norms want; amplitudes are log ratios then.

    Raises:
        UsageError: bad input, named (see `landscape.episodes.curve.prepare`); a control of a logarithm.
    """
    if kind not in get_args(CurveKind):
        raise unknown("kind", kind, get_args(CurveKind))
    if not 0 < alpha < 1:
        raise UsageError(f"alpha: {alpha!r} must lie between 0 and 1.")
    if resamples < 19:
        raise UsageError(f"resamples: {resamples!r} must be 19 or more.")
    if not np.isfinite(warmup_steps) or warmup_steps < 0:
        raise UsageError(f"warmup_steps: {warmup_steps!r} must be 0 or more.")
    if logarithm and control is not None:
        raise UsageError("control: difficulty adds to a loss, and so to no logarithm; give one or the other.")
    curve = prepare(steps, values, learning_rate, standard_errors)
    curve = in_logarithms(curve) if logarithm else curve
    found = non_finite(curve)
    if np.ptp(curve.values) <= 0:
        return found
    marks = find_marks(curve, warmup_steps, tuple(epoch_steps), tuple(resume_steps))
    adjusted, name = adjust(curve, control)
    name = "logarithm" if logarithm else name
    # A power of two, so that no digit changes: squares of very large or small losses would leave the range of floats.
    unit = 2.0 ** np.clip(np.round(np.log2(np.ptp(adjusted))), -1000, 1000)
    errors = None if curve.errors is None else curve.errors / unit
    level = quantum(adjusted / unit)
    scaled, scale = dithered(adjusted / unit, level, seed), None
    if kind == "evaluation" and len(scaled) <= LONGEST:
        # The same examples in every epoch: what rises at an epoch's end has risen.
        marks, scale = replace(marks, epochs=marks.epochs[:0]), relative_scale(errors, len(scaled))
    repaired = repair(scaled, level) if scale is None else tempered(scaled, scale, level)
    flat = without_epoch_jumps(repaired.values, marks.epochs) if len(marks.epochs) else repaired.values
    subject = _Subject(replace(curve, errors=errors), flat, binned(flat), marks, name, scale)
    found += [one.times(float(unit)) for one in _tested(subject, repaired, seed, resamples, alpha)]
    return sorted(found, key=lambda e: (e.p_value, -e.amplitude_noise))


@dataclass(frozen=True, eq=False)
class _Pass:
    """One test of what no earlier pass has found."""

    deviation: Floats
    """(bins,) of a bin's noise."""
    null: NullDistribution | EvaluationNull
    episodes: list[Episode]


def _tested(subject: _Subject, repaired: Repaired, seed: int, resamples: int, alpha: float) -> list[Episode]:
    """Candidates with their p-values, and what marks and bad batches explain."""
    steps, flat = subject.curve.steps, subject.values
    if np.ptp(flat) <= 0:
        return bad_batches(steps, repaired, np.zeros_like(flat), subject.name)
    first, found = _passes(subject, seed, resamples, alpha)
    explained = bad_batches(steps, repaired, subject.unit(first.deviation), subject.name)
    found += _out_of_warmup(subject, [e for e in found if e.p_value <= alpha], seed, resamples)
    if subject.marks.zones or flat is not repaired.values:
        explained += _explained(subject, repaired, first, found)
    return found + explained


def _passes(subject: _Subject, seed: int, resamples: int, alpha: float) -> tuple[_Pass, list[Episode]]:
    """Test, set aside what counts, test the rest, and so on: rebounds hide one another in the noise's estimate.

    Step-down: a pass is made only if the one before found something, and no p-value is below that of a pass before, so
    that the chance of any episode too many stays alpha. From the second pass on p-values are doubled: boundaries that
    missed a little of an episode must not make another.
    """
    # float32 would lose a small rebound on a large offset; the resamples have none.
    values = subject.bins.values - subject.bins.values.mean()
    test = first = _pass(subject, values, _allowed(subject, ()), seed, resamples)
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
        allowed = _allowed(subject, taken)
        again = _scan(subject, filled, allowed, without_drops(filled))
        if test.null.p_value(float(test.null.score(again.maxima))) > _HOPELESS:
            return first, counted + rest
        test = _pass(subject, filled, allowed, seed, resamples)
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


def _allowed(subject: _Subject, taken: tuple[tuple[int, int], ...]) -> Allowed:
    """Window pairs clear of every zone and of what is set aside."""
    edges = subject.bins.edges
    zones = tuple(("taken", int(edges[a]), int(edges[b])) for a, b in taken)
    marks = replace(subject.marks, zones=subject.marks.zones + zones)
    return allowed_positions(marks, subject.bins, subject.design)


def _scan(subject: _Subject, values: Array, allowed: Allowed | None, calm: Floats) -> Scan:
    """Standardized rises of the bins where pairs are allowed (None: everywhere); `calm` as for `scan`."""
    if subject.scale is not None:
        return examined(values, subject.scale, allowed).seen
    return scan(values, subject.design, allowed or (None,) * len(subject.design.contrasts), True, calm)


def _pass(subject: _Subject, values: Array, allowed: Allowed, seed: int, resamples: int) -> _Pass:
    """Test centered bins (n,) where window pairs are allowed."""
    design = subject.design
    if subject.scale is not None:
        test = examined(values, subject.scale, allowed)
        deviation, null, seen = test.deviation, test.null, test.seen
    else:
        calm = without_drops(values)
        fit = fit_null(values, _scan(subject, values, None, calm), design, seed)
        certain = _certainty(subject.curve, subject.bins, fit)
        seen = _scan(subject, values, allowed, calm).times(certain)
        deviation, null = fit.deviation, calibrate(fit, design, allowed, seed, resamples)
    found = find_candidates(values, seen, design, null.center, null.spread, _LIMIT, null.quantile(0.3))
    return _Pass(deviation, null, [_episode(subject, c, deviation, null.p_value(c.score)) for c in found])


def _out_of_warmup(subject: _Subject, counted: list[Episode], seed: int, resamples: int) -> list[Episode]:
    """Rises that begin in the warm-up and go on after it, flagged: a second test, so that p-values are doubled.

    Its window pairs compare what follows the warm-up with what lies in it. A rise that is over when the warm-up is
    does not count, however significant.
    """
    stop = max((end for name, _, end in subject.marks.zones if name == "warmup"), default=0)
    at, values, y = int(np.searchsorted(subject.bins.edges, stop)), subject.bins.values, subject.values
    if not 0 < at < len(values) - 3:
        return []
    marks = replace(subject.marks, zones=tuple(zone for zone in subject.marks.zones if zone[0] != "warmup"))
    clear = allowed_positions(marks, subject.bins, subject.design)
    across = tuple(
        (c.positions < at) & (c.positions + c.before + c.gap >= at) & (True if ok is None else ok)
        for c, ok in zip(subject.design.contrasts, clear, strict=True)
    )
    result = []
    for one in _pass(subject, values - values.mean(), across, seed, resamples).episodes:
        onset, peak = (int(np.searchsorted(subject.curve.steps, step)) for step in (one.onset, one.peak))
        level = moving_mean(y, max((peak - onset) // 3, 1))
        if onset < stop < peak and level[peak] - level[stop] >= _AFTER * one.amplitude:
            result.append(replace(one, p_value=min(2 * one.p_value, 1.0)))
    return _distinct(result[:1], counted)


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


def _explained(subject: _Subject, repaired: Repaired, first: _Pass, found: list[Episode]) -> list[Episode]:
    """Rises that would have been significant but for a mark; p-value 1."""
    raw = replace(subject, values=repaired.values, bins=binned(repaired.values))
    values, null = raw.bins.values - raw.bins.values.mean(), first.null
    seen = _scan(raw, values, None, values)
    lowest = null.quantile(0.95)
    result = []
    for c in find_candidates(values, seen, raw.design, null.center, null.spread, _LIMIT, lowest):
        one = _episode(raw, c, first.deviation, 1.0)
        apart = not any(one.onset <= e.peak and e.onset <= one.peak and e.p_value < 1 for e in found)
        if apart and _EXPLAINING.intersection(one.flags):
            result.append(one)
    return _distinct(result, [])


def _episode(subject: _Subject, found: Candidate, deviation: Floats, p_value: float) -> Episode:
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
    unit = float(subject.unit(deviation)[onset])
    descent = float(smooth[: max(round(0.01 * n), 3)].mean()) - level if onset > 0 else 0.0
    steps = subject.curve.steps
    widths = np.diff(steps[onset : recovery + 1])
    excess = np.maximum(y[onset:recovery] - level, 0)
    return Episode(
        kind=_kind(lost, descent, unit),
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
