"""Which runs a rule looks at, and how they are paired: by seed, over the cells that both sides have."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from landscape.episodes.comparison import PairedComparison, compare_pairs
from landscape.reproduction.records import Record
from landscape.reproduction.verdict import ALPHA

HIGHER_IS_BETTER = ("score",)


def select(
    records: Iterable[Record], variant: str | None = None, where: Mapping[str, Any] | None = None
) -> list[Record]:
    """The runs of a variant in some cells: ``where`` gives values of the grid's keys, one or a list of them."""
    return [
        record
        for record in records
        if variant in (None, record.variant) and all(_is(record, key, value) for key, value in (where or {}).items())
    ]


def _is(record: Record, key: str, wanted: Any) -> bool:
    value = record.place.get(key, getattr(record, key, None))
    return value in wanted if isinstance(wanted, (list, tuple)) else value == wanted


def by_cell(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """Runs by their cell and seed."""
    cells: dict[str, dict[int, Record]] = {}
    for record in records:
        cells.setdefault(json.dumps(dict(record.place), sort_keys=True), {})[record.seed] = record
    return cells


def capped(records: Sequence[Record], measure: str) -> dict[str, float]:
    """The measure by run id. A run that diverged counts as the worst that any run of its task came to, so that
    losing runs does not help.
    """
    values = {record.run_id: record.measure(measure) for record in records}
    if measure not in ("final_eval", "final_train", "score"):
        return values
    worst = min if measure in HIGHER_IS_BETTER else max
    for record in records:
        if record.diverged:
            same = [values[r.run_id] for r in records if r.task == record.task and math.isfinite(values[r.run_id])]
            values[record.run_id] = worst(same) if same else math.nan
    return values


def seed_means(records: Sequence[Record], values: Mapping[str, float], cells: Iterable[str]) -> dict[int, float]:
    """By seed, the mean over the cells; only of seeds that have a value in every one of them."""
    grouped, wanted = by_cell(records), list(cells)
    found: dict[int, list[float]] = {}
    for cell in wanted:
        for seed, record in grouped.get(cell, {}).items():
            if math.isfinite(values[record.run_id]):
                found.setdefault(seed, []).append(values[record.run_id])
    return {seed: float(np.mean(items)) for seed, items in sorted(found.items()) if len(items) == len(wanted)}


def paired(
    first: Sequence[Record], second: Sequence[Record], values: Mapping[str, float]
) -> tuple[PairedComparison | None, list[float], list[float]]:
    """First minus second over seeds, each seed's mean over the cells that both have; None where no seed is left."""
    cells = by_cell(first).keys() & by_cell(second).keys()
    one, other = (seed_means(runs, values, sorted(cells)) for runs in (first, second))
    seeds = sorted(one.keys() & other.keys()) if cells else []
    left, right = [one[seed] for seed in seeds], [other[seed] for seed in seeds]
    return (compare_pairs(left, right, ALPHA) if seeds else None), left, right


def at_best_rate(records: Sequence[Record], by: str) -> list[Record]:
    """Of each variant, rank and task, every seed's run at the learning rate that the other seeds prefer.

    Seeds count that have a run at every rate that any seed has: of an unfinished experiment the others would choose
    among few. With one seed its own preference counts, which favors whatever has more rates to choose from.
    """
    values = capped(records, by)
    sign = -1.0 if by in HIGHER_IS_BETTER else 1.0
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault((record.variant, record.rank, record.task), []).append(record)
    chosen = []
    for runs in groups.values():
        known = {(r.learning_rate, r.seed): r for r in runs if math.isfinite(values[r.run_id])}
        rates = sorted({rate for rate, _ in known})
        seeds = [seed for seed in sorted({seed for _, seed in known}) if all((rate, seed) in known for rate in rates)]
        for seed in seeds:
            others = [s for s in seeds if s != seed] or [seed]
            means = {rate: np.mean([sign * values[known[rate, s].run_id] for s in others]) for rate in rates}
            chosen.append(known[min(means, key=lambda rate: means[rate]), seed])
    return chosen


def at_the_edge(chosen: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """Variants whose best learning rate, for half of their chosen runs or more, is the first or the last that was
    tried, so that rates beyond it may be better still.
    """
    found = []
    for variant in dict.fromkeys(record.variant for record in chosen):
        rates = {record.learning_rate for record in select(records, variant)}
        best = [record.learning_rate in (min(rates), max(rates)) for record in select(chosen, variant)]
        if len(rates) > 1 and 2 * sum(best) >= len(best):
            found.append(variant)
    return found


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, NaN where there are too few."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return math.nan, math.nan
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
