"""From runs to curves and panels: grouping over seeds, colors, facets and the words that say what was averaged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from landscape.errors import unknown
from landscape.plots.aggregate import over_seeds
from landscape.plots.curves import INSET_BOX, Curve, End, FloatArray, Panel, Trace
from landscape.plots.data import AXES, Cell, RunData, cell_labels, distinct, run_label, spell
from landscape.plots.smoothing import default_bandwidth, local_linear
from landscape.plots.style import method_style, shade

Series = Callable[[RunData], Trace]
Facet = str | tuple[str, str] | None
Cells = Mapping[Cell, Sequence[RunData]]

ENDED = ("diverged", "failed", "interrupted")
"""States of a run that stopped early for good, marked where its curve ends."""

OFF_SCALE = 2.0
"""A value this many times above the range of 99.5 % of the values cuts the axis instead of flattening the rest."""


FLATTENING = 4.0
"""Panels whose heights differ by more than this factor have their own axes."""


@dataclass(frozen=True)
class Smoothing:
    """The bandwidth of a figure's smoothing in steps; 0 is none."""

    bandwidth: float

    @classmethod
    def of(cls, bandwidth: float | None, runs: Iterable[RunData]) -> Smoothing:
        """The given bandwidth, or the default for the longest of the runs."""
        if bandwidth is None:
            bandwidth = default_bandwidth(max((run.step for run in runs), default=0))
        return cls(bandwidth)

    def __call__(self, trace: Trace) -> Trace:
        """A smoothed copy of one run's series."""
        return Trace(trace.x, local_linear(trace.x, trace.y, self.bandwidth), trace.label)

    def note(self) -> str:
        """What the lines are, for the figure's notes."""
        if self.bandwidth <= 0:
            return "Lines are raw values."
        return (
            f"Lines: centered Gaussian smoothing (sd {self.bandwidth:g} step{'s' * (self.bandwidth != 1)}), "
            "for display only; "
            "raw values lie faintly beneath."
        )


@dataclass(frozen=True)
class Facets:
    """Panels by the values of no, one or two settings: ``keys`` in row-major order over ``columns``."""

    axes: tuple[str, ...]
    keys: tuple[tuple[Any, ...], ...]
    columns: int

    @classmethod
    def of(cls, facet: Facet, cells: Iterable[Cell], wrap: int) -> Facets:
        """One panel a value (``wrap`` to a row), or a grid with the first axis down and the second across."""
        cells = list(cells)
        axes = (facet,) if isinstance(facet, str) else tuple(facet or ())
        for axis in axes:
            if axis not in AXES:
                raise unknown("facet", axis, AXES)
        # An axis without values (only full fine-tuning, which has no rank) still makes one panel.
        values = [distinct(cells, axis) or [None] for axis in axes]
        keys = tuple(itertools.product(*values))
        return cls(axes, keys, len(values[1]) if len(axes) == 2 else min(wrap, len(keys)))

    def select(self, key: tuple[Any, ...], cells: Cells) -> dict[Cell, Sequence[RunData]]:
        """The cells of one panel; those without a value on an axis (full fine-tuning's rank) join every other."""
        wanted = list(zip(self.axes, key, strict=True))
        found = {c: runs for c, runs in cells.items() if all(getattr(c, axis) in (v, None) for axis, v in wanted)}
        own = any(all(getattr(cell, axis) == value for axis, value in wanted) for cell in found)
        return found if own else {}

    def title(self, key: tuple[Any, ...]) -> str:
        """The panel's heading, such as ``r = 64, lr = 5e-4``."""
        return ", ".join(spell(axis, value) for axis, value in zip(self.axes, key, strict=True) if value is not None)


def colors(cells: Iterable[Cell], axes: Sequence[str] = ()) -> dict[Cell, str]:
    """A method's own color, in shades from light to dark where its cells differ by more than the panels' ``axes``."""
    result = {}
    for method, same in itertools.groupby(sorted(cells, key=lambda cell: cell.sort_key), key=lambda cell: cell.method):
        members = list(same)
        keys = [_without(cell, axes, members) for cell in members]
        # Not as they come: the first panel may lack the lowest rate.
        ranked = sorted(set(keys), key=lambda key: replace(key, method=method).sort_key)
        order = {key: index for index, key in enumerate(ranked)}
        for cell, key in zip(members, keys, strict=True):
            position = order[key] / (len(order) - 1) if len(order) > 1 else 0.5
            result[cell] = shade(method_style(cell.method).color, position)
    return result


