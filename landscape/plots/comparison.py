"""Methods side by side as a table that is drawn: final metrics at one learning rate and at each one's best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from landscape.plots.build import join_notes, loss_unit
from landscape.plots.curves import CurveSet, Panel
from landscape.plots.data import Cell, RunData, cell_labels, floats, format_rate, group
from landscape.plots.summary import NOTHING, Estimate, best_learning_rates, mean_over, without_rate
from landscape.plots.tiles import Tile, Tiles

METRICS: dict[str, tuple[str, bool]] = {
    "loss": ("eval loss", False),
    "accuracy": ("accuracy", True),
    "f1": ("F1", True),
    "matthews_correlation": ("Matthews correlation", True),
    "exact_match": ("exact match", True),
    "token_accuracy": ("token accuracy", True),
}
"""Column of the evaluations → its name, and whether more of it is better."""

MOST_ROWS = 40
_LIGHT, _SPAN = 0.08, 0.6
"""Of the color scale: where the worst tile is, and how far from it the best."""


@dataclass(frozen=True)
class Score:
    """One setting at one learning rate.

    Attributes:
        metrics: by column, the mean of the finished runs' last evaluation with its standard deviation over seeds.
        seconds: of an optimizer step, the tenth percentile over all of theirs.
        finished, diverged: number of runs; those that diverged are in no mean.
    """

    cell: Cell
    metrics: Mapping[str, Estimate]
    seconds: float
    finished: int
    diverged: int

    @property
    def held_out(self) -> Estimate:
        """What decides which rate is best."""
        return self.metrics["loss"]


@dataclass(frozen=True)
class Row:
    """A setting apart from the learning rate: its score at the common rate and at its best; None where there is none.

    ``at_edge``: the best rate is the lowest or highest of several tried, so a better one may lie beyond. ``seconds`` a
    step are the least of all rates: on them it does not depend, on what else the machine did it does.
    """

    label: str
    common: Score | None
    best: Score | None
    at_edge: bool
    seconds: float


def own_split(run: RunData) -> str:
    """``eval``; of a method that keeps an average, the average's evaluations: they are what it is for."""
    splits = set(run.evaluations["split"]) if "split" in run.evaluations else set()
    return min((split for split in splits if split.startswith("eval-")), default="eval")


def final_metric(run: RunData, column: str) -> Estimate:
    """A metric of the last held-out evaluation, with its standard error over examples."""
    frame = run.evaluations
    if any(name not in frame for name in ("step", "split", column)):
        return NOTHING
    rows = frame.loc[frame["split"] == own_split(run)].sort_values("step", kind="stable")
    if not len(rows):
        return NOTHING
    error = "standard_error" if column == "loss" else f"{column}_standard_error"
    return Estimate(float(floats(rows, column)[-1]), float(floats(rows, error)[-1]) if error in rows else math.nan)


def scores(runs: Sequence[RunData]) -> list[Score]:
    """One for each cell with an evaluation or a diverged run, in the order of `group`."""
    found = []
    for cell, members in group(runs).items():
        done = [run for run in members if run.state == "done"]
        metrics = {column: mean_over([final_metric(run, column) for run in done]) for column in METRICS}
        diverged = sum(run.state == "diverged" for run in members)
        steps = [floats(run.metrics, "seconds") for run in done if "seconds" in run.metrics]
        timed = np.concatenate(steps) if steps else np.empty(0)
        timed = timed[np.isfinite(timed)]  # imported runs have no times
        seconds = float(np.quantile(timed, 0.1)) if len(timed) else math.nan
        if metrics["loss"] or diverged:
            found.append(Score(cell, metrics, seconds, len(done), diverged))
    return found


def common_rate(found: Sequence[Score]) -> float | None:
    """Plain LoRA's best learning rate, as one has it before trying another method; else the one of most settings."""
    lora = [score for score in found if score.cell.method == "lora"]
    best = min(best_learning_rates(lora).values(), key=lambda score: score.held_out.value, default=None)
    if best is not None:
        return best.cell.learning_rate
    rates = [score.cell.learning_rate for score in found if score.cell.learning_rate is not None]
    return max(sorted(set(rates)), key=rates.count, default=None)


