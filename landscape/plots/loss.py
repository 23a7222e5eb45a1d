"""Training loss against optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

from landscape.errors import unknown
from landscape.plots.build import (
    Facet,
    Facets,
    Smoothing,
    ends_note,
    facet_panels,
    join_notes,
    loss_unit,
    measured,
    seed_curve,
    seeds_note,
    with_fitting_ranges,
)
from landscape.plots.curves import CurveSet, Trace
from landscape.plots.data import RunData, cell_labels, group, step_series

TRAIN_LOSSES = {"loss_clean": "clean", "loss_perturbed": "perturbed"}
"""Column of the step metrics → what its axis calls it. Methods are compared on the clean loss only."""

REFERENCES = {"loss_base": "base model's", "loss_clean": "clean"}
"""What a training loss can be drawn relative to, on the same batches."""


def loss_curves(
    runs: Sequence[RunData],
    *,
    column: str = "loss_clean",
    minus: str | None = None,
    facet: Facet = None,
    bandwidth: float | None = None,
    log_y: bool = False,
    wrap: int = 2,
    title: str = "Training loss",
) -> CurveSet:
    """Training loss a step: one line a cell (mean over its seeds), one panel a value of ``facet``.

    Args:
        column: ``loss_clean`` (default) or ``loss_perturbed``, what was differentiated.
        minus: ``loss_base`` subtracts the untouched base model's loss on the same batches, which removes the noise
            of hard and easy batches as far as both models find the same ones hard; ``loss_clean`` leaves what the
            perturbation adds.
        facet: a setting (method, rank, learning_rate...), or two for a grid (down, across).
        bandwidth: of the smoothing for display, in steps; None for the default, 0 for none.
        log_y: logarithmic axis; not with ``minus``, whose values can be negative.
        wrap: panels in a row when ``facet`` is one setting.

    Raises:
        UsageError: unknown column, ``minus`` or facet.
    """
    if column not in TRAIN_LOSSES:
        raise unknown("column", column, TRAIN_LOSSES)
    if minus is not None and minus not in REFERENCES:
        raise unknown("minus", minus, REFERENCES)

    def series(run: RunData) -> Trace:
        return step_series(run, column, minus)

    drawn = measured(runs, series)
    cells = group(drawn)
    facets = Facets.of(facet, cells, wrap)
    smoothing = Smoothing.of(bandwidth, runs)
    name = f"training loss ({TRAIN_LOSSES[column]})" + (f" − {REFERENCES[minus]} loss" if minus else "")
    panels = facet_panels(
        cells,
        facets,
        lambda members, pen: [seed_curve(members, series, pen, smoothing=smoothing)],
        y_label=f"{name}, {loss_unit(cells)}",
        log_y=log_y and minus is None,
        zero_line=minus is not None,
    )
    panels, share, cut = with_fitting_ranges(panels)
    return CurveSet(
        title=title,
        panels=panels,
        columns=facets.columns,
        share_y=share,
        notes=join_notes(smoothing.note(), seeds_note(cells), ends_note(cells), *cut),
        missing=_without(runs, drawn, f"{column} − {minus}" if minus else column),
    )


def _without(runs: Sequence[RunData], drawn: Sequence[RunData], what: str) -> tuple[str, ...]:
    """Which settings have step metrics but none of the numbers that the figure draws."""
    cells, have = group(run for run in runs if len(run.metrics)), group(drawn)
    labels = cell_labels(list(cells))
    empty = [labels[cell] for cell in cells if cell not in have]
    return (f"no {what} in the metrics of {', '.join(empty)}.",) if empty else ()