def _without(cell: Cell, axes: Sequence[str], others: Sequence[Cell]) -> Cell:
    """The cell apart from what the panels name; an alpha that follows from the rank goes with the rank."""
    changes: dict[str, Any] = dict.fromkeys(axes)
    if "rank" in axes and len({(other.rank, other.alpha) for other in others}) == len({o.rank for o in others}):
        changes["alpha"] = None
    return replace(cell, **changes)


@dataclass(frozen=True)
class Pen:
    """How one cell is named and drawn."""

    label: str
    color: str
    dash: str = "solid"
    order: int = 0
    marker: str = "circle"


def seed_curve(
    runs: Sequence[RunData],
    series: Series,
    pen: Pen,
    *,
    smoothing: Smoothing | None = None,
    standard_errors: Series | None = None,
    markers: bool = False,
) -> Curve | None:
    """The mean of a cell's runs with its band, the raw traces beneath and the ends of runs that stopped early.

    Each run is smoothed before the average is taken, so that the band is the spread between the lines and not that of
    their batches. With one run the band is the standard error that was measured with each value, if any was.
    """
    traces = [(run, series(run)) for run in runs]
    traces = [(run, trace) for run, trace in traces if len(trace.x)]
    if not traces:
        return None
    smooth = smoothing if smoothing is not None and smoothing.bandwidth > 0 else None
    mean = over_seeds([smooth(trace) if smooth else trace for _, trace in traces]).broken()
    lower = upper = None
    band = ""
    if len(traces) > 1:
        band = "±1 sd over seeds"
        lower, upper = mean.mean - mean.sd, mean.mean + mean.sd
    elif standard_errors is not None:
        error = _at(standard_errors(traces[0][0]), mean.x)
        if np.isfinite(error).any():
            band = "±1 standard error"
            lower, upper = mean.mean - error, mean.mean + error
    shows_raw = smooth is not None or len(traces) > 1
    return Curve(
        label=pen.label,
        color=pen.color,
        x=mean.x,
        y=mean.mean,
        dash=pen.dash,
        order=pen.order,
        lower=lower,
        upper=upper,
        band=band,
        n=mean.n,
        raw=tuple(trace for _, trace in traces) if shows_raw else (),
        ends=tuple(_end(run, trace) for run, trace in traces if run.state in ENDED),
        markers=markers,
        marker=pen.marker,
    )


def _end(run: RunData, trace: Trace) -> End:
    return End(
        float(trace.x[-1]),
        float(trace.y[-1]),
        run.state,  # type: ignore[arg-type]
        f"{run_label(run)} {run.state} at step {run.step}, last value {trace.y[-1]:.4g}",
    )


def _at(trace: Trace, x: FloatArray) -> FloatArray:
    """The trace's values at the given steps, NaN where it has none."""
    values = dict(zip(trace.x.tolist(), trace.y.tolist(), strict=True))
    return np.array([values.get(step, np.nan) for step in x.tolist()])


def measured(runs: Iterable[RunData], *series: Series) -> list[RunData]:
    """The runs that have values of at least one of the series: only they count into N and make panels."""
    return [run for run in runs if any(len(one(run).x) for one in series)]


def facet_panels(
    cells: Cells,
    facets: Facets,
    curves: Callable[[Sequence[RunData], Pen], Iterable[Curve | None]],
    **panel: Any,
) -> list[Panel]:
    """One panel a facet value with the curves of its cells; labels and colors hold over all panels.

    Args:
        curves: from a cell's runs and its pen to the curves to draw; None where there is nothing to draw.
        panel: the other fields of `Panel`.
    """
    labels = cell_labels(list(cells), facets.axes)
    palette = colors(cells, facets.axes)
    order = {cell: index for index, cell in enumerate(cells)}
    panels = []
    for key in facets.keys:
        drawn = []
        for cell, runs in facets.select(key, cells).items():
            style = method_style(cell.method)
            drawn += curves(runs, Pen(labels[cell], palette[cell], style.dash, order[cell], style.marker))
        panels.append(Panel(facets.title(key), tuple(curve for curve in drawn if curve is not None), **panel))
    return panels


