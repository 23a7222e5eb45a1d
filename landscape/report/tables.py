"""The tables of the report as plain values: comparison by setting, and one row a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from landscape.plots import CellSummary, RunData, best_learning_rates, summarize, summarize_cells, without_rate
from landscape.plots.data import format_rate
from landscape.plots.style import dark_variant, method_style
from landscape.plots.summary import Estimate, Peak

ERROR_TAIL = 2000
"""Characters of a run's error that the report shows."""


def glance_table(runs: Sequence[RunData]) -> dict[str, Any]:
    """Final eval loss by setting: at one learning rate for all, and at each setting's own best one.

    Returns:
        ``rows``; ``rate``, the learning rate in common: that of most methods, of those the one with most runs; and
        the ranges of losses that the two columns of bars span.
    """
    summaries = summarize_cells(runs)
    best = best_learning_rates(summaries)
    rate = _common_rate(summaries)
    keys = list(dict.fromkeys(without_rate(row.cell) for row in summaries))
    shown = []
    for key in keys:
        at_rate = next((s for s in summaries if without_rate(s.cell) == key and s.cell.learning_rate == rate), None)
        shown.append((key, at_rate, best.get(key)))
    common = _bounds([row for _, row, _ in shown if row is not None])
    own = _bounds([row for _, _, row in shown if row is not None])
    rows = []
    for key, at_rate, at_best in shown:
        style = method_style(key.method)
        rows.append(
            {
                "method": style.label,
                "color": style.color,
                "dark": dark_variant(style.color),
                "rank": "–" if key.rank is None else str(key.rank),
                "alpha": "–" if key.alpha is None else f"{key.alpha:g}",
                "common": None if at_rate is None else _glance(at_rate, common),
                "best": None if at_best is None else _glance(at_best, own),
                "rates": sum(without_rate(row.cell) == key for row in summaries),
            }
        )
    return {
        "rows": rows,
        "rate": None if rate is None else format_rate(rate),
        "common_range": [f"{bound:.3g}" for bound in common],
        "best_range": [f"{bound:.3g}" for bound in own],
    }


def _common_rate(rows: Sequence[CellSummary]) -> float | None:
    methods: dict[float, set[str]] = {}
    counts: Counter[float] = Counter()
    for row in rows:
        if row.cell.learning_rate is not None:
            methods.setdefault(row.cell.learning_rate, set()).add(row.cell.method)
            counts[row.cell.learning_rate] += len(row.runs)
    return max(counts, key=lambda rate: (len(methods[rate]), counts[rate], rate), default=None)


def _glance(row: CellSummary, bounds: tuple[float, float]) -> dict[str, Any]:
    mean, sd = row.held_out.value, row.held_out.error
    half = sd if math.isfinite(sd) else 0.0
    return {
        "rate": format_rate(row.cell.learning_rate),
        "loss": plus_minus(row.held_out),
        "train": plus_minus(row.train),
        "gap": plus_minus(row.gap),
        "finished": row.finished,
        "runs": len(row.runs),
        "diverged": row.diverged,
        "at": _share(mean, bounds) if row.held_out else None,
        "low": _share(mean - half, bounds) if row.held_out else None,
        "high": _share(mean + half, bounds) if row.held_out else None,
    }


def _bounds(rows: Sequence[CellSummary]) -> tuple[float, float]:
    """The range that the bars of the table span."""
    ends = []
    for row in rows:
        if row.held_out:
            half = row.held_out.error if math.isfinite(row.held_out.error) else 0.0
            ends += [row.held_out.value - half, row.held_out.value + half]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return round(100 * (value - low) / (high - low), 2) if high > low else 50.0


def run_table(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """One row a run, in the order of settings and seeds; numbers as text beside the value that sorts them."""
    ordered = sorted(runs, key=lambda run: (run.cell.sort_key, run.seed or 0, run.run_id))
    return [_run_row(run) for run in ordered]


def _run_row(run: RunData) -> dict[str, Any]:
    summary, cell, style = summarize(run), run.cell, method_style(run.method)
    peak = _peak(summary.peaks)
    return {
        "id": run.run_id,
        "method": style.label,
        "color": style.color,
        "dark": dark_variant(style.color),
        "model": str(cell.model),
        "task": str(cell.task),
        "rank": cell.rank,
        "alpha": None if cell.alpha is None else f"{cell.alpha:g}",
        "rate": format_rate(cell.learning_rate),
        "rate_value": cell.learning_rate or 0.0,
        "seed": run.seed,
        "state": run.state,
        "step": run.step,
        "max_steps": run.max_steps,
        "train": _number(summary.train),
        "held_out": _number(summary.held_out),
        "gap": _number(summary.gap),
        "last": None if peak is None else (f"{peak.last:.4g}", peak.last, f"step {peak.last_step}, {peak.space} space"),
        "peak": None
        if peak is None
        else (f"{peak.highest:.4g}", peak.highest, f"step {peak.highest_step}, {peak.space} space"),
        "seconds": None if run.seconds is None else (f"{run.seconds:.1f}", run.seconds),
        "error": None if not run.error else run.error[-ERROR_TAIL:],
        "problems": run.problems,
    }


def _peak(peaks: Sequence[Peak]) -> Peak | None:
    """The adapter space's where it was measured: full fine-tuning and merged spaces do not compare with it."""
    return min(peaks, key=lambda peak: (peak.space != "adapter", peak.space), default=None)


def _number(estimate: Estimate) -> tuple[str, float] | None:
    return (plus_minus(estimate), estimate.value) if estimate else None


def plus_minus(estimate: Estimate) -> str:
    """``0.513 ± 0.012``: the error to two digits and the value to as many places; a dash where there is no value."""
    if not estimate:
        return "–"
    value, error = estimate.value, estimate.error
    if not math.isfinite(error) or error <= 0:
        return _signed(f"{value:.4g}")
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > 6:
        return f"{_signed(f'{value:.4g}')} ± {error:.1e}"
    return f"{_signed(f'{value:.{places}f}')} ± {error:.{places}f}"


def _signed(number: str) -> str:
    """With a real minus sign, and none before zero."""
    return number.removeprefix("-") if float(number) == 0 else number.replace("-", "−")
