"""What the runs of a sweep say together: cells, methods compared on paired seeds, and final losses along an axis.

Everything here works on `Outcome`s of one model, task and setting that differ in method, rank, learning rate, number of
training examples and seed. Nothing is read and nothing is drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from landscape.episodes.comparison import PairedComparison, compare_pairs
from landscape.episodes.model_wise import ModelWise, at_best, model_wise
from landscape.episodes.multiplicity import q_values

Measure = Literal["rise", "rise_area"]
MEASURES: tuple[Measure, ...] = ("rise", "rise_area")
AXES = ("rank", "learning_rate", "train_examples")
ENDED = ("done", "diverged")
"""States of runs that count: of one that was interrupted nobody knows what its curve would have done."""


@dataclass(frozen=True)
class Outcome:
    """One run: its settings, what its curve did and where its loss ended.

    Attributes:
        p_value: the smallest of the run's candidates.
        rise: largest rise of the smoothed curve, in the loss's unit (`landscape.episodes.rise`).
        rise_area: the smoothed loss above its running minimum, loss x steps.
        amplitude: of the most significant candidate; NaN where there is none.
        final_loss: the last eval loss, or training loss where nothing was evaluated; NaN for a run that was lost.
    """

    run_id: str
    method: str
    rank: int | None
    learning_rate: float
    train_examples: int | None
    seed: int
    state: str
    p_value: float
    rise: float
    rise_area: float
    amplitude: float
    final_loss: float

    @classmethod
    def of(cls, run_id: str, config: Mapping[str, Any], state: str, rows: Sequence[Mapping[str, Any]]) -> Outcome:
        """From a run's config and its rows of ``analysis/episodes.parquet``, most significant first."""
        first = rows[0]
        final = first["final_eval"] if math.isfinite(first["final_eval"]) else first["final_train"]
        return cls(
            run_id=run_id,
            method=str(config["method"]),
            rank=None if config["method"] == "full" else config["rank"],
            learning_rate=float(config["learning_rate"]),
            train_examples=config["train_examples"],
            seed=int(config["seed"]),
            state=state,
            p_value=float(first["run_p_value"]),
            rise=float(first["rise"]),
            rise_area=float(first["rise_area"]),
            amplitude=float(next((row["amplitude"] for row in rows if math.isfinite(row["amplitude"])), math.nan)),
            final_loss=float(final) if state == "done" else math.nan,
        )

    @staticmethod
    def is_known(config: Mapping[str, Any], state: str) -> bool:
        """Whether a run has its place among others: it ended, and its learning rate and seed are known."""
        return state in ENDED and config["learning_rate"] is not None and config["seed"] is not None

    @property
    def setting(self) -> tuple[int, float, int]:
        """What its pair in another method shares, apart from the seed; sorts."""
        return self.rank or 0, self.learning_rate, self.train_examples or 0


@dataclass(frozen=True)
class CellOutcome:
    """The seeds of one method, rank and learning rate.

    Attributes:
        runs: how many.
        rebounding: of these, runs with a q-value of at most alpha over the whole sweep.
        diverged: of these, runs that diverged.
        rise: mean over the runs.
        rise_sd: standard deviation over the runs; NaN for one.
        p_value: Fisher's combination of the runs' p-values, which are on different batches.
        q_value: over the sweep's cells.
    """

    method: str
    rank: int | None
    learning_rate: float
    train_examples: int | None
    runs: int
    rebounding: int
    diverged: int
    rise: float
    rise_sd: float
    p_value: float
    q_value: float


@dataclass(frozen=True)
class MethodComparison:
    """First minus second method, in one cell or over several.

    Attributes:
        setting: ``cell``, ``fixed`` (mean over the cells that decide) or ``best`` (each method at the learning rate
            that the other seeds prefer, mean over ranks).
        measure: ``rise`` or ``rise_area``.
        cells: how many cells a seed's difference is the mean of.
        means: of the measure, first and second.
        rebounding: runs with q ≤ alpha of all runs compared, first and second.
        runs: runs compared, first and second.
        q_value: over the sweep's comparisons of several cells, or over those of single cells.
    """

    first: str
    second: str
    setting: Literal["cell", "fixed", "best"]
    measure: Measure
    rank: int | None
    learning_rate: float
    cells: int
    means: tuple[float, float]
    rebounding: tuple[int, int]
    runs: tuple[int, int]
    result: PairedComparison
    q_value: float = math.nan


@dataclass(frozen=True)
class AxisOutcome:
    """Log final losses along one axis, the other settings fixed or, for ``at_best``, each rank at its best rate."""

    method: str
    axis: str
    fixed: tuple[tuple[str, Any], ...]
    at_best: bool
    lost: int
    """Runs that have no final loss: diverged or unfinished."""
    q_value: float
    result: ModelWise


