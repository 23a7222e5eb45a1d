"""Tested rebounds as shaded stretches on figures of training losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from landscape.plots import CurveSet, RunData, method_style
from landscape.plots.curves import Span
from landscape.plots.data import format_rate, spell
from landscape.reproduction.verdict import ALPHA


def with_rebounds(result: CurveSet, runs: Sequence[RunData], axis: str | None = None) -> CurveSet:
    """The figure with the most significant rebound of each method in each panel shaded, and a note.

    Of a cell's seeds the one with the smallest p-value is shaded; the text says how many of them rebound.

    Args:
        runs: that the figure shows.
        axis: what the panels are by (``rank``, ``learning_rate``), as the figure's titles name it.
    """
    tested = [run for run in runs if run.episodes is not None and len(run.episodes)]
    if not tested:
        note = "Rebounds were not tested: landscape analyze episodes STORE."
        return replace(result, notes=(*result.notes, note))
    panels = []
    for panel in result.panels:
        own = [run for run in tested if axis is None or _is_in(run, axis, panel.title)]
        panels.append(replace(panel, spans=tuple(_spans(own))))
    count = sum(_smallest(run) <= ALPHA for run in tested)
    note = (
        f"Shaded: for each line the rebound with the smallest p, from onset to recovery. {count} of {len(tested)} "
        f"tested runs rebound (p ≤ {ALPHA:g}, each run by itself)."
    )
    return replace(result, panels=tuple(panels), notes=(*result.notes, note))


def _is_in(run: RunData, axis: str, title: str) -> bool:
    """Full fine-tuning, which has no rank, is in every panel."""
    value = getattr(run.cell, axis)
    return value is None or spell(axis, value) == title


def _spans(runs: Sequence[RunData]) -> list[Span]:
    cells: dict[Any, list[RunData]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    several = len({(cell.rank, cell.learning_rate) for cell in cells}) > 1
    spans = []
    for cell, members in sorted(cells.items(), key=lambda item: item[0].sort_key):
        first = min(members, key=_smallest)
        found = [row for row in _rows(first) if row["p_value"] <= ALPHA and row["onset"] == row["onset"]]
        if not found:
            continue
        one = min(found, key=lambda row: row["p_value"])
        style = method_style(cell.method)
        name = style.label
        if several:
            name += f" r = {cell.rank}" if cell.rank else f" lr = {format_rate(cell.learning_rate)}"
        hit = sum(_smallest(run) <= ALPHA for run in members)
        text = f"{name}: p = {one['p_value']:.2g}, {hit} of {len(members)} seeds"
        spans.append(Span(one["onset"], one["peak"], one["recovery"], text, style.color))
    return spans


def _rows(run: RunData) -> list[dict[str, Any]]:
    frame = run.episodes
    if frame is None:
        return []
    rows = [row for row in frame.to_dict("records") if row["column"] == "loss_clean"]
    # One test of a curve, not each adjustment's: the adjusted one where there is one, as it is the sharper.
    adjusted = [row for row in rows if row["adjust"] != "none"]
    return [row for row in adjusted or rows if "non_finite" not in row["flags"]]


def _smallest(run: RunData) -> float:
    return min((row["p_value"] for row in _rows(run)), default=1.0)
