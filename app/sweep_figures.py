"""A sweep on one picture: any number of its runs over ranks and learning rates, and methods compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from app.curve_figures import binned
from landscape.episodes.sweep import compare_methods
from landscape.errors import StoreError
from landscape.plots import Choice, CurveSet, Panel, RunData, summarize
from landscape.plots.curves import Trace
from landscape.plots.data import format_rate, group
from landscape.plots.episode_grid import episode_outcomes
from landscape.plots.style import method_order, method_style
from landscape.plots.summary import RunSummary
from landscape.plots.tiles import Tile, Tiles

THIN_TO = 2000
"""Rows of step metrics above which a figure that smooths them takes means over neighbors."""


@dataclass(frozen=True)
class Measure:
    """A number of a run that a heat map can show."""

    label: str
    of: Callable[[RunData], float]
    help: str
    small_is_dark: bool = False


@lru_cache(maxsize=2000)
def _summary(run: RunData) -> RunSummary:
    """Each run's once: a page of a thousand asks for them whenever something is pressed."""
    return summarize(run)


def _episode(run: RunData, column: str) -> float:
    table = run.episodes
    if table is None or not {"column", column} <= set(table) or not len(table):
        return math.nan
    rows = table.loc[table["column"] == "loss_clean"]
    return float(rows[column].iloc[0]) if len(rows) else math.nan


def _sharpness(run: RunData) -> float:
    peaks = {peak.space: peak.highest for peak in _summary(run).peaks}
    return peaks.get("adapter", math.nan)


MEASURES: dict[str, Measure] = {
    "rise": Measure(
        "rise", lambda run: _episode(run, "rise"),
        "Largest rise of the smoothed training loss over its running minimum, nats/token.",
    ),
    "p": Measure(
        "p-value", lambda run: _episode(run, "run_p_value"),
        "How surprising the run's clearest rebound is if the loss only fell, up to noise. Small: a rebound.", True,
    ),
    "eval": Measure(
        "eval loss", lambda run: _summary(run).held_out.value, "Last loss on held-out examples, nats/token."
    ),
    "gap": Measure(
        "gap", lambda run: _summary(run).gap.value, "Last eval loss minus probe loss, nats/token."
    ),
    "lambda_max": Measure("highest λmax", _sharpness, "Highest sharpness measured along the run, adapter space."),
}  # fmt: skip


