"""What the runs of a variant say of rebounds: cell by cell, and whether any of them is a double descent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from landscape.episodes.multiplicity import q_values
from landscape.episodes.sweep import fisher
from landscape.reproduction.choice import by_cell, mean_sd
from landscape.reproduction.records import Record
from landscape.reproduction.verdict import ALPHA, Judged

Records = Sequence[Record]
_LACKING = {"rebound_only": "without a first descent", "divergence": "without a second one"}
"""Kinds of rebounds that are no double descent."""


def rebounding_cells(records: Records) -> tuple[float, str]:
    """The smallest q-value of a variant's cells, and what was found in words."""
    cells = list(by_cell(records).values())
    combined = [fisher([r.p_value for r in runs.values()]) for runs in cells]
    q = q_values(combined).tolist()
    best = int(np.argmin(q))
    rebounding = [r for r in records if r.q_value <= ALPHA]
    lost = sum(r.diverged for r in records)
    value, sd = mean_sd([r.rise for r in cells[best].values()])
    runs = list(cells[best].values())
    marked = [r.episode["onset"] for r in runs if r.episode and r.p_value <= ALPHA and r.episode["onset"] is not None]
    place = ", ".join(f"{key} {item:g}" if isinstance(item, (int, float)) else f"{key} {item}"
                      for key, item in runs[0].place.items())  # fmt: skip
    said = (
        f"{records[0].variant}: {len(rebounding)} of {len(records)} runs rebound (q ≤ {ALPHA:g}{_shapes(rebounding)})"
        f"{f', {lost} diverged' if lost else ''}; most surely{f' at {place}' if place else ''}, where the largest rise "
        f"is {value:.3g}{'' if math.isnan(sd) else f' ± {sd:.2g}'} nats"
        f"{f', from step {min(marked):g} on' if marked else ''} (p {_small(combined[best])}, q {_small(q[best])} over "
        f"{len(cells)} cell{'s' * (len(cells) != 1)})."
    )
    return q[best], said


def double_descents(own: Records, variant: str, value: float, sd: float) -> Judged:
    """Of the runs that rebound, those that have both descents and are not lost."""
    rebounding = [r for r in own if r.q_value <= ALPHA and r.episode]
    whole = [r for r in rebounding if r.episode and r.episode["kind"] in ("episode", "partial")]
    kept = [r for r in whole if not r.is_lost]
    said = f"{variant}: {len(rebounding)} of {len(own)} runs rebound (q ≤ {ALPHA:g})"
    if rebounding:
        said += f"; {len(whole)} of them fall before and after, {len(kept)} of these end below the loss they began with"
    return Judged("confirmed" if kept else "not confirmed", f"{said}.", value, sd)


def seed_averages(records: Records, measure: str) -> list[float]:
    """By seed, the mean over its runs."""
    seeds = sorted({r.seed for r in records})
    return [mean_sd([r.measure(measure) for r in records if r.seed == seed])[0] for seed in seeds]


def _shapes(rebounding: Records) -> str:
    """Which of the runs lack a descent before or after: a double descent has both."""
    kinds = [r.episode["kind"] for r in rebounding if r.episode]
    counts = {words: kinds.count(kind) for kind, words in _LACKING.items()}
    return "".join(f"; {n} {words}" for words, n in counts.items() if n)


def _small(p: float) -> str:
    """Runs' p-values have a floor of resamples: what several of them give together is no better known."""
    return f"= {p:.2g}" if p >= 1e-6 else "< 1e-6"