def run_q_values(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """q-values (Benjamini and Hochberg) by run id, over all the outcomes."""
    return dict(zip([o.run_id for o in outcomes], q_values([o.p_value for o in outcomes]).tolist(), strict=True))


def cell_outcomes(outcomes: Sequence[Outcome], alpha: float = 0.05) -> list[CellOutcome]:
    """One row a cell, by method, rank, learning rate and number of training examples."""
    q = run_q_values(outcomes)
    cells = _grouped(outcomes, lambda o: (o.method, *o.setting))
    combined = [fisher([o.p_value for o in runs]) for runs in cells.values()]
    adjusted = q_values(combined).tolist()
    rows = []
    for runs, p_value, q_value in zip(cells.values(), combined, adjusted, strict=True):
        one, rises = runs[0], np.array([o.rise for o in runs])
        rows.append(
            CellOutcome(
                one.method, one.rank, one.learning_rate, one.train_examples, len(runs),
                sum(q[o.run_id] <= alpha for o in runs), sum(o.state == "diverged" for o in runs),
                float(rises.mean()), float(rises.std(ddof=1)) if len(runs) > 1 else math.nan, p_value, q_value,
            )
        )  # fmt: skip
    return rows


def fisher(p_values: Sequence[float]) -> float:
    """Fisher's combined p-value of independent tests."""
    from scipy.special import gammaincc

    return float(gammaincc(len(p_values), -float(np.log(np.maximum(p_values, 1e-300)).sum())))


def compare_methods(outcomes: Sequence[Outcome], alpha: float = 0.05) -> list[MethodComparison]:
    """Every pair of methods, the earlier name's second: over the cells that decide, at best rates, then cell by cell.

    A cell decides for two methods where a run of either has an episode with q ≤ alpha. That choice does not know which
    of two paired runs is whose, so the exact test stays exact after it.
    """
    q = run_q_values(outcomes)
    methods = sorted({o.method for o in outcomes}, key=lambda name: (name != "lora", name))
    found = []
    for second, first in itertools.combinations(methods, 2):
        pair = _Pair(first, second, [o for o in outcomes if o.method in (first, second)], q, alpha)
        for measure in MEASURES:
            rows = [pair.fixed(measure), pair.best(measure), *pair.by_cell(measure)]
            found += [row for row in rows if row is not None]
    several, single = ([row for row in found if (row.setting == "cell") == wanted] for wanted in (False, True))
    several.sort(key=lambda row: row.second != "lora")
    return [
        replace(row, q_value=value)
        for rows in (several, single)
        for row, value in zip(rows, q_values([row.result.p_value for row in rows]).tolist(), strict=True)
    ]


def axis_outcomes(outcomes: Sequence[Outcome], alpha: float = 0.05, seed: int = 0) -> list[AxisOutcome]:
    """Every line of three or more positions along each axis, and along rank each at its best learning rate.

    Tested are the logarithms of the final losses: near divergence replicates scatter more and to one side, which a
    comparison of means takes for a fall where there is none. So amplitudes here are log ratios.
    """
    lines = []
    for axis in AXES:
        others = [name for name in ("rank", "learning_rate", "train_examples") if name != axis]
        known = [o for o in outcomes if getattr(o, axis) is not None]
        groups = _grouped(known, lambda o, others=others: (o.method, *((getattr(o, n) or 0) for n in others)))
        for runs in groups.values():
            fixed = tuple((name, getattr(runs[0], name)) for name in others)
            places = _grouped(runs, lambda o, axis=axis: getattr(o, axis))
            values = {place: [o.final_loss for o in same] for place, same in places.items()}
            lines.append((runs, axis, fixed, False, values))
    for runs in _grouped([o for o in outcomes if o.rank is not None], lambda o: o.method).values():
        values = {rank: list(_best(same).values()) for rank, same in _grouped(runs, lambda o: o.rank).items()}
        # With one rate there is nothing to choose, and the line is there already.
        if len({o.learning_rate for o in runs}) > 1 and len({o.train_examples for o in runs}) == 1:
            lines.append((runs, "rank", (("train_examples", runs[0].train_examples),), True, {
                rank: [o.final_loss for o in chosen] for rank, chosen in values.items()
            }))  # fmt: skip
    lines = [line for line in lines if len(line[-1]) >= 3]
    results = [
        model_wise(list(values), [_logarithms(losses) for losses in values.values()], alpha, seed)
        for *_, values in lines
    ]
    q = q_values([result.p_value for result in results]).tolist()
    return [
        AxisOutcome(runs[0].method, axis, fixed, best, sum(math.isnan(o.final_loss) for o in runs), value, result)
        for (runs, axis, fixed, best, _), value, result in zip(lines, q, results, strict=True)
    ]


@dataclass(frozen=True)
class _Pair:
    """The runs of two methods."""

    first: str
    second: str
    outcomes: Sequence[Outcome]
    q: Mapping[str, float]
    alpha: float

    def cells(self) -> dict[Any, dict[int, tuple[Outcome, Outcome]]]:
        """Pairs by cell and seed; seeds that only one of the methods has are left out."""
        cells: dict[Any, dict[int, tuple[Outcome, Outcome]]] = {}
        for key, runs in _grouped(self.outcomes, lambda o: o.setting).items():
            first = {o.seed: o for o in runs if o.method == self.first}
            second = {o.seed: o for o in runs if o.method == self.second}
            both = {seed: (first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())}
            if both:
                cells[key] = both
        return cells

    def by_cell(self, measure: Measure) -> list[MethodComparison]:
        """Each cell by itself."""
        return [self._compared("cell", measure, {key: pairs}) for key, pairs in self.cells().items()]

    def fixed(self, measure: Measure) -> MethodComparison | None:
        """The mean over the cells that decide; None where none does."""
        deciding = {
            key: pairs
            for key, pairs in self.cells().items()
            if any(self.q[o.run_id] <= self.alpha for pair in pairs.values() for o in pair)
        }
        return self._compared("fixed", measure, deciding) if deciding else None

    def best(self, measure: Measure) -> MethodComparison | None:
        """Each method at its own best learning rate of each rank, which a seed's own run has no part in choosing."""
        if len({o.learning_rate for o in self.outcomes}) < 2 or len({o.train_examples for o in self.outcomes}) > 1:
            return None
        cells: dict[Any, dict[int, tuple[Outcome, Outcome]]] = {}
        for rank, runs in _grouped(self.outcomes, lambda o: o.rank or 0).items():
            first = _best([o for o in runs if o.method == self.first])
            second = _best([o for o in runs if o.method == self.second])
            both = {seed: (first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())}
            if both:
                cells[rank, 0.0, 0] = both
        return self._compared("best", measure, cells) if cells else None

    def _compared(
        self, setting: Literal["cell", "fixed", "best"], measure: Measure,
        cells: Mapping[Any, Mapping[int, tuple[Outcome, Outcome]]],
    ) -> MethodComparison:  # fmt: skip
        # Only seeds that every cell has: another set of cells for each seed would be another question.
        seeds = sorted(set.intersection(*(set(pairs) for pairs in cells.values())))
        seeds = seeds or sorted(set.union(*(set(pairs) for pairs in cells.values())))
        chosen = [[pairs[seed] for pairs in cells.values() if seed in pairs] for seed in seeds]
        means = np.array([np.mean([[getattr(o, measure) for o in pair] for pair in row], axis=0) for row in chosen])
        everyone = [pair for row in chosen for pair in row]
        rebounding = [sum(self.q[pair[side].run_id] <= self.alpha for pair in everyone) for side in (0, 1)]
        rank, rate, _ = next(iter(cells)) if setting == "cell" else (0, math.nan, 0)
        return MethodComparison(
            self.first, self.second, setting, measure, rank or None, rate, len(cells),
            (float(means[:, 0].mean()), float(means[:, 1].mean())), (rebounding[0], rebounding[1]),
            (len(everyone), len(everyone)), compare_pairs(means[:, 0], means[:, 1], self.alpha),
        )  # fmt: skip


def _best(runs: Sequence[Outcome]) -> dict[int, Outcome]:
    """By seed, the run at the learning rate that the other seeds prefer by their final loss.

    Of seeds that have a run at every rate; of the others a best rate is not known.
    """
    rates = sorted({o.learning_rate for o in runs})
    known = {(o.learning_rate, o.seed): o for o in runs}
    seeds = [seed for seed in sorted({o.seed for o in runs}) if all((rate, seed) in known for rate in rates)]
    if len(seeds) < 2:
        return {}
    _, chosen = at_best([[known[rate, seed].final_loss for seed in seeds] for rate in rates])
    return {seed: known[rates[i], seed] for seed, i in zip(seeds, chosen.tolist(), strict=True) if i >= 0}


def _logarithms(losses: Sequence[float]) -> list[float]:
    return [math.log(max(loss, 1e-300)) if math.isfinite(loss) else math.nan for loss in losses]


def _grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], Any]) -> dict[Any, list[Outcome]]:
    groups: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return {name: sorted(groups[name], key=lambda o: o.seed) for name in sorted(groups)}
