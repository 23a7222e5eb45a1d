"""Rebounds over a grid of ranks and learning rates: a heat map a method, and methods compared on paired seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from landscape.episodes.sweep import (
    CellOutcome,
    MethodComparison,
    Outcome,
    cell_outcomes,
    compare_methods,
)
from landscape.episodes.verdicts import cells_verdict, comparison_verdict
from landscape.errors import StoreError
from landscape.plots.build import join_notes, loss_unit
from landscape.plots.curves import Curve, CurveSet, Panel
from landscape.plots.data import RunData, format_rate, group, spell
from landscape.plots.style import INK, method_order, method_style, shade
from landscape.plots.tiles import Tile, Tiles

_HUE = "#0072b2"
_OFFSETS = 0.5
"""Of the distance between two learning rates: what the bars of all ranks at one of them take."""
_ADJUSTED = {"none": "", "base": ", adjusted by the base model's", "siblings": ", adjusted by sibling runs'"}


def episode_outcomes(runs: Sequence[RunData], column: str = "loss_clean") -> tuple[list[Outcome], str]:
    """What the runs' tables of episodes say of a column, and by what it was adjusted: as most runs' were.

    Raises:
        StoreError: no run has been tested for this column.
    """
    tested: list[tuple[RunData, str, list[dict[str, Any]]]] = []
    for run in runs:
        if run.episodes is not None and Outcome.is_known(run.config, run.state):
            rows = [row for row in _records(run) if row["column"] == column]
            names = dict.fromkeys(str(row["adjust"]) for row in rows)
            tested += [(run, name, [row for row in rows if row["adjust"] == name]) for name in names]
    if not tested:
        raise StoreError(f"figure episodes needs tested runs: landscape analyze episodes STORE --column {column}")
    counts = Counter(name for _, name, _ in tested)
    # Of equals the raw curve, which asks for no trust in a control.
    adjust = max(counts, key=lambda name: (counts[name], name == "none", name))
    kept = [(run, {**run.config, "method": run.method}, rows) for run, name, rows in tested if name == adjust]
    outcomes = [Outcome.of(run.run_id, config, run.state, rows) for run, config, rows in kept]
    return outcomes, adjust


@lru_cache(maxsize=2000)
def _records(run: RunData) -> list[dict[str, Any]]:
    """The rows of a run's table: a page asks for those of a thousand runs whenever something is pressed."""
    return [] if run.episodes is None else run.episodes.to_dict("records")  # type: ignore[return-value]


def episode_grid(
    runs: Sequence[RunData],
    *,
    column: str = "loss_clean",
    alpha: float = 0.05,
    title: str = "Rebounds of the training loss by rank and learning rate",
) -> CurveSet:
    """Heat maps of the largest rise, one a method, and below them the differences of every two methods.

    A tile holds the mean rise over seeds, Fisher's combined p-value and how many of its runs rebound; a frame marks
    those with a q-value of at most alpha. A bar is the interval that inverts the exact sign-flip test on paired seeds.

    Raises:
        StoreError: the runs were not tested.
    """
    outcomes, adjust = episode_outcomes(runs, column)
    unit = loss_unit(group(runs))
    cells = cell_outcomes(outcomes, alpha)
    comparisons = [one for one in compare_methods(outcomes, alpha) if one.measure == "rise"]
    methods = sorted({cell.method for cell in cells}, key=method_order)
    panels = [_heat_map(cells, method, alpha) for method in methods]
    panels += _comparison_panels(comparisons, cells, unit)
    said = [cells_verdict(cells, method, alpha, _name) for method in methods]
    said += [comparison_verdict(one, alpha, _name) for one in comparisons if one.setting == "fixed"]
    return CurveSet(
        title=title,
        panels=tuple(panels),
        columns=len(methods),
        share_y="none",
        notes=join_notes(
            f"Tiles: mean over seeds of the largest rise of the smoothed {column}{_ADJUSTED[adjust]} over its running "
            f"minimum after the warm-up, {unit}; Fisher's combined p; runs that rebound (q ≤ {alpha:g}) of all runs. "
            f"Framed: q ≤ {alpha:g} over the tiles. Darker: larger (square root).",
            _interval_note(comparisons),
            *said,
        ),
    )


def _name(method: str) -> str:
    return method_style(method).label


def _heat_map(cells: Sequence[CellOutcome], method: str, alpha: float) -> Panel:
    """Axes are those of all methods, so that tiles of one place are one cell."""
    rates = sorted({cell.learning_rate for cell in cells})
    ranks: list[int | None] = [*sorted({cell.rank for cell in cells if cell.rank is not None})] or [None]
    largest = max([1e-12, *(cell.rise for cell in cells)])
    tiles = []
    for cell in cells:
        if cell.method == method:
            # Full fine-tuning has no rank: its runs are in every row.
            rows = [row for row, rank in enumerate(ranks) if cell.rank in (rank, None)]
            column, share = rates.index(cell.learning_rate), math.sqrt(cell.rise / largest)
            tiles += [_tile(cell, column, row, share, alpha) for row in rows]
    return Panel(
        _name(method),
        (),
        y_label="rank",
        x_label="learning rate",
        tiles=Tiles(
            tuple(format_rate(rate) for rate in rates),
            tuple("-" if rank is None else str(rank) for rank in ranks),
            tuple(tiles),
        ),
    )


