"""Every method at its best learning rate and at one that all share, as tables of the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from landscape.reproduction.choice import at_best_rate, mean_sd
from landscape.reproduction.records import Record

COLUMNS = {
    "score": "score, %", "final_eval": "held-out loss, nats", "gap": "gap, nats", "rise": "largest rise, nats",
    "first_lambda_max": "λmax at the start", "lambda_max": "λmax", "balanced_lambda_max": "balanced λmax",
    "width": "slice width",
}  # fmt: skip
"""Measures that are shown where any run has them."""


def rate_tables(records: Sequence[Record]) -> str:
    """Two tables of means ± standard deviations over seeds; empty where there is one variant or learning rate alone.

    The best rate is the one that the other seeds prefer by the held-out loss; a seed without them has its own. The
    shared rate is the commonest best one of those at which every variant was run.
    """
    runs = [run for run in records if "learning_rate" in run.place]
    if len({run.task for run in runs}) == 1:
        runs = [replace(run, place={key: run.place[key] for key in run.place if key != "task"}) for run in runs]
    known = [run for run in runs if math.isfinite(run.final_eval)]
    rates = {name: {run.learning_rate for run in runs if _name(run) == name} for name in map(_name, runs)}
    if len(rates) < 2 or len({run.learning_rate for run in runs}) < 2:
        return ""
    best = at_best_rate(runs, "final_eval")
    counts = Counter(run.learning_rate for run in best)
    parts = ["Each at its best learning rate, which the other seeds choose by the held-out loss:\n", _table(best)]
    if shared := set.intersection(*rates.values()):
        rate = max(sorted(shared), key=lambda value: counts[value])
        fixed = [run for run in known if run.learning_rate == rate]
        if {run.run_id for run in fixed} != {run.run_id for run in best}:
            parts += [f"All at {rate:g}:\n", _table(fixed)]
    return "\n".join(parts)


def _table(runs: Sequence[Record]) -> str:
    shown = {key: label for key, label in COLUMNS.items() if any(math.isfinite(run.measure(key)) for run in runs)}
    lines = [f"| method (seeds) | learning rate | {' | '.join(shown.values())} |", "|---" * (2 + len(shown)) + "|"]
    for name in dict.fromkeys(map(_name, runs)):
        own = [run for run in runs if _name(run) == name]
        tried = Counter(f"{run.learning_rate:g}" for run in own)
        where = ", ".join(rate + (f" ({count})" if len(tried) > 1 else "") for rate, count in tried.items())
        cells = [_cell(own, key) for key in shown]
        lines.append(f"| {name} ({len({run.seed for run in own})}) | {where} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(runs: Sequence[Record], key: str) -> str:
    mean, sd = mean_sd([run.measure(key) for run in runs])
    return "–" if math.isnan(mean) else f"{mean:.4g}" + ("" if math.isnan(sd) else f" ± {sd:.2g}")


def _name(run: Record) -> str:
    """The variant, and what else of the grid sets the run apart."""
    rest = ", ".join(f"{key} {value}" for key, value in run.place.items() if key != "learning_rate")
    return run.variant + (f" ({rest})" if rest else "")