def heat_map(runs: Sequence[RunData], measure: str) -> CurveSet:
    """A measure over rank and learning rate, a panel a method: means over seeds.

    A frame marks each rank's best learning rate by its mean eval loss, among rates at which no run diverged.
    """
    kind = MEASURES[measure]
    cells = {cell: own for cell, own in group(runs).items() if cell.learning_rate is not None}
    rates = sorted({cell.learning_rate or 0.0 for cell in cells})
    ranks = sorted({cell.rank for cell in cells if cell.rank is not None}) or [0]
    values = {cell: _mean([kind.of(run) for run in own]) for cell, own in cells.items()}
    losses = {
        cell: _mean([_summary(run).held_out.value for run in own])
        for cell, own in cells.items()
        if all(run.state != "diverged" for run in own)
    }
    known = [abs(value) for value, _ in values.values() if math.isfinite(value)]
    largest = max(known, default=1.0) or 1.0
    panels = []
    for method in sorted({cell.method for cell in cells}, key=method_order):
        tiles = []
        best = {}
        for cell, (loss, _) in losses.items():
            if cell.method == method and math.isfinite(loss) and loss < best.get(cell.rank, (math.inf,))[0]:
                best[cell.rank] = (loss, cell)
        for cell, own in cells.items():
            value, sd = values[cell]
            if cell.method != method or not math.isfinite(value):
                continue
            share = math.sqrt(min(1.0, abs(value) / largest))
            lost = sum(run.state == "diverged" for run in own)
            lines = [f"{value:.3g}", f"N = {len(own)}", *([f"{lost} diverged"] if lost else [])]
            spread = f" ± {sd:.2g} (sd)" if math.isfinite(sd) else ""
            hover = f"{method_style(method).label}, r = {cell.rank}, lr = {format_rate(cell.learning_rate)}: "
            hover += f"{kind.label} {value:.4g}{spread}, {len(own)} runs"
            numbers = {"rank": cell.rank or math.nan, "learning_rate": cell.learning_rate or math.nan, "value": value}
            for line in [ranks.index(cell.rank)] if cell.rank in ranks else range(len(ranks)):
                is_best = best.get(cell.rank, (0, None))[1] is cell
                column = rates.index(cell.learning_rate or 0.0)
                tiles.append(
                    Tile(
                        column, line, 1 - share if kind.small_is_dark else share, tuple(lines), is_best, hover, numbers
                    )
                )
        names = tuple(map(format_rate, rates)), tuple("–" if rank == 0 else str(rank) for rank in ranks)
        panels.append(
            Panel(method_style(method).label, (), "rank", x_label="learning rate", tiles=Tiles(*names, tuple(tiles)))
        )
    shown = [panel for panel in panels if panel.tiles and panel.tiles.tiles]
    scale = "darker: smaller" if kind.small_is_dark else "darker: larger"
    notes = (
        f"{kind.help} Tiles: mean over N seeds, {scale} (square root). Framed: each rank's best learning rate by mean "
        "eval loss, among those at which no run diverged.",
    )
    title = f"{kind.label[0].upper()}{kind.label[1:]} by rank and learning rate"
    return CurveSet(title, tuple(shown), columns=max(1, min(3, len(shown))), share_y="none", notes=notes)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of those that are finite."""
    finite = [value for value in values if math.isfinite(value)]
    sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return (float(np.mean(finite)) if finite else math.nan), sd


def comparable(runs: Sequence[RunData]) -> Choice:
    """The tested runs of one model, task and alpha rule, in one setting a method, and which those are.

    Raises:
        StoreError: no run was tested.
    """
    tested = [run for run in runs if run.episodes is not None]
    if not tested:
        raise StoreError("no run was tested for rebounds")
    methods = list(dict.fromkeys(run.method for run in tested))
    return Choice.of("episodes", tested, methods=methods, required=methods).alpha_rule(1)


def comparison_table(runs: Sequence[RunData], column: str, alpha: float) -> pd.DataFrame:
    """Methods in pairs on shared seeds: at fixed settings, and each at its own best learning rate."""
    outcomes, _ = episode_outcomes(runs, column)
    settings = {"fixed": "fixed config", "best": "each at its best rate"}
    rows = [
        {
            "pair": f"{method_style(one.first).label} − {method_style(one.second).label}",
            "setting": settings[one.setting], "difference": one.result.difference, "low": one.result.low,
            "high": one.result.high, "level": one.result.level, "p": one.result.p_value, "seeds": one.result.pairs,
            "enough": "" if not one.result.too_few else f"too few: p cannot be below {one.result.smallest_p:.2g}",
        }
        for one in compare_methods(outcomes, alpha)
        if one.measure == "rise" and one.setting in settings
    ]  # fmt: skip
    return pd.DataFrame(rows)


def thinned(run: RunData) -> RunData:
    """The run with means over neighboring steps in place of long metrics, for figures that show a smoothed loss."""
    frame = run.metrics
    if len(frame) <= THIN_TO or "step" not in frame:
        return run
    width = math.ceil(len(frame) / (THIN_TO // 2))
    steps = frame["step"].to_numpy(float)
    columns = {}
    for name in frame.columns:
        if name != "step" and pd.api.types.is_numeric_dtype(frame[name]):
            trace = binned(Trace(steps, frame[name].to_numpy(float)), width)
            columns["step"], columns[name] = trace.x, trace.y
    return replace(run, metrics=pd.DataFrame(columns))
