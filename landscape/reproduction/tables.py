"""The papers' tables and ablations as figures: our number in each tile, the paper's beneath it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from landscape.errors import StoreError
from landscape.plots import Curve, CurveSet, Panel, RunData, method_style
from landscape.plots.style import INK
from landscape.plots.tiles import Tile, Tiles
from landscape.reproduction.records import SKIPPED
from landscape.reproduction.variants import Sorted

SPREADS = 4.0
"""A column's shades span at least so many of its mean standard deviations over seeds."""


@dataclass(frozen=True)
class Number:
    """One number of a table with its standard deviation over ``n`` seeds, and the paper's."""

    value: float
    sd: float = math.nan
    n: int = 0
    paper: float = math.nan

    @classmethod
    def of(cls, values: np.ndarray, paper: float = math.nan) -> Number:
        """Mean over the runs."""
        if not len(values):
            return cls(math.nan, paper=paper)
        sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), sd, len(values), paper)


def score_table(
    figure: str, runs: Sequence[RunData], names: Sequence[str], title: str, needs: Sequence[str] = ()
) -> CurveSet:
    """One row a variant, one column a task, the mean over tasks last; the best of each column has a frame.

    Runs that logged no metric are shown by their held-out losses, and the title says so.

    Raises:
        StoreError: fewer than two of the experiments' variants have runs, or none of those that it ``needs``.
    """
    chosen = _sorted(figure, runs, names, needs)
    unit, sign = ("%", 1) if chosen.has_scores else ("nats/label", -1)
    table = {
        (name, task): Number.of(chosen.values(name, task), chosen.paper(name, task) if chosen.has_scores else math.nan)
        for name in chosen.names
        for task in chosen.tasks
    }
    columns = list(chosen.tasks)
    if len(columns) > 1:
        columns.append("mean")
        for name in chosen.names:
            table[name, "mean"] = _mean(chosen, name, [table[name, task] for task in chosen.tasks])
    tiles = tile_table(table, chosen.names, columns, dict.fromkeys(columns, sign))
    what = (
        "Tiles: mean ± sd over seeds of the task's metric on the eval split in %; beneath, the paper's number, which "
    )
    what += "is of another model and length of training unless the settings above say otherwise."
    loss = "Tiles: mean ± sd over seeds of the last eval loss, nats a counted label: these runs logged no metric."
    return CurveSet(
        title if chosen.has_scores else f"{title}: held-out losses",
        (Panel("", (), y_label="method", x_label="", tiles=tiles),),
        share_y="none",
        chosen=chosen.chosen(),
        notes=(
            what if chosen.has_scores else loss,
            f"Framed: best of its column ({unit}). Darker: better, beside the seeds' spread.",
        ),
        missing=chosen.missing(),
    )


def cost_table(figure: str, runs: Sequence[RunData], names: Sequence[str], title: str) -> CurveSet:
    """One row a variant: milliseconds a step, peak memory, score; each also as a multiple of LoRA's.

    Raises:
        StoreError: fewer than two of the experiments' variants have runs, or none of those that it ``needs``.
    """
    chosen = _sorted(figure, runs, names, ())
    table: dict[tuple[str, str], Number] = {}
    for name in chosen.names:
        members = [run for (own, _), found in chosen.runs.items() if own == name for run in found]
        table[name, "ms a step"] = Number.of(np.array([1000 * s for run in members if (s := _seconds(run)) > 0]))
        table[name, "peak memory, MB"] = Number.of(np.array([m / 1e6 for run in members if (m := _memory(run)) > 0]))
        for task in chosen.tasks:
            table[name, _metric(chosen, task)] = Number.of(chosen.values(name, task))
    columns = list(dict.fromkeys(column for _, column in table))
    signs = {column: -1 if column in columns[:2] or not chosen.has_scores else 1 for column in columns}
    return CurveSet(
        title,
        (Panel("", (), y_label="method", x_label="", tiles=tile_table(table, chosen.names, columns, signs)),),
        share_y="none",
        chosen=chosen.chosen(),
        notes=(
            f"Tiles: mean ± sd over runs. A step's time is the run's median without its first {SKIPPED}; memory is the "
            "device's, or without one the process's, peak while training. Framed: best of its column.",
        ),
        missing=chosen.missing(),
    )


def ablation(figure: str, runs: Sequence[RunData], names: Sequence[str], title: str, needs: Sequence[str]) -> CurveSet:
    """One panel a task with a point a variant and ±1 sd over seeds; the paper's means in a panel of their own.

    Raises:
        StoreError: fewer than two of the experiments' variants have runs, or none of those that it ``needs``.
    """
    chosen = _sorted(figure, runs, names, needs)
    unit = "score, %" if chosen.has_scores else "eval loss, nats/label"
    table = {task: [Number.of(chosen.values(name, task)) for name in chosen.names] for task in chosen.tasks}
    panels = [_points(chosen, task, row, unit) for task, row in table.items()]
    theirs = [_paper_mean(chosen, name) for name in chosen.names]
    if any(math.isfinite(number.value) for number in theirs):
        panels.append(_points(chosen, "the paper's mean over its tasks", theirs, "score, %", INK))
    return CurveSet(
        title,
        tuple(panels),
        columns=min(3, len(panels)),
        share_y="none",
        chosen=chosen.chosen(),
        notes=("Points: means over seeds; bars: ±1 sd over seeds. Axes differ and do not begin at 0.",),
        missing=chosen.missing(),
    )