def rows(found: Sequence[Score], rate: float | None) -> list[Row]:
    """One for each setting apart from the learning rate, methods in their order."""
    best = best_learning_rates(found)
    keys = list(dict.fromkeys(without_rate(score.cell) for score in found))
    labels = cell_labels(keys)
    made = []
    for key in keys:
        own = [score for score in found if without_rate(score.cell) == key]
        tried = sorted({score.cell.learning_rate or 0.0 for score in own})
        common = next((score for score in own if score.cell.learning_rate == rate), None)
        chosen = best.get(key)
        edge = chosen is not None and len(tried) > 1 and chosen.cell.learning_rate in (tried[0], tried[-1])
        seconds = [score.seconds for score in own if math.isfinite(score.seconds)]
        made.append(Row(labels[key], common, chosen, edge, min(seconds, default=math.nan)))
    return made


def method_comparison(runs: Sequence[RunData], *, title: str = "Methods compared") -> CurveSet:
    """A table of one model's and one task's runs: a row a setting, a panel a metric, and what it took.

    Each metric stands at the common learning rate (`common_rate`) and at the setting's own best one by mean eval loss,
    among those at which no run diverged. Within a panel darker is better.
    """
    found = scores(runs)
    rate = common_rate(found)
    everything = rows(found, rate)
    table = _best_rows(everything)
    shown = [column for column in METRICS if any(score.metrics[column] for score in found)]
    names = tuple(row.label for row in reversed(table))
    panels = [_metric_panel(table, names, column, rate, loss_unit(group(runs))) for column in shown]
    panels.append(_cost_panel(table, names))
    return CurveSet(
        title,
        tuple(panels),
        columns=len(panels),
        share_y="all",
        chosen=_scale(runs),
        notes=_notes(runs, found, table),
        missing=_left_out(len(everything) - len(table)),
    )


def _best_rows(table: list[Row]) -> list[Row]:
    """At most `MOST_ROWS` of them, those of the lowest eval losses, in their order."""
    ranked = sorted(table, key=lambda row: math.inf if row.best is None else row.best.held_out.value)
    kept = {id(row) for row in ranked[:MOST_ROWS]}
    return [row for row in table if id(row) in kept]


def _left_out(count: int) -> tuple[str, ...]:
    return (f"{count} settings of higher eval loss than these.",) if count else ()


def _metric_panel(table: Sequence[Row], names: tuple[str, ...], column: str, rate: float | None, unit: str) -> Panel:
    name, more_is_better = METRICS[column]
    headings = {"best rate": "each at its best rate"}
    if rate is not None:
        headings = {"common rate": f"lr = {format_rate(rate)}", **headings}
    picked = [[row.common if at == "common rate" else row.best for at in headings] for row in table]
    values = [s.metrics[column].value for scores in picked for s in scores if s is not None and s.metrics[column]]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    tiles = []
    for line, (row, scores_) in enumerate(zip(reversed(table), reversed(picked), strict=True)):
        for place, (at, score) in enumerate(zip(headings, scores_, strict=True)):
            estimate = score.metrics[column] if score is not None else NOTHING
            share = (estimate.value - low) / (high - low) if estimate and high > low else 0.0
            shade = _LIGHT + _SPAN * (share if more_is_better else 1 - share) if estimate else 0.0
            tiles.append(_tile(place, line, shade, row.label, {"metric": name, "at": at}, score, estimate))
    heading = f"{name}, {unit}" if column == "loss" else name
    return Panel(heading, (), "", x_label="", tiles=Tiles(tuple(headings.values()), names, tuple(tiles)))


def _tile(
    column: int, line: int, shade: float, label: str, what: Mapping[str, str], score: Score | None, estimate: Estimate
) -> Tile:
    lost, finished, rate = (0, 0, None) if score is None else (score.diverged, score.finished, score.cell.learning_rate)
    text = _spelled(estimate) if estimate else "diverged" if lost else "–"
    text += " †" if estimate and lost else ""
    numbers = {
        "method": label, **what, "value": estimate.value, "sd": estimate.error, "n": finished, "diverged": lost,
        "learning_rate": math.nan if rate is None else rate,
    }  # fmt: skip
    hover = f"{label}, lr = {format_rate(rate)}: {what['metric']} {text} over {finished} seeds; {lost} diverged"
    return Tile(column, line, shade, (text,), hover=hover, numbers=numbers)


