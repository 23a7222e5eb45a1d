"""Curves of many runs as one `CurveSet`, and which runs are behind each of its lines.

What the papers' figures show and beyond: any logged quantity, panels by setting, seeds averaged with their band, long
runs reduced without losing a spike, tested rebounds shaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from landscape.errors import unknown
from landscape.plots import POINT_BUDGET, RunData, with_inset
from landscape.plots.build import (
    Facets,
    Pen,
    Smoothing,
    ends_note,
    facet_panels,
    join_notes,
    loss_unit,
    measured,
    seed_curve,
    seeds_note,
    share_range,
    with_fitting_ranges,
)
from landscape.plots.curves import Curve, CurveSet, FloatArray, Panel, Span, Trace
from landscape.plots.data import finite_trace, group, split_series, step_series
from landscape.plots.envelope import keep_indices
from landscape.plots.evaluation import gap_series
from landscape.plots.style import METHOD_STYLES

MOST_RUNS = 60
"""Drawn at once: 50,000 points shared among more show none of them well."""

HEAD, LINE_POINTS = 100, 1000
"""A smoothed line is drawn at every one of the first steps, and at about so many places in all."""

ALPHA = 0.05
MOST_SPANS = 3
"""Rebounds shaded in a panel."""

Series = Callable[[RunData], Trace]


@dataclass(frozen=True)
class Quantity:
    """One thing that runs log: its name, its axis, its series, and the series of its standard error."""

    label: str
    axis: str
    series: Series
    help: str
    error: Series | None = None
    loss: bool = False
    signed: bool = False
    """Can be negative: no logarithmic axis, and a line at zero."""
    evaluated: bool = False
    """Measured now and then, so drawn with markers and not smoothed."""


def _step(column: str, minus: str | None = None) -> Series:
    return lambda run: step_series(run, column, minus)


def _split(split: str, column: str = "loss") -> Series:
    return lambda run: split_series(run, split, column)


QUANTITIES: dict[str, Quantity] = {
    "clean": Quantity(
        "training loss, clean", "training loss (clean)", _step("loss_clean"),
        "Loss of each step's batch at the unperturbed weights, before the update: the one to compare methods by.",
        loss=True,
    ),
    "perturbed": Quantity(
        "training loss, perturbed", "training loss (perturbed)", _step("loss_perturbed"),
        "Loss at the weights that the method perturbed: what was differentiated.", loss=True,
    ),
    "relative": Quantity(
        "clean loss − base model's", "training loss (clean) − base model's loss", _step("loss_clean", "loss_base"),
        "Minus the untouched base model's loss on the same batch: the noise of hard and easy batches cancels.",
        loss=True, signed=True,
    ),
    "added": Quantity(
        "what perturbation adds", "perturbed − clean loss", _step("loss_perturbed", "loss_clean"),
        "Loss at the perturbed weights minus loss at the unperturbed ones, on the same batch.", loss=True, signed=True,
    ),
    "eval": Quantity(
        "eval loss (held out)", "eval loss", _split("eval"),
        "Loss on held-out examples, in evaluation mode, always the same ones.",
        _split("eval", "standard_error"), loss=True, evaluated=True,
    ),
    "probe": Quantity(
        "probe loss (train subset)", "probe loss", _split("probe"),
        "Loss on a fixed subset of the training examples, in evaluation mode.",
        _split("probe", "standard_error"), loss=True, evaluated=True,
    ),
    "gap": Quantity(
        "generalization gap", "eval loss − probe loss", lambda run: gap_series(run, "gap"),
        "Held-out minus training loss, both in evaluation mode. Above zero: worse on what was not seen.",
        lambda run: gap_series(run, "standard_error"), loss=True, signed=True, evaluated=True,
    ),
    "grad_norm": Quantity(
        "gradient norm", "gradient norm (unitless)", _step("grad_norm"),
        "Euclidean norm of the gradient over everything that is trained, before any clipping.",
    ),
    "perturbation_norm": Quantity(
        "perturbation norm", "perturbation norm (unitless)", _step("perturbation_norm"),
        "Euclidean norm of what the method adds to the weights for the step.",
    ),
    "adapter_norm": Quantity(
        "adapter norm", "adapter norm (unitless)", _step("adapter_norm"), "Euclidean norm of the trained parameters.",
    ),
    "learning_rate": Quantity(
        "learning rate", "learning rate (a step)", _step("learning_rate"), "As the schedule set it at each step.",
    ),
}  # fmt: skip
BOTH = "train+eval"
"""Training and eval loss in one panel, as in GGPO's second figure."""