def tile_table(
    table: Mapping[tuple[str, str], Number], rows: Sequence[str], columns: Sequence[str], signs: Mapping[str, int]
) -> Tiles:
    """The numbers as tiles, the first row on top; ``signs`` is 1 where more is better.

    Shades run from the worst to the best of a column, or over `SPREADS` standard deviations where these are more.
    """
    tiles = []
    for x, column in enumerate(columns):
        values = {row: signs[column] * table[row, column].value for row in rows if (row, column) in table}
        known = [value for value in values.values() if math.isfinite(value)]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        # Differences within the seeds' own spread should not look like differences.
        deviations = [table[row, column].sd for row in values if math.isfinite(table[row, column].sd)]
        span = max(high - low, SPREADS * float(np.mean(deviations)) if deviations else 0.0)
        middle = (low + high) / 2
        for y, row in enumerate(rows):
            number = table.get((row, column), Number(math.nan))
            share = 0.39 + 0.62 * ((values.get(row, low) - middle) / span if span > 0 else 0.0)
            best = high > low and math.isfinite(number.value) and values[row] == high
            tiles.append(_tile(number, row, column, x, len(rows) - 1 - y, share if number.n else 0.0, best))
    return Tiles(tuple(columns), tuple(reversed(rows)), tuple(tiles))


def _tile(number: Number, row: str, column: str, x: int, y: int, share: float, best: bool) -> Tile:
    ours = "–" if math.isnan(number.value) else f"{number.value:.4g}"
    if math.isfinite(number.sd):
        ours += f" ± {number.sd:.0f}" if number.sd >= 100 else f" ± {number.sd:.2g}"
    lines = (ours,) if math.isnan(number.paper) else (ours, f"paper {number.paper:.4g}")
    hover = "; ".join([f"{row}, {column}: {ours} over {number.n} runs", *lines[1:]])
    numbers = {"value": number.value, "sd": number.sd, "n": number.n, "paper": number.paper}
    return Tile(x, y, share, lines, best, hover, numbers)


def _points(chosen: Sorted, title: str, row: Sequence[Number], unit: str, color: str | None = None) -> Panel:
    curves = []
    for x, (name, number) in enumerate(zip(chosen.names, row, strict=True)):
        if math.isfinite(number.value):
            ink = color or method_style(str(chosen.variants[name].get("method"))).color
            sd = 0.0 if math.isnan(number.sd) else number.sd
            ends = (np.array([number.value - sd]), np.array([number.value + sd]))
            curve = Curve(
                name, ink, np.array([float(x)]), np.array([number.value]), lower=ends[0], upper=ends[1],
                band="±1 sd over seeds", n=np.array([number.n]), markers=True, order=x, bars=True,
            )  # fmt: skip
            curves.append((curve, ends))
    span = None
    if curves:
        low, high = (pick(float(ends[i][0]) for _, ends in curves) for i, pick in enumerate((min, max)))
        margin = 0.15 * (high - low) or 0.5
        span = (low - margin, high + margin)
    ticks = tuple((float(x), name) for x, name in enumerate(chosen.names))
    return Panel(title, tuple(curve for curve, _ in curves), unit, x_label="", x_ticks=ticks, y_range=span)


def _sorted(figure: str, runs: Sequence[RunData], names: Sequence[str], needs: Sequence[str]) -> Sorted:
    chosen = Sorted(runs, names)
    if len(chosen.names) < 2 or (needs and not set(needs) & set(chosen.names)):
        wanted = needs or list(chosen.variants)
        have = ", ".join(chosen.names) or "none"
        raise StoreError(
            f"figure {figure} needs evaluated runs of {'one of ' if needs else 'two of '}{', '.join(wanted)}"
            f"{' beside others' if needs else ''}; the choice from the store has {have} "
            f"(landscape reproduce {names[0]} trains them)"
        )
    return chosen


def _mean(chosen: Sorted, name: str, row: Sequence[Number]) -> Number:
    """Over tasks; a variant that lacks one has none. The sd takes tasks as independent."""
    values = np.array([number.value for number in row])
    sd = float(np.linalg.norm([number.sd for number in row])) / len(row)
    paper = float(np.mean([chosen.paper(name, task) for task in chosen.tasks])) if chosen.has_scores else math.nan
    return Number(float(values.mean()), sd, min(number.n for number in row), paper)


def _paper_mean(chosen: Sorted, name: str) -> Number:
    found = [v for one in chosen.experiments for v in one.paper_values if v.variant == name]
    values = [v.value for v in found]
    return Number(float(np.mean(values)), n=len(values)) if values else Number(math.nan)


def _seconds(run: RunData) -> float:
    values = run.metrics["seconds"].to_numpy(dtype=float) if "seconds" in run.metrics else np.array([])
    later = values[SKIPPED:] if len(values) > 2 * SKIPPED else values
    return float(np.median(later)) if len(later) else math.nan


def _memory(run: RunData) -> float:
    return float(run.peak_memory.get("cuda", run.peak_memory.get("rss", math.nan)))


def _metric(chosen: Sorted, task: str) -> str:
    return f"{task}, %" if chosen.has_scores else f"{task} loss, nats"