def _spelled(estimate: Estimate) -> str:
    """Mean and standard deviation, to the three decimals that a tile is wide; the CSV has them all."""
    if not math.isfinite(estimate.error):
        return f"{estimate.value:.3f}"
    if estimate.error == 0:
        return f"{estimate.value:.3f} ± 0"
    return f"{estimate.value:.3f} ± {estimate.error:.3f}"


def _cost_panel(table: Sequence[Row], names: tuple[str, ...]) -> Panel:
    tiles = []
    for line, row in enumerate(reversed(table)):
        if row.best is None:
            continue
        rate, seconds = row.best.cell.learning_rate, row.seconds
        rate_text = format_rate(rate) + (" ‡" if row.at_edge else "")
        cells = [("learning rate", rate_text, math.nan if rate is None else rate)]
        cells.append(("seconds a step", _time(seconds), seconds))
        for column, (name, text, value) in enumerate(cells):
            numbers = {"method": row.label, "metric": name, "at": "best rate", "value": value, "n": row.best.finished}
            tiles.append(Tile(column, line, 0.0, (text,), hover=f"{row.label}: {name} {text}", numbers=numbers))
    return Panel("at the best rate", (), "", x_label="", tiles=Tiles(("rate", "time a step"), names, tuple(tiles)))


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _scale(runs: Sequence[RunData]) -> str:
    """Model, data, steps and hardware of these runs, in words."""
    configs = [run.config for run in runs]

    def each(key: str) -> str:
        values = dict.fromkeys(config.get(key) for config in configs if config.get(key) is not None)
        return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)

    batches = {
        int(config["per_device_train_batch_size"]) * int(config["gradient_accumulation_steps"] or 1)
        for config in configs
        if config.get("per_device_train_batch_size")
    }
    named = {
        "model": each("model"),
        "task": each("task"),
        "rank": each("rank"),
        "α": each("alpha"),
        "steps": each("max_steps"),
        "examples a step": _listed(batches),
        "held-out examples": _listed({int(count) for run in runs for count in _held_out(run)}),
    }
    machines = dict.fromkeys(text for run in runs if (text := _machine(run)))
    return "; ".join([*(f"{name} {value}" for name, value in named.items() if value), *machines])


def _held_out(run: RunData) -> Iterable[float]:
    frame = run.evaluations
    if any(name not in frame for name in ("split", "num_examples")):
        return []
    counts = floats(frame.loc[frame["split"] == "eval"], "num_examples")
    return counts[np.isfinite(counts)].tolist()  # logs of others do not say how many


def _machine(run: RunData) -> str:
    device, threads = run.environment.get("device"), run.environment.get("threads")
    if device is None:
        return ""
    return f"CPU, {threads} thread{'s' * (threads != 1)}" if device == "cpu" else str(device)


def _listed(values: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(values)))


def _notes(runs: Sequence[RunData], found: Sequence[Score], table: Sequence[Row]) -> tuple[str, ...]:
    counts = sorted({score.finished + score.diverged for score in found}) or [0]
    seeds = f"N = {counts[0]}" if counts[:1] == counts else f"N = {counts[0]} to {counts[-1]}"
    seeds += " seeds" if counts[-1] > 1 else " seed: no spread is known"
    few = " Two seeds give an idea of the spread and cannot tell methods apart." if counts[-1] == 2 else ""
    errors = [final_metric(run, "accuracy").error for run in runs]
    finite = [error for error in errors if math.isfinite(error)]
    rates = sorted({score.cell.learning_rate for score in found if score.cell.learning_rate is not None})
    averaged = sorted({own_split(run).removeprefix("eval-") for run in runs if own_split(run) != "eval"})
    return join_notes(
        f"Mean ± sd over {seeds}; at the last step. Darker is better, within a panel.{few}",
        "Left columns: LoRA's best learning rate for all. Right: each at its best of "
        f"{', '.join(map(format_rate, rates))}, by mean eval loss on the same held-out examples.",
        f"One run's accuracy has a standard error of {float(np.median(finite)):.3f} over its examples."
        if finite
        else "",
        f"Of runs with an average ({', '.join(averaged)}) the average was evaluated." if averaged else "",
        "Time a step: the tenth percentile of the runs at the rate at which they were fastest.",
        "† some of the runs diverged; the mean is over the others."
        if any(s is not None and s.diverged and s.finished for row in table for s in (row.common, row.best))
        else "",
        "‡ the lowest or highest rate tried: a better one may lie beyond." if any(row.at_edge for row in table) else "",
    )