def _tile(cell: CellOutcome, column: int, row: int, share: float, alpha: float) -> Tile:
    lines = [f"{cell.rise:.2f}", f"p = {cell.p_value:.2g}", f"{cell.rebounding} of {cell.runs}"]
    if cell.diverged:
        lines.append(f"{cell.diverged} diverged")
    sd = "" if math.isnan(cell.rise_sd) else f" ± {cell.rise_sd:.3g} (sd)"
    hover = (
        f"{_name(cell.method)}, {spell('rank', cell.rank)}, {spell('learning_rate', cell.learning_rate)}: rise "
        f"{cell.rise:.3g}{sd}, p = {cell.p_value:.2g}, q = {cell.q_value:.2g}; {cell.rebounding} of {cell.runs} runs "
        f"rebound, {cell.diverged} diverged"
    )
    numbers = {
        "rank": math.nan if cell.rank is None else cell.rank, "learning_rate": cell.learning_rate, "n": cell.runs,
        "rise": cell.rise, "rise_sd": cell.rise_sd, "p_value": cell.p_value, "q_value": cell.q_value,
        "rebounding": cell.rebounding, "diverged": cell.diverged,
    }  # fmt: skip
    return Tile(column, row, share, tuple(lines), cell.q_value <= alpha, hover, numbers)


def _comparison_panels(comparisons: Sequence[MethodComparison], cells: Sequence[CellOutcome], unit: str) -> list[Panel]:
    """One panel a pair of methods: its cells by learning rate, then the means over cells."""
    rates = sorted({cell.learning_rate for cell in cells})
    ranks = sorted({cell.rank or 0 for cell in cells})
    known = {c.setting for c in comparisons}
    summaries = {key: text for key, text in (("fixed", "rebounding"), ("best", "best")) if key in known}
    ends = [*(c.result.low for c in comparisons), *(c.result.high for c in comparisons), 0.0]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    ticks = [format_rate(rate) for rate in rates] + list(summaries.values())
    panels = []
    for first, second in dict.fromkeys((c.first, c.second) for c in comparisons):
        own = [c for c in comparisons if (c.first, c.second) == (first, second)]
        curves = []
        for index, rank in enumerate(ranks):
            place = index / (len(ranks) - 1) - 0.5 if len(ranks) > 1 else 0.0
            same = [c for c in own if c.setting == "cell" and (c.rank or 0) == rank]
            at = [rates.index(c.learning_rate) + _OFFSETS * place for c in same]
            label = f"r = {rank}" if rank else "no rank"
            curves.append(_bars(same, at, label, shade(_HUE, 0.9 * (place + 0.5)), index))
        means = [c for c in own if c.setting in summaries]
        at = [len(rates) + list(summaries).index(c.setting) for c in means]
        curves.append(_bars(means, at, "mean over cells", INK, len(ranks)))
        panels.append(
            Panel(
                f"{_name(first)} − {_name(second)}",
                tuple(curve for curve in curves if len(curve.x)),
                y_label=f"difference, {unit}",
                x_label="learning rate; means over cells",
                x_ticks=tuple(enumerate(ticks)),
                zero_line=True,
                y_range=(min(ends) - margin, max(ends) + margin),
            )
        )
    return panels


def _bars(found: Sequence[MethodComparison], at: Sequence[float], label: str, color: str, order: int) -> Curve:
    return Curve(
        label=label,
        color=color,
        x=np.array(at, dtype=float),
        y=np.array([c.result.difference for c in found]),
        lower=np.array([c.result.low for c in found]),
        upper=np.array([c.result.high for c in found]),
        band="exact interval",
        n=np.array([c.result.pairs for c in found], dtype=np.int64),
        markers=True,
        hollow=np.array([c.result.too_few for c in found], dtype=bool),
        order=order,
        bars=True,
    )


def _interval_note(comparisons: Sequence[MethodComparison]) -> str:
    """What the bars are, and at which level."""
    if not comparisons:
        return ""
    # One pair has no interval.
    levels = sorted({c.result.level for c in comparisons if c.result.pairs > 1}) or [0.0]
    pairs = sorted({c.result.pairs for c in comparisons})
    spread = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    level = f"{100 * levels[0]:.3g}" if len(levels) == 1 else f"{100 * levels[0]:.3g} to {100 * levels[-1]:.3g}"
    few = any(c.result.too_few for c in comparisons)
    return (
        f"Bars: mean difference over {spread} paired seeds with the {level} % interval that inverts the exact "
        "sign-flip test. Rebounding: mean over the cells in which a run of either method rebounds. Best: over the "
        "ranks, each method at the rate that the other seeds prefer by their final loss."
        + (" Open circles: too few pairs to reach the level of the test." if few else "")
    )
