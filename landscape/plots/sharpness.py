"""Sharpness (the largest eigenvalue of the loss's Hessian) along training, under the loss on the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from landscape.plots.build import Facets, Pen, facet_panels, join_notes, seed_curve, with_ranges
from landscape.plots.curves import Curve, CurveSet, Trace
from landscape.plots.data import RunData, finite_trace, floats, group, run_label
from landscape.plots.loss import loss_curves

NEEDED = {"step", "index", "value", "space"}
"""Columns without which a table of eigenvalues says too little to be drawn."""


def sharpness_curves(
    runs: Sequence[RunData],
    *,
    facet: str | None = None,
    column: str = "loss_clean",
    bandwidth: float | None = None,
    log_y: bool = False,
    title: str = "Sharpness along training",
) -> CurveSet:
    """The loss, and under it the largest Hessian eigenvalue on the same steps, one row of panels a parameter space.

    λmax depends on the space in which it is measured, so spaces are never mixed in one panel. Under preconditioned
    sharpness, which has no unit, lies the threshold above which Adam would be unstable on a quadratic, full-batch loss.
    Open circles did not converge to the tolerance asked for. Runs without eigenvalues are left out.

    Raises:
        UsageError: unknown column or facet.
    """
    measured = [run for run in runs if len(largest(run))]
    cells = group(measured)
    columns = len(Facets.of(facet, cells, 1).keys)
    facets = Facets.of(facet, cells, columns)
    losses = loss_curves(measured, column=column, facet=facet, bandwidth=bandwidth, wrap=columns)
    panels, rows = [replace(panel, x_label="") for panel in losses.panels], [0] * columns
    spaces = sorted({str(space) for run in measured for space in largest(run)["space"]}, key=_space_order)
    for row, space in enumerate(spaces, start=1):
        below = facet_panels(
            cells,
            facets,
            lambda members, pen, space=space: [_curve(members, space, pen)],
            y_label=_y_label(space),
            level=_threshold(measured, space),
            x_label="optimizer step" if row == len(spaces) else "",
            log_y=log_y,
            zero_line=not log_y,
        )
        panels += [replace(panel, title="") for panel in below]
        rows += [row] * columns
    panels, cut = with_ranges(panels, rows)
    return CurveSet(
        title=title,
        panels=panels,
        columns=columns,
        share_y="row",
        notes=join_notes(*losses.notes, *_notes(measured, log_y), *cut),
        missing=losses.missing,
    )


def _space_order(space: str) -> tuple[bool, str]:
    return space == "preconditioned", space


def _y_label(space: str) -> str:
    return "preconditioned sharpness" if space == "preconditioned" else f"sharpness λmax, {space} space"


def _threshold(runs: Sequence[RunData], space: str) -> tuple[float, str] | None:
    """The stability threshold that the rows of a space name, where it is one."""
    if space != "preconditioned":
        return None
    values = {value for run in runs for value in _thresholds(largest(run))}
    return (values.pop(), "stability threshold") if len(values) == 1 else None


def _thresholds(frame: pd.DataFrame) -> list[float]:
    if "threshold" not in frame:
        return []
    values = floats(frame, "threshold")
    return values[np.isfinite(values)].tolist()


def largest(run: RunData) -> pd.DataFrame:
    """The rows of the largest eigenvalue at each step and space; empty where none was measured."""
    frame = run.sharpness
    if frame is None or not set(frame) >= NEEDED:
        return pd.DataFrame(columns=sorted(NEEDED))
    return frame.loc[frame["index"] == 0]


def sharpness_series(run: RunData, space: str) -> Trace:
    """Largest eigenvalue along one run in one space."""
    frame = largest(run)
    kept = (frame["space"] == space).to_numpy()
    return finite_trace(floats(frame, "step")[kept], floats(frame, "value")[kept], run_label(run))


def _curve(runs: Sequence[RunData], space: str, pen: Pen) -> Curve | None:
    curve = seed_curve(runs, lambda run: sharpness_series(run, space), pen, markers=True)
    if curve is None:
        return None
    open_steps = {step for run in runs for step in _unconverged(run, space)}
    return replace(curve, hollow=np.array([step in open_steps for step in curve.x.tolist()]), ends=())


def _unconverged(run: RunData, space: str) -> list[float]:
    frame = largest(run)
    if "converged" not in frame:
        return []
    failed = (frame["space"] == space).to_numpy() & (floats(frame, "converged") == 0)
    return floats(frame, "step")[failed].tolist()


def _notes(runs: Sequence[RunData], log_y: bool) -> list[str]:
    """Split, size and convergence of the eigenvalues drawn."""
    frames = [largest(run) for run in runs]
    if not frames:
        return []
    table = pd.concat(frames, ignore_index=True)
    notes = ["λmax: largest algebraic eigenvalue of the Hessian of the loss."]
    if {"split", "num_examples", "num_labels"} <= set(table):
        sizes = table[["split", "num_examples", "num_labels"]].drop_duplicates().to_numpy().tolist()
        shown = [f"{split} split, {examples} examples, {labels} labels" for split, examples, labels in sizes[:3]]
        notes.append(f"Measured on: {'; '.join(shown)}{' and others' if len(sizes) > 3 else ''}.")
    finite = np.isfinite(floats(table, "value"))
    failed = int(((floats(table, "converged") == 0) & finite).sum()) if "converged" in table else 0
    if failed:
        notes.append(f"{failed} of {int(finite.sum())} eigenvalues did not converge (open circles).")
    below = int((floats(table, "value") <= 0).sum())
    if log_y and below:
        notes.append(f"{below} values at or below 0 cannot be drawn on the log axis.")
    return notes
