"""Whether variants tie once each has its best learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from landscape.reproduction.choice import at_best_rate, at_the_edge, capped, mean_sd, select
from landscape.reproduction.records import Record
from landscape.reproduction.verdict import Judged, Verdict

Means = Mapping[str, tuple[float, float]]


def ties(records: Sequence[Record], by: str, measure: str, within: float, unit: str) -> Judged:
    """Do the variants' means lie within ``within`` of each other, each at its best learning rate by ``by``?

    Over the seeds that all variants have. The largest of several means lies above the smallest by noise alone, so a
    span that is nearer to the bound than the seeds' own spread is undecided; as is what hangs on variants whose best
    rate is the first or the last that was tried.
    """
    chosen = at_best_rate(records, by)
    values = capped(chosen, measure)
    chosen = [r for r in chosen if math.isfinite(values[r.run_id])]
    names = dict.fromkeys(r.variant for r in chosen)
    shared = set.intersection(*({r.seed for r in select(chosen, name)} for name in names)) if names else set()
    chosen = [r for r in chosen if r.seed in shared]
    means = {name: mean_sd([values[r.run_id] for r in select(chosen, name)]) for name in names if shared}
    if len(means) < 2:
        return Judged("undecided", f"Fewer than two variants have a {measure} on the same seeds.")
    noise = float(np.nanmean([sd for _, sd in means.values()])) if len(shared) > 1 else math.nan
    span = _span(means)
    verdict = _within(span, within, noise)
    said = f"{len(means)} variants at their best learning rates, chosen by {by}: {_words(means, unit)}; "
    said += f"the seeds' own spread is {noise:.3g}."
    if verdict == "undecided":
        return Judged(verdict, f"{said} The bound is {within:g}.", span, noise)
    if edge := at_the_edge(chosen, records):
        said += f" Best at the first or last rate that was tried: {', '.join(edge)}."
        inner = {name: pair for name, pair in means.items() if name not in edge}
        if len(inner) > 1:
            said += f" The others: {_words(inner, unit)}."
        if len(inner) < 2 or _within(_span(inner), within, noise) != verdict:
            verdict = "undecided"
    return Judged(verdict, said, span, noise)


def _within(span: float, within: float, noise: float) -> Verdict:
    if math.isnan(noise) or abs(span - within) < noise:
        return "undecided"
    return "confirmed" if span <= within else "contradicted"


def _span(means: Means) -> float:
    values = [mean for mean, _ in means.values()]
    return max(values) - min(values)


def _words(means: Means, unit: str) -> str:
    low, high = (pick(means, key=lambda name: means[name][0]) for pick in (min, max))
    return f"from {low} {means[low][0]:.4g} to {high} {means[high][0]:.4g}, {_span(means):.3g} {unit} apart"
