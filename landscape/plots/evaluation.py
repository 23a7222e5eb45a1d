"""Evaluation loss and the generalization gap against optimizer steps, with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from landscape.errors import unknown
from landscape.plots.build import (
    Cells,
    Facet,
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
    with_inset,
    with_ranges,
)
from landscape.plots.curves import Curve, CurveSet, Trace
from landscape.plots.data import RunData, finite_trace, floats, group, run_label, split_series, step_series
from landscape.plots.loss import TRAIN_LOSSES
from landscape.plots.style import shade

SPLIT_NAMES = {"eval": "eval (held out)", "probe": "probe (fixed train subset)"}
SPLIT_DASHES = {"eval": "solid", "probe": "dot"}


def evaluation_curves(
    runs: Sequence[RunData],
    *,
    splits: Sequence[str] = ("eval", "probe"),
    facet: Facet = None,
    log_y: bool = False,
    wrap: int = 2,
    title: str = "Evaluation loss",
) -> CurveSet:
    """Loss on held-out examples (``eval``) and on a fixed training subset (``probe``), both in evaluation mode.

    One run's band is the standard error over examples; several runs' is the standard deviation over seeds.

    Raises:
        UsageError: unknown split or facet.
    """
    for split in splits:
        if split not in SPLIT_NAMES:
            raise unknown("split", split, SPLIT_NAMES)
    cells = group(measured(runs, *(partial(split_series, split=split) for split in splits)))
    facets = Facets.of(facet, cells, wrap)
    panels = facet_panels(
        cells,
        facets,
        lambda members, pen: [
            split_curve(members, split, _split_pen(pen, split) if len(splits) > 1 else pen) for split in splits
        ],
        y_label=f"{' and '.join(splits)} loss, {loss_unit(cells)}",
        log_y=log_y,
    )
    panels, cut = with_ranges(panels, [0] * len(panels))
    notes = join_notes(error_note(cells), seeds_note(cells), ends_note(cells), *cut)
    return CurveSet(title, panels, facets.columns, notes=notes)


def split_curve(runs: Sequence[RunData], split: str, pen: Pen) -> Curve | None:
    """One cell's loss on one split, with its band."""
    return seed_curve(
        runs,
        lambda run: split_series(run, split),
        pen,
        standard_errors=lambda run: split_series(run, split, "standard_error"),
        markers=split == "eval",
    )


def train_and_eval_curves(
    runs: Sequence[RunData],
    *,
    column: str = "loss_clean",
    facet: Facet = "method",
    bandwidth: float | None = None,
    inset_steps: int | None = None,
    wrap: int = 2,
    title: str = "Training and evaluation loss",
) -> CurveSet:
    """Training loss a step and evaluation loss in one panel, with an inset on the first steps.

    Args:
        column: ``loss_clean`` or ``loss_perturbed``, as in `landscape.plots.loss_curves`.
        inset_steps: length of the stretch that the inset repeats; None draws no inset.

    Raises:
        UsageError: unknown column or facet.
    """
    if column not in TRAIN_LOSSES:
        raise unknown("column", column, TRAIN_LOSSES)
    cells = group(measured(runs, partial(step_series, column=column), partial(split_series, split="eval")))
    facets = Facets.of(facet, cells, wrap)
    smoothing = Smoothing.of(bandwidth, runs)

    def curves(members: Sequence[RunData], pen: Pen) -> list[Curve | None]:
        train = replace(pen, label=f"{pen.label}, train ({TRAIN_LOSSES[column]})", color=shade(pen.color, 0.22))
        train = replace(train, dash="solid")
        held_out = replace(train, label=f"{pen.label}, {SPLIT_NAMES['eval']}", color=shade(pen.color, 0.72))
        return [
            seed_curve(members, lambda run: step_series(run, column), train, smoothing=smoothing),
            split_curve(members, "eval", held_out),
        ]

    panels = facet_panels(cells, facets, curves, y_label=f"loss, {loss_unit(cells)}")
    panels, cut = with_ranges(panels, [0] * len(panels))
    if inset_steps is not None:
        panels = share_range([with_inset(panel, 0, inset_steps) for panel in panels])
    notes = join_notes(smoothing.note(), error_note(cells), seeds_note(cells), ends_note(cells), *cut)
    return CurveSet(title, tuple(panels), facets.columns, notes=notes)


def single_evaluation(
    run: RunData, others: Sequence[RunData] = (), *, split: str = "eval", title: str = "Evaluation loss of one run"
) -> CurveSet:
    """One run's loss on one split with its standard error; the ``others``, say further seeds, lie faintly beneath.

    Raises:
        UsageError: unknown split.
    """
    result = evaluation_curves([run], splits=[split], title=title)
    panel = result.panels[0]
    beneath = tuple(trace for other in others if len((trace := split_series(other, split)).x))
    curves = tuple(replace(curve, raw=beneath) for curve in panel.curves)
    panels, cut = with_ranges([replace(panel, curves=curves)], [0])
    seeds = f"Faint: {len(beneath)} further seeds of the same settings." if beneath else seeds_note(group([run]))
    return replace(result, panels=panels, notes=join_notes(error_note(group([run])), seeds, *cut))


def gap_curves(
    runs: Sequence[RunData], *, facet: Facet = None, wrap: int = 2, title: str = "Generalization gap"
) -> CurveSet:
    """Eval loss minus probe loss along the runs with its standard error; above zero the model does worse held out.

    The analyzed gap (``landscape analyze gap``) is used where a run has one, else the difference of the two losses
    measured during training.
    """
    cells = group(measured(runs, partial(gap_series, column="gap")))
    facets = Facets.of(facet, cells, wrap)
    panels = facet_panels(
        cells,
        facets,
        lambda members, pen: [
            seed_curve(
                members,
                lambda run: gap_series(run, "gap"),
                pen,
                standard_errors=lambda run: gap_series(run, "standard_error"),
                markers=True,
            )
        ],
        y_label=f"eval loss − probe loss, {loss_unit(cells)}",
        zero_line=True,
    )
    panels, cut = with_ranges(panels, [0] * len(panels))
    notes = join_notes(error_note(cells), seeds_note(cells), ends_note(cells), *cut)
    return CurveSet(title, panels, facets.columns, notes=notes)


def gap_series(run: RunData, column: str) -> Trace:
    """``gap`` or its ``standard_error`` along one run; eval and probe share no examples, so variances add."""
    if run.gap is not None and {"step", column} <= set(run.gap) and len(run.gap):
        return finite_trace(floats(run.gap, "step"), floats(run.gap, column), run_label(run))
    name = "loss" if column == "gap" else column
    held_out, probe = (split_series(run, split, name) for split in ("eval", "probe"))
    steps, left, right = np.intersect1d(held_out.x, probe.x, assume_unique=True, return_indices=True)
    first, second = held_out.y[left], probe.y[right]
    return finite_trace(steps, first - second if column == "gap" else np.hypot(first, second), run_label(run))


def error_note(cells: Cells) -> str:
    """What the band of a single run is."""
    single = any(len(runs) == 1 for runs in cells.values())
    return "Bands of single runs: ±1 standard error over examples." if single else ""


def _split_pen(pen: Pen, split: str) -> Pen:
    return replace(pen, label=f"{pen.label}, {SPLIT_NAMES[split]}", dash=SPLIT_DASHES[split])
