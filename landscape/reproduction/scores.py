"""The paper's numbers beside ours, and correlations over cells."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscape.reproduction.choice import by_cell, capped, mean_sd, seed_means, select
from landscape.reproduction.records import Record
from landscape.reproduction.verdict import ALPHA, Judged

if TYPE_CHECKING:
    from landscape.reproduction.experiment import PaperValue

PERMUTATIONS = 2_000


@dataclass(frozen=True)
class Paper:
    """What the paper's table holds, and whether ours is at its scale."""

    values: Sequence[PaperValue] = ()
    same_scale: bool = False
    tasks: Sequence[str] = ()
    """All that the paper's experiment is over: a mean that it prints is over these."""

    def of(self, variant: str, tasks: Sequence[str]) -> tuple[float, float]:
        """The paper's mean over these tasks and its standard deviation over seeds; NaN where it lacks one of them.

        A figure that prints only a mean over all its tasks has it under the name ``mean``: no number for fewer.
        """
        found = {value.task: value for value in self.values if value.variant == variant}
        if "mean" in found and set(tasks) == set(self.tasks):
            return found["mean"].value, found["mean"].sd or 0.0
        if not tasks or any(task not in found for task in tasks):
            return math.nan, math.nan
        sds = [found[task].sd or 0.0 for task in tasks]
        return float(np.mean([found[task].value for task in tasks])), float(np.linalg.norm(sds)) / len(tasks)


def score_rows(records: Sequence[Record], paper: Paper) -> list[tuple[str, float, Judged]]:
    """For each variant of the paper's table that was run: its mean over the tasks run, the paper's over the same, and
    what is said of the two.
    """
    tasks = list(dict.fromkeys(record.task for record in records))
    values = capped(records, "score")
    rows = []
    for variant in dict.fromkeys(value.variant for value in paper.values):
        own = select(records, variant)
        if not own:
            continue
        means = list(seed_means(own, values, by_cell(own)).values())
        ours, sd = mean_sd(means)
        theirs, their_sd = paper.of(variant, tasks)
        if math.isnan(ours) or (paper.same_scale and math.isnan(theirs)):
            continue
        rows.append((variant, theirs, _beside(theirs, their_sd, ours, sd, len(means), paper.same_scale)))
    return rows


def _beside(theirs: float, their_sd: float, ours: float, sd: float, seeds: int, same_scale: bool) -> Judged:
    said = f"{ours:.2f}{'' if math.isnan(sd) else f' ± {sd:.2f}'} over {seeds} seed{'s' * (seeds != 1)}"
    if not math.isnan(theirs):
        said += f"; the paper has {theirs:.2f} ± {their_sd:.2f}"
    if not same_scale:
        return Judged("not comparable", f"{said}, at another scale.", ours, sd)
    if math.isnan(sd):
        return Judged("undecided", f"{said}; one seed has no spread.", ours, sd)
    bound = 2 * math.hypot(sd, their_sd)
    apart = abs(ours - theirs)
    verdict = "confirmed" if apart <= bound else "contradicted"
    return Judged(verdict, f"{said}: {apart:.2f} apart, allowed are two standard deviations, {bound:.2f}.", ours, sd)


def order(records: Sequence[Record], paper: Paper) -> Judged:
    """Spearman's correlation of the variants' means with the paper's, with a one-sided permutation p-value.

    Over the tasks on which most runs tell the classes apart: the shares of a class have no order.
    """
    tasks = [task for task in dict.fromkeys(r.task for r in records) if not _same_answers(records, task)]
    records = [record for record in records if record.task in tasks]
    values = capped(records, "score")
    pairs = []
    for variant in dict.fromkeys(record.variant for record in records):
        own = select(records, variant)
        ours = mean_sd(list(seed_means(own, values, by_cell(own)).values()))[0]
        theirs = paper.of(variant, tasks)[0]
        if math.isfinite(ours) and math.isfinite(theirs):
            pairs.append((theirs, ours))
    if len(pairs) < 5:
        return Judged("undecided", f"{len(pairs)} variants have a number in both; at least 5 are needed.")
    over = f" over {', '.join(tasks)}"
    first, second = (_ranks(np.array(column)) for column in zip(*pairs, strict=True))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return Judged("not confirmed", f"All {len(pairs)} variants are equal: there is no order.", 0.0)
    found = float(np.corrcoef(first, second)[0, 1])
    rng = np.random.default_rng(0)
    shuffled = np.array([np.corrcoef(first, rng.permutation(second))[0, 1] for _ in range(PERMUTATIONS)])
    p, opposite = ((1 + int((sign * shuffled >= sign * found - 1e-12).sum())) / (1 + PERMUTATIONS) for sign in (1, -1))
    verdict = "confirmed" if p <= ALPHA else "contradicted" if opposite <= ALPHA else "not confirmed"
    said = f"Spearman's ρ = {found:.2f} between the paper's and our order of {len(pairs)} variants{over}"
    return Judged(verdict, f"{said} (one-sided permutation p = {p:.2g}).", found)


def _same_answers(records: Sequence[Record], task: str) -> bool:
    """Whether most runs on a task gave every example the same answer."""
    runs = [record for record in records if record.task == task]
    return 2 * sum(record.gives_one_answer for record in runs) > len(runs)


def correlation(records: Sequence[Record], x: str, y: str, sign: int, within_rates: bool = False) -> Judged:
    """Spearman's ρ over cells (means over seeds), with the bootstrap over variants of `rank_correlations`.

    Runs that learned nothing are left out: their gap is 0 and their surface flat, whatever the method.

    Args:
        within_rates: rank the cells of each learning rate by themselves: a higher rate moves sharpness, width and loss
            together, whatever the methods do.
    """
    import pandas as pd

    from landscape.analysis.rank_correlation import rank_correlations

    cells: dict[tuple[str, str], list[Record]] = {}
    learned = [record for record in records if not (record.gives_one_answer or record.is_lost)]
    for record in learned:
        place: Mapping[str, object] = {**record.place, "learning_rate": record.learning_rate}
        cells.setdefault((record.variant, json.dumps(place, sort_keys=True, default=str)), []).append(record)
    rows = [
        {
            "run": variant,
            "rate": runs[0].learning_rate,
            x: mean_sd([r.measure(x) for r in runs])[0],
            y: mean_sd([r.measure(y) for r in runs])[0],
        }
        for (variant, _), runs in cells.items()
    ]
    if not rows:
        return Judged("undecided", "No runs.")
    table = pd.DataFrame(rows)
    if within_rates:
        table = table.dropna(subset=[x, y])
        table[[x, y]] = table.groupby("rate")[[x, y]].rank(pct=True)
    [found] = rank_correlations(table, [(x, y)]).to_dict("records")
    if found["remark"] or math.isnan(found["spearman"]):
        return Judged("undecided", f"{x} and {y} over {found['n']} cells: {found['remark'] or 'no correlation'}.")
    value, low, high = found["spearman"], found["low"], found["high"]
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    said = f"Spearman's ρ = {value:.2f} ({interval}) between {x} and {y} over {found['n']} cells"
    said += f" of {found['num_runs']} variants{', ranked within each learning rate' if within_rates else ''}."
    if left_out := len(records) - len(learned):
        said += f" Left out: {left_out} run{'s' * (left_out != 1)} that learned nothing."
    if low <= 0 <= high:
        return Judged("not confirmed", said, value)
    return Judged("confirmed" if sign * value > 0 else "contradicted", said, value)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
