"""One run or one cell in numbers: final losses with their errors, gap, sharpness; and final loss by learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from landscape.plots.build import (
    Cells,
    Facets,
    Pen,
    facet_panels,
    join_notes,
    loss_unit,
    seeds_note,
    with_ranges,
)
from landscape.plots.curves import Curve, CurveSet, End
from landscape.plots.data import (
    Cell,
    RunData,
    distinct,
    floats,
    format_rate,
    group,
    run_label,
    split_series,
    step_series,
)
from landscape.plots.evaluation import gap_series
from landscape.plots.sharpness import largest

TAIL = 0.05
"""Share of the steps at a run's end over which its training loss is averaged, at least five steps."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error or standard deviation; NaN where there is none."""

    value: float
    error: float = math.nan

    def __bool__(self) -> bool:
        return math.isfinite(self.value)


NOTHING = Estimate(math.nan)


@dataclass(frozen=True)
class Peak:
    """λmax along one run in one space: at its last measured step and at its highest."""

    space: str
    last: float
    last_step: int
    highest: float
    highest_step: int


@dataclass(frozen=True)
class RunSummary:
    """The row of one run.

    Attributes:
        train: clean training loss averaged over the last `TAIL` of the steps, with the standard error of that mean.
        held_out: last evaluation on the eval split, with its standard error over examples.
        gap: last eval minus probe loss, with its standard error.
        peaks: λmax in each space that was measured.
    """

    run: RunData
    train: Estimate
    held_out: Estimate
    gap: Estimate
    peaks: tuple[Peak, ...]


def summarize(run: RunData) -> RunSummary:
    """The numbers of one run. A diverged or failed run keeps the last that were measured."""
    return RunSummary(
        run,
        final_train_loss(run),
        final_eval_loss(run),
        _last(gap_series(run, "gap").y, gap_series(run, "standard_error").y),
        tuple(_peaks(run)),
    )


def final_train_loss(run: RunData) -> Estimate:
    """Mean clean training loss over the last steps; its error takes the steps' batches as independent."""
    values = step_series(run, "loss_clean").y
    if not len(values):
        return NOTHING
    tail = values[-max(5, math.ceil(TAIL * len(values))) :]
    error = float(tail.std(ddof=1)) / math.sqrt(len(tail)) if len(tail) > 1 else math.nan
    return Estimate(float(tail.mean()), error)


def final_eval_loss(run: RunData) -> Estimate:
    """The last evaluation on the eval split, with its standard error over examples."""
    return _last(split_series(run, "eval").y, split_series(run, "eval", "standard_error").y)


def _last(values: np.ndarray, errors: np.ndarray) -> Estimate:
    if not len(values):
        return NOTHING
    return Estimate(float(values[-1]), float(errors[-1]) if len(errors) else math.nan)


def _peaks(run: RunData) -> list[Peak]:
    frame = largest(run)
    spaces = frame["space"].astype(str).to_numpy()
    steps, values = floats(frame, "step"), floats(frame, "value")
    found = []
    for space in sorted(set(spaces.tolist())):
        kept = (spaces == space) & np.isfinite(values)
        if kept.any():
            order = np.argsort(steps[kept], kind="stable")
            at, value = steps[kept][order], values[kept][order]
            top = int(value.argmax())
            found.append(Peak(space, float(value[-1]), int(at[-1]), float(value[top]), int(at[top])))
    return found


@dataclass(frozen=True)
class CellSummary:
    """Means over the finished runs of one cell with the standard deviation over seeds (NaN for one run)."""

    cell: Cell
    runs: tuple[RunSummary, ...]
    train: Estimate
    held_out: Estimate
    gap: Estimate

    @property
    def diverged(self) -> int:
        """How many of the runs diverged: they are in none of the means."""
        return sum(summary.run.state == "diverged" for summary in self.runs)

    @property
    def finished(self) -> int:
        """How many runs the means are over."""
        return sum(summary.run.state == "done" for summary in self.runs)


def summarize_cells(runs: Sequence[RunData]) -> list[CellSummary]:
    """One row a cell, in the order of `group`."""
    rows = []
    for cell, members in group(runs).items():
        summaries = tuple(summarize(run) for run in members)
        done = [summary for summary in summaries if summary.run.state == "done"]
        means = (mean_over([getattr(summary, name) for summary in done]) for name in ("train", "held_out", "gap"))
        rows.append(CellSummary(cell, summaries, *means))
    return rows


