"""1D slices → one panel of lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from landscape.errors import UsageError
from landscape.plots.build import join_notes, with_ranges
from landscape.plots.curves import Curve, CurveSet, End, Panel
from landscape.plots.slices import LineSlice


def line_slices(
    lines: Sequence[LineSlice],
    *,
    title: str = "Loss along random directions",
    chosen: str = "",
    x_label: str = "distance along the direction",
    log_y: bool = False,
) -> CurveSet:
    """1D slices in one panel: the mean over directions with a band of one standard deviation.

    A line has a gap where the loss along any of its directions is not finite, with × at the last finite points. The
    snapshots of a path are markers at their own losses.

    Args:
        chosen: what is shown, under the title.

    Raises:
        UsageError: no slices, or of different metrics.
    """
    if not lines:
        raise UsageError("lines: none")
    if len({line.measured.metric for line in lines}) > 1:
        raise UsageError(f"lines: metrics {', '.join(sorted({line.measured.metric for line in lines}))}; allowed: one")
    curves = [_line_curve(line, order) for order, line in enumerate(lines)]
    curves += [_path_curve(line, order) for order, line in enumerate(lines, start=len(lines)) if line.path is not None]
    panel = Panel("", tuple(curves), lines[0].measured.label, x_label, log_y=log_y)
    panels, cut = with_ranges([panel], [0])
    named = len(lines) > 1
    notes = [_line_note(line, named) for line in lines]
    own = [note for line in lines for note in line.measured.notes()]
    return CurveSet(title, panels, chosen=chosen, notes=join_notes(*notes, *cut, *own))


def _line_curve(line: LineSlice, order: int) -> Curve:
    draws = np.atleast_2d(line.loss)
    draws = np.where(np.isfinite(draws), draws, np.nan)
    mean = draws.mean(axis=0)
    half, band = line.standard_error, "±1 standard error over examples"
    if len(draws) > 1:
        half, band = draws.std(axis=0, ddof=1), "±1 sd over directions"
    good = np.isfinite(mean)
    beside = good & ~(np.append(good[1:], True) & np.insert(good[:-1], 0, True))
    ends = tuple(
        End(float(line.x[i]), float(mean[i]), "diverged", f"not finite beyond {line.x[i]:.4g}")
        for i in np.flatnonzero(beside)
    )
    lower, upper = (None, None) if half is None else (mean - half, mean + half)
    n = np.full(len(mean), len(draws))
    return Curve(
        line.label, line.color, line.x, mean, line.dash, lower, upper, band if half is not None else "", n, ends=ends,
        order=order,
    )  # fmt: skip


def _path_curve(line: LineSlice, order: int) -> Curve:
    """The snapshots at their own losses."""
    path = line.path
    assert path is not None
    loss = np.where(np.isfinite(path.loss), path.loss, np.nan)
    lower = upper = None
    if path.standard_error is not None:
        lower, upper = loss - path.standard_error, loss + path.standard_error
    x, band = path.coordinates, "±1 standard error over examples" if lower is not None else ""
    if x[-1] < x[0]:  # a name at a line's end belongs on the right
        x, loss = x[::-1], loss[::-1]
        lower, upper = (None, None) if lower is None or upper is None else (lower[::-1], upper[::-1])
    name = f"{line.label}: its snapshots"
    return Curve(name, line.color, x, loss, "dot", lower, upper, band, markers=True, order=order)


def _line_note(line: LineSlice, named: bool) -> str:
    draws = np.atleast_2d(line.loss)
    name = f"{line.label}: " if named else ""
    if len(draws) > 1:
        note = f"Mean over {len(draws)} random directions, band ±1 sd over directions."
    else:
        note = "One direction" + (", band ±1 standard error over examples." if _has_error(line) else ".")
    bad = int((~np.isfinite(draws)).any(axis=0).sum())
    note += f" No finite loss at {bad} of {len(line.x)} points (gaps, × at their edges)." if bad else ""
    if line.path is not None:
        away = line.path.distance[np.isfinite(line.path.distance)]
        note += (
            f" Markers are snapshots of steps {line.path.steps[0]} to {line.path.steps[-1]} with their own loss; they "
            f"lie up to {away.max(initial=0):.3g} off the line, so the line is not their loss."
        )
    return name + " ".join([note, *line.notes])


def _has_error(line: LineSlice) -> bool:
    return line.standard_error is not None