NAMES = {"clean": "training loss, clean", BOTH: "training and eval loss"} | {k: q.label for k, q in QUANTITIES.items()}
"""Quantities as the page offers them."""


@dataclass(frozen=True)
class CurveView:
    """What the page asks for.

    ``smoothing`` is the kernel's standard deviation in percent of the longest run; 0 draws raw values. ``inset`` is the
    stretch of steps that a small frame repeats.
    """

    quantity: str = "clean"
    facet: tuple[str, ...] = ()
    smoothing: float = 1.5
    log_x: bool = False
    log_y: bool = False
    inset: tuple[float, float] | None = None
    episodes: bool = True


@dataclass(frozen=True)
class CurveFigure:
    """A figure, and for each of its curves in drawing order the ids of the runs behind it, by seed."""

    result: CurveSet
    members: tuple[tuple[str, ...], ...]


def curve_figure(runs: Sequence[RunData], view: CurveView, title: str = "") -> CurveFigure:
    """The curves that a view asks for; runs that lack the quantity are left out and counted.

    Raises:
        UsageError: unknown quantity or facet.
    """
    if view.quantity not in NAMES:
        raise unknown("quantity", view.quantity, NAMES)
    shown = [QUANTITIES[key] for key in (("clean", "eval") if view.quantity == BOTH else (view.quantity,))]
    drawn = measured(runs, *(quantity.series for quantity in shown))
    cells = group(drawn)
    facets = Facets.of(view.facet[0] if len(view.facet) == 1 else view.facet or None, cells, 3)  # type: ignore[arg-type]
    longest = max((run.step for run in drawn), default=0)
    bandwidth = view.smoothing / 100 * longest
    width = max(1, longest // LINE_POINTS) if bandwidth * LINE_POINTS >= 2 * longest else 1
    smoothing = Smoothing(0.0 if bandwidth < 1 else round(bandwidth))
    points = max(200, POINT_BUDGET // (2 * max(1, len(drawn))))
    members: list[tuple[str, ...]] = []
    marks: list[list[Span]] = []

    def curves(own: Sequence[RunData], pen: Pen) -> list[Curve | None]:
        made: list[Curve | None] = []
        for number, quantity in enumerate(shown):
            part = (
                Pen(f"{pen.label}, {quantity.axis}", pen.color, ("solid", "dot")[number], pen.order)
                if number or (len(shown) > 1)
                else pen
            )
            curve = _curve(own, quantity, part, smoothing, width, points, view.log_x)
            if curve is not None:
                made.append(curve)
                members.append(tuple(run.run_id for run in own if len(quantity.series(run).x)))
                marks.append(_spans(own, curve.color) if quantity is QUANTITIES["clean"] and view.episodes else [])
        return made

    signed = any(quantity.signed for quantity in shown)
    unit = f", {loss_unit(cells)}" if shown[0].loss else ""
    axis = "loss" if len(shown) > 1 else shown[0].axis
    panels: Sequence[Panel] = facet_panels(
        cells, facets, curves, y_label=f"{axis}{unit}", log_y=view.log_y and not signed, log_x=view.log_x,
        zero_line=signed,
    )  # fmt: skip
    panels, left_out = _marked(panels, marks)
    panels, share, cut = with_fitting_ranges(panels)
    if view.inset is not None and not view.log_x:
        panels = [with_inset(panel, *view.inset) if panel.curves else panel for panel in panels]
        panels = share_range(panels) if share == "all" else panels
    smooth = smoothing.note() if not all(quantity.evaluated for quantity in shown) else ""
    absent = len(runs) - len(drawn)
    result = CurveSet(
        title=title or NAMES[view.quantity].capitalize(),
        panels=tuple(panels),
        columns=facets.columns,
        share_y=share,
        notes=join_notes(
            smooth, _bins_note(width), seeds_note(cells), ends_note(cells),
            "Bands of single runs: ±1 standard error over examples." if shown[-1].error else "", *left_out, *cut,
        ),
        missing=(f"{NAMES[view.quantity]} of {absent} run{'s' * (absent != 1)}, which did not log it.",) * bool(absent),
    )  # fmt: skip
    return CurveFigure(result, tuple(members))


def _curve(
    runs: Sequence[RunData], quantity: Quantity, pen: Pen, smoothing: Smoothing, width: int, points: int, log_x: bool
) -> Curve | None:
    """One cell's line: smoothed over bins where runs are long, with the raw values' envelopes beneath."""

    def series(run: RunData) -> Trace:
        trace = quantity.series(run)
        return finite_trace(trace.x[trace.x > 0], trace.y[trace.x > 0], trace.label) if log_x else trace

    if quantity.evaluated:
        return seed_curve(runs, series, pen, standard_errors=quantity.error, markers=True)
    curve = seed_curve(runs, lambda run: binned(series(run), width), pen, smoothing=smoothing)
    if curve is None or not curve.raw:
        return curve
    raw = [trace for trace in map(series, runs) if len(trace.x)]
    return replace(curve, raw=tuple(enveloped(trace, points) for trace in raw))


def binned(trace: Trace, width: int) -> Trace:
    """Means over bins of ``width`` steps, the same ones for every run, apart from the first `HEAD` steps."""
    if width <= 1 or len(trace.x) <= LINE_POINTS:
        return trace
    ends = np.where(trace.x <= HEAD, trace.x, HEAD + np.ceil((trace.x - HEAD) / width) * width)
    starts = np.flatnonzero(np.append(True, np.diff(ends) > 0))
    sizes = np.diff(np.append(starts, len(ends)))
    middle = np.where(ends[starts] <= HEAD, ends[starts], ends[starts] - (width - 1) / 2)
    return Trace(middle, np.add.reduceat(trace.y, starts) / sizes, trace.label)


def enveloped(trace: Trace, points: int) -> Trace:
    """The trace with about so many points: first, lowest, highest and last of each bin."""
    kept = keep_indices([trace.y], points)
    return Trace(trace.x[kept], trace.y[kept], trace.label)


def _bins_note(width: int) -> str:
    return f"Lines are drawn through means of {width} steps; every raw extreme is kept." if width > 1 else ""


def _spans(runs: Sequence[RunData], color: str) -> list[Span]:
    """Tested rebounds of the runs' clean training loss that count, most significant first."""
    found = []
    for run in runs:
        if run.episodes is None or not {"column", "p_value", "onset", "peak", "recovery"} <= set(run.episodes):
            continue
        rows = run.episodes.loc[(run.episodes["column"] == "loss_clean") & (run.episodes["p_value"] <= ALPHA)]
        for row in rows.to_dict("records"):
            if np.isfinite([row["onset"], row["peak"], row["recovery"]]).all():
                text = f"{row['kind']}, p = {row['p_value']:.2g}"
                found.append((row["p_value"], Span(row["onset"], row["peak"], row["recovery"], text, color)))
    return [span for _, span in sorted(found, key=lambda item: item[0])]


def _marked(panels: Sequence[Panel], marks: Sequence[list[Span]]) -> tuple[list[Panel], list[str]]:
    """Panels with the spans of their curves, and how many were left out."""
    result, left_out, position = [], 0, 0
    for panel in panels:
        spans = [span for own in marks[position : position + len(panel.curves)] for span in own]
        position += len(panel.curves)
        left_out += max(0, len(spans) - MOST_SPANS)
        # Gray where several curves share the panel would say nothing of whose they are: the color is the curve's.
        result.append(replace(panel, spans=tuple(sorted(spans[:MOST_SPANS], key=lambda span: span.start))))
    notes = []
    if any(panel.spans for panel in result):
        notes.append(f"Shaded: tested rebounds (p ≤ {ALPHA:g}) from onset to recovery, dotted at the peak.")
    if left_out:
        many = "1 more rebound is" if left_out == 1 else f"{left_out} more rebounds are"
        notes.append(f"{many} not shaded; the Episodes page lists all of them.")
    return result, notes


def single_run(run: RunData, step: int | None = None) -> CurveSet:
    """Training and eval loss of one run with the step in question marked."""
    figure = curve_figure([run], CurveView(quantity=BOTH, smoothing=1.5))
    panels = figure.result.panels
    if step is not None and panels:
        mark = Span(step, step, step, f"step {step}", METHOD_STYLES["ggpo"].color)
        panels = tuple(replace(panel, spans=(*panel.spans, mark)) for panel in panels)
    return replace(figure.result, panels=panels, title="Where this step lies")


def click_targets(curve: Curve, most: int = 120) -> tuple[FloatArray, FloatArray]:
    """Places on a line that a click opens: the drawn points, evenly thinned."""
    finite = np.flatnonzero(np.isfinite(curve.y) & np.isfinite(curve.x))
    if len(finite) > most:
        finite = finite[np.linspace(0, len(finite) - 1, most).round().astype(np.int64)]
    return curve.x[finite], curve.y[finite]