def join_notes(*notes: str) -> tuple[str, ...]:
    """The notes that say something, each once."""
    return tuple(dict.fromkeys(note for note in notes if note))


def seeds_note(cells: Cells) -> str:
    """How many runs are behind the lines: ``Means over N = 3 seeds, bands ±1 sd.`` or the range of N."""
    counts = sorted({len(runs) for runs in cells.values()})
    if not counts or counts == [1]:
        return "N = 1 run per line: no spread over seeds is known."
    spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    note = f"Means over N = {spread} seeds; bands ±1 sd over seeds."
    if len(counts) > 1:
        labels = cell_labels(list(cells))
        fewer = [f"{labels[cell]}: {len(runs)}" for cell, runs in cells.items() if len(runs) < counts[-1]]
        note += (
            f" N below {counts[-1]}: "
            + "; ".join(fewer[:3])
            + (f" and {len(fewer) - 3} more." if len(fewer) > 3 else ".")
        )
    return note


def ends_note(cells: Cells) -> str:
    """Which runs stopped early, or the empty string."""
    counts = {state: sum(run.state == state for runs in cells.values() for run in runs) for state in ENDED}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return f"Marked × where they end: {', '.join(parts)} (a line breaks where its N changes)." if parts else ""


def loss_unit(cells: Cells) -> str:
    """``nats/token``, or ``nats/example`` where every example has exactly one counted label."""
    frames = [run.evaluations for runs in cells.values() for run in runs]
    frames = [frame for frame in frames if {"num_labels", "num_examples"} <= set(frame) and len(frame)]
    single = bool(frames) and all((frame["num_labels"] == frame["num_examples"]).all() for frame in frames)
    return "nats/example" if single else "nats/token"


def with_ranges(panels: Sequence[Panel], groups: Sequence[int]) -> tuple[tuple[Panel, ...], tuple[str, ...]]:
    """Panels with y ranges, one for each group of panels that share an axis, and a note where values lie outside.

    A run that blows up to 1e8 would flatten every other curve, so the axis ends above 99.5 % of the values and the
    note gives the largest one. Nothing is cut on a logarithmic axis.
    """
    result, notes = list(panels), []
    for group in dict.fromkeys(groups):
        members = [index for index, other in enumerate(groups) if other == group]
        found = _range([panels[index] for index in members])
        if found is None:
            continue
        low, high, cut = found
        for index in members:
            result[index] = replace(panels[index], y_range=(low, high))
        if cut:
            alone = panels[members[0]].title if len(members) == 1 < len(panels) else ""
            notes.append(
                f"{f'{alone}: the' if alone else 'The'} axis ends at {high:.3g}; the largest value is {cut:.3g}."
            )
    return tuple(result), tuple(dict.fromkeys(notes))


def with_fitting_ranges(
    panels: Sequence[Panel],
) -> tuple[tuple[Panel, ...], Literal["all", "none"], tuple[str, ...]]:
    """Panels with y ranges: one for all, or each its own where one would flatten some panel; ``share_y`` and notes.

    Logarithmic axes are always shared.
    """
    own, cut = with_ranges(panels, list(range(len(panels))))
    heights = [panel.y_range[1] - panel.y_range[0] for panel in own if panel.y_range is not None]
    if not heights or any(panel.log_y for panel in panels) or max(heights) <= FLATTENING * min(heights):
        shared, cut = with_ranges(panels, [0] * len(panels))
        return shared, "all", cut
    return own, "none", ("Axes differ from panel to panel: the largest would flatten others.", *cut)


