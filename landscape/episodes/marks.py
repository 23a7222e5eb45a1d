"""Rises that are no episodes: in the warm-up, with the learning rate, at a resume, at an epoch's end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landscape.episodes.curve import Array, Bins, Curve, positions
from landscape.episodes.noise import quantile_scale
from landscape.episodes.scan import ScanDesign

_LAG = 0.02
"""Share of the run for which the loss may go on rising after the learning rate has."""
_NEAR = 0.01
"""Share of the run that counts as "at" an epoch's end."""
_JUMP_WINDOW, _MANY = 0.015, 10
_JUMP = 2.0
"""Standard errors above which a rise at an epoch's end is a jump, where there are more than `_MANY` of them; noise of
correlation 0.6 is allowed for."""


@dataclass(frozen=True, eq=False)
class Marks:
    """Zones as half-open ranges of point indices; a resume is an empty range at its first point."""

    zones: tuple[tuple[str, int, int], ...]
    epochs: NDArray[np.int64]
    points: int

    def flags(self, onset: int, peak: int) -> tuple[str, ...]:
        """Names of the zones that [onset, peak] meets, and "epoch_edge" for an onset at an epoch's end."""
        names = {name for name, start, stop in self.zones if onset < max(stop, start + 1) and start <= peak}
        if len(self.epochs) and np.abs(self.epochs - onset).min() <= _NEAR * self.points:
            names.add("epoch_edge")
        return tuple(sorted(names))


def rising_rate(rate: Array) -> list[tuple[int, int]]:
    """Ranges of points over which the learning rate rises by more than 1 % of its largest value, with the lag after."""
    lag = max(round(_LAG * len(rate)), 1)
    threshold = 0.01 * np.nanmax(rate)
    up = np.concatenate([[False], np.diff(rate) > 0, [False]])
    edges = np.flatnonzero(np.diff(up.astype(int)))
    return [
        (int(a), min(int(b) + lag, len(rate)))
        for a, b in zip(edges[::2], edges[1::2], strict=True)
        if rate[b] - rate[a] > threshold
    ]


def find_marks(curve: Curve, warmup_steps: float, epochs: tuple[float, ...], resumes: tuple[float, ...]) -> Marks:
    """Zones of a curve in point indices."""
    zones = []
    if warmup_steps > 0:
        zones.append(("warmup", 0, int(np.searchsorted(curve.steps, curve.steps[0] + warmup_steps, side="right"))))
    zones += [("resume", int(i), int(i)) for i in positions(curve.steps, resumes)]
    if curve.learning_rate is not None and np.isfinite(curve.learning_rate).all():
        for k, (start, stop) in enumerate(rising_rate(curve.learning_rate)):
            zones.append(("warmup" if k == 0 and start == 0 else "schedule_confounded", start, stop))
    return Marks(tuple(zones), positions(curve.steps, epochs), len(curve.values))


def allowed_positions(marks: Marks, bins: Bins, design: ScanDesign) -> tuple[NDArray[np.bool_] | None, ...]:
    """For each contrast which window pairs lie clear of every zone; None where all do.

    Where epochs are few, pairs of windows longer than the ones that jumps are measured with may not lie across an
    epoch's end either: a long mean would see what is left of a jump that short means measured.
    """
    few = 0 < len(marks.epochs) <= _MANY
    if not marks.zones and not few:
        return (None,) * len(design.contrasts)
    always = _blocked(((start, stop) for _, start, stop in marks.zones), bins)
    long = _blocked(((int(i), int(i)) for i in marks.epochs), bins) | always if few else always
    result = []
    for c in design.contrasts:
        total = np.cumsum(long if c.width > _JUMP_WINDOW * design.points else always)
        span = c.before + c.gap + c.width
        result.append(total[c.positions + span - 1] == total[c.positions])
    return tuple(result)


def _blocked(ranges: Iterable[tuple[int, int]], bins: Bins) -> NDArray[np.bool_]:
    """(bins + 1,) boundaries between bins, b between b-1 and b, that no window pair may contain."""
    blocked = np.zeros(len(bins.edges), bool)
    for start, stop in ranges:
        first = int(np.searchsorted(bins.edges, start, side="right")) - 1
        last = int(np.searchsorted(bins.edges, stop, side="left"))
        blocked[first : last + 1] = True
    return blocked


def without_epoch_jumps(values: Array, epochs: NDArray[np.int64]) -> Array:
    """The curve with every jump up at an epoch's end taken away from all that follows it.

    A jump is what the means over 1.5 % of the run on either side differ by, beyond the slope that the next windows out
    continue, so that a rebound that happens to pass an epoch's end keeps its rise. With many epochs only jumps that
    stand out are taken, lest the sum of many small positive errors bend the curve down.
    """
    result, n = values.copy(), len(values)
    width = max(round(_JUMP_WINDOW * n), 5)
    spread = quantile_scale(np.diff(values)) / np.sqrt(2)
    lowest = 2 * spread * np.sqrt(5 / width) * (_JUMP if len(epochs) > _MANY else 0)
    for mark in epochs:
        if mark < 2 * width or mark > n - 2 * width:
            continue
        far, before, after, beyond = result[mark - 2 * width : mark + 2 * width].reshape(4, width).mean(axis=1)
        jump = 1.5 * (after - before) - 0.5 * (beyond - far)
        if jump > lowest:
            result[mark:] -= jump
    return result
