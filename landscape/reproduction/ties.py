"""Whether variants tie once each has its best learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from landscape.reproduction.choice import at_best_rate, at_the_edge, capped
from landscape.reproduction.records import Record
from landscape.reproduction.verdict import ALPHA, Judged, Verdict


def ties(records: Sequence[Record], by: str, measure: str, within: float, unit: str) -> Judged:
    """Do the variants' means lie within ``within`` of each other, each at its best learning rate by ``by``?

    Over the seeds that all variants have; judged is the interval of the largest difference (`largest_difference`).
    What hangs on variants whose best rate is the first or the last that was tried is undecided. ``unit`` follows a
    number as it is.
    """
    chosen = at_best_rate(records, by)
    values = capped(chosen, measure)
    table = _by_variant(chosen, values)
    if len(table) < 2:
        return Judged("undecided", f"Fewer than two variants have a {measure} on the same seeds.")
    span, margin, noise = largest_difference(np.array(list(table.values())))
    verdict = _verdict(span, margin, within)
    said = f"{len(table)} variants at their best learning rates, chosen by {by}: {_words(table, unit)}."
    if edge := [name for name in at_the_edge(chosen, records) if name in table]:
        inner = {name: row for name, row in table.items() if name not in edge}
        said += f" Best at the first or last rate that was tried: {', '.join(edge)}."
        said += f" The others: {_words(inner, unit)}." if len(inner) > 1 else ""
        if len(inner) < 2 or _verdict(*largest_difference(np.array(list(inner.values())))[:2], within) != verdict:
            verdict = "undecided"
    return Judged(verdict, f"{said} The bound is {within:g}.", span, noise)


def largest_difference(values: np.ndarray) -> tuple[float, float, float]:
    """The span of the means of (k variants, n seeds), the half width of its 95 % interval, and the noise.

    Tukey's simultaneous interval (1949) of all differences, seeds as blocks: the largest of many means lies above the
    smallest by noise alone. It takes the noise for normal and equally large in all variants; infinite with one seed.
    Of two variants it is the interval of the paired t-test.
    """
    k, n = values.shape
    means = values.mean(axis=1)
    span = float(means.max() - means.min())
    if n < 2:
        return span, math.inf, math.nan
    from scipy.stats import studentized_range

    left = values - means[:, None] - values.mean(axis=0) + values.mean()
    freedom = (k - 1) * (n - 1)
    noise = math.sqrt(float((left**2).sum()) / freedom)
    return span, float(studentized_range.ppf(1 - ALPHA, k, freedom)) * noise / math.sqrt(n), noise


def _by_variant(chosen: Sequence[Record], values: dict[str, float]) -> dict[str, list[float]]:
    """Each variant's values on the seeds that all have, means over the other cells."""
    found: dict[str, dict[int, list[float]]] = {}
    for run in chosen:
        if math.isfinite(values[run.run_id]):
            found.setdefault(run.variant, {}).setdefault(run.seed, []).append(values[run.run_id])
    shared = sorted(set.intersection(*(set(own) for own in found.values()))) if found else []
    return {name: [float(np.mean(own[seed])) for seed in shared] for name, own in found.items() if shared}


def _verdict(span: float, margin: float, within: float) -> Verdict:
    if span + margin <= within:
        return "confirmed"
    return "contradicted" if span - margin > within else "undecided"


def _words(table: dict[str, list[float]], unit: str) -> str:
    means = {name: float(np.mean(row)) for name, row in table.items()}
    low, high = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
    span, margin, _ = largest_difference(np.array(list(table.values())))
    interval = (
        "one seed has no interval"
        if math.isinf(margin)
        else f"95 % interval {max(span - margin, 0.0):.3g} to {span + margin:.3g} by Tukey's test"
    )
    return f"from {low} {means[low]:.4g} to {high} {means[high]:.4g}, {span:.3g}{unit} apart ({interval})"