def with_inset(panel: Panel, low: float, high: float) -> Panel:
    """The panel with an inset on [low, high] of its x axis and its y axis raised until no curve runs behind it."""
    if panel.y_range is None:
        return panel
    ends = [curve.x[-1] for curve in panel.curves if len(curve.x)]
    starts = [curve.x[0] for curve in panel.curves if len(curve.x)]
    left = min(starts) + (INSET_BOX[0] - 0.06) * (max(ends) - min(starts))
    behind = [series.y[series.x >= left] for curve in panel.curves for series in (curve, *curve.raw)]
    behind += [curve.upper[curve.x >= left] for curve in panel.curves if curve.upper is not None]
    values = np.concatenate(behind)
    values = values[np.isfinite(values)]
    bottom, top = panel.y_range
    # Tick labels of the inset need the last few percent below it.
    room = INSET_BOX[1] - 0.12
    needed = bottom + (float(values.max()) - bottom) / room if len(values) else top
    return replace(panel, inset=(low, high), y_range=(bottom, max(top, needed)))


def spans_top(panel: Panel) -> float:
    """Where the labels of spans begin, as a share of the axes' height: below the inset where there is one."""
    # The inset's tick labels are beneath it.
    return 0.985 if panel.inset is None else INSET_BOX[1] - 0.09


def inset_range(curves: Sequence[Curve], interval: tuple[float, float], log_y: bool) -> tuple[float, float]:
    """The y range of all that is drawn within an interval of the x axis, with a margin."""
    parts = [series.y[(series.x >= interval[0]) & (series.x <= interval[1])] for c in curves for series in (c, *c.raw)]
    values = np.concatenate(parts)
    values = values[np.isfinite(values) & ((values > 0) | (not log_y))]
    if not len(values):
        return (0.1, 1.0)
    low, high = float(values.min()), float(values.max())
    if log_y:
        return low / 1.1, high * 1.1
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def share_range(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with one y range that holds all of theirs."""
    ranges = [panel.y_range for panel in panels if panel.y_range is not None]
    if not ranges:
        return list(panels)
    widest = (min(low for low, _ in ranges), max(high for _, high in ranges))
    return [replace(panel, y_range=widest) for panel in panels]


def _range(panels: Sequence[Panel]) -> tuple[float, float, float] | None:
    """Low, high and the largest value if it lies above, else 0."""
    curves = [curve for panel in panels for curve in panel.curves]
    log = any(panel.log_y for panel in panels)
    values = _finite([series.y for curve in curves for series in (curve, *curve.raw)], log)
    if not len(values):
        return None
    levels = [panel.level[0] for panel in panels if panel.level is not None]
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = min(low, *levels, high), max(high, *levels, low)
        margin = (high / low) ** 0.04 if high > low else 1.5
        return low / margin, high * margin, 0.0
    # Where the curves start is no accident and always shown.
    starts = [curve.y[0] for curve in curves if len(curve.y) and np.isfinite(curve.y[0])]
    typical = max([float(np.quantile(values, 0.995)), *starts])
    limit = typical + OFF_SCALE * (typical - low)
    cut = high if high > limit and typical > low else 0.0
    high = typical + 0.5 * (typical - low) if cut else high
    low, high = _with_bands(low, high, curves, bool(cut))
    if any(panel.zero_line for panel in panels):
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = min(low, *levels, high), max(high, *levels, low)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin, cut


def _with_bands(low: float, high: float, curves: Sequence[Curve], cut: bool) -> tuple[float, float]:
    """The range with the bands in it, as far as they reach over it by no more than 30 %.

    Where one of several runs blows up, their spread reaches far below anything that was measured.
    """
    bounds = _finite([bound for curve in curves for bound in (curve.lower, curve.upper) if bound is not None], False)
    if not len(bounds) or cut:
        return low, high
    reach = 0.3 * (high - low) if high > low else np.inf
    floor = max(low - reach, min(low, 0.0))  # a loss that never was negative needs no axis below 0
    return max(min(low, float(bounds.min())), floor), min(max(high, float(bounds.max())), high + reach)


def _finite(arrays: Sequence[FloatArray], positive: bool) -> FloatArray:
    values = np.concatenate(arrays) if arrays else np.array([])
    values = values[np.isfinite(values)]
    return values[values > 0] if positive else values