def mean_over(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of those that have a value, with their standard deviation (NaN for one)."""
    values = np.array([estimate.value for estimate in estimates if estimate])
    if not len(values):
        return NOTHING
    return Estimate(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)


class Scored(Protocol):
    """A cell with what decides between learning rates."""

    @property
    def cell(self) -> Cell:
        """All settings but the seeds."""
        ...

    @property
    def held_out(self) -> Estimate:
        """Mean eval loss of the finished runs."""
        ...

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        ...


Row = TypeVar("Row", bound=Scored)


def best_learning_rates(rows: Sequence[Row]) -> dict[Cell, Row]:
    """For each setting apart from the learning rate, the row with the lowest mean eval loss among those in which no run
    diverged; the key is the cell with its learning rate set to 0.
    """
    best: dict[Cell, Row] = {}
    for row in rows:
        key = without_rate(row.cell)
        stable = row.held_out and not row.diverged
        if stable and (key not in best or row.held_out.value < best[key].held_out.value):
            best[key] = row
    return best


def without_rate(cell: Cell) -> Cell:
    """What the cells of one learning-rate sweep share."""
    return Cell(**{**vars(cell), "learning_rate": 0.0})


def learning_rate_curves(
    runs: Sequence[RunData], *, wrap: int = 4, title: str = "Final eval loss by learning rate"
) -> CurveSet:
    """Mean final eval loss of the finished runs against the learning rate, one panel a rank, one line a method.

    Rates at which runs diverged are marked at the top: those runs have no final loss.
    """
    known = [run for run in runs if run.cell.learning_rate is not None]
    cells = group(run for run in known if final_eval_loss(run) or run.state == "diverged")
    facets = Facets.of("rank", cells, wrap)
    sweeps: dict[Cell, list[RunData]] = {}
    for cell, members in cells.items():
        sweeps.setdefault(without_rate(cell), []).extend(members)
    panels = facet_panels(
        sweeps,
        facets,
        lambda members, pen: [_rate_curve(members, pen)],
        y_label=f"final eval loss, {loss_unit(cells)}",
        x_label="learning rate",
        log_x=True,
        x_ticks=_ticks(distinct(cells, "learning_rate")),
    )
    panels, cut = with_ranges(panels, [0] * len(panels))
    notes = join_notes(seeds_note(cells), _diverged_note(cells), *cut)
    return CurveSet(title, panels, facets.columns, notes=notes)


def _ticks(rates: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """At most six of the rates, the ends among them."""
    picked = [rates[round(index)] for index in np.linspace(0, len(rates) - 1, min(6, len(rates)))]
    return tuple((rate, format_rate(rate)) for rate in picked)


def _rate_curve(runs: Sequence[RunData], pen: Pen) -> Curve | None:
    rates = sorted({rate for run in runs if (rate := run.cell.learning_rate) is not None})
    means, sds, counts, ends = [], [], [], []
    for rate in rates:
        here = [run for run in runs if run.cell.learning_rate == rate]
        final = mean_over([final_eval_loss(run) for run in here if run.state == "done"])
        means.append(final.value)
        sds.append(final.error)
        counts.append(sum(run.state == "done" for run in here))
        lost = [run for run in here if run.state == "diverged"]
        if lost:
            seeds = ", ".join(run_label(run) for run in lost)
            ends.append(End(rate, math.inf, "diverged", f"{len(lost)} of {len(here)} runs diverged ({seeds})"))
    mean, sd = np.array(means), np.array(sds)
    if not np.isfinite(mean).any() and not ends:
        return None
    spread = bool(np.isfinite(sd).any())
    return Curve(
        label=pen.label,
        color=pen.color,
        x=np.array(rates),
        y=mean,
        dash=pen.dash,
        order=pen.order,
        hollow=np.isin(rates, [end.x for end in ends]),
        lower=mean - sd if spread else None,
        upper=mean + sd if spread else None,
        band="±1 sd over seeds" if spread else "",
        n=np.array(counts),
        ends=tuple(ends),
        markers=True,
        marker=pen.marker,
    )


def _diverged_note(cells: Cells) -> str:
    lost = sum(run.state == "diverged" for runs in cells.values() for run in runs)
    return (
        f"▲ at the top: rates at which runs diverged ({lost} in all). An open circle is the mean of those left."
        if lost
        else ""
    )
