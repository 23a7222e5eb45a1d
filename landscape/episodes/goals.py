"""What the benchmark is to show, and whether a result shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from landscape.episodes.benchmark_tables import ALPHA, OURS
from landscape.episodes.semireal import half_found

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Goal:
    """One goal: what was measured, the bound that was set, whether it is met."""

    name: str
    measured: str
    bound: str
    met: bool


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """All goals that a result has the numbers for.

    Args:
        result: of `landscape.episodes.benchmark_run.run`, with the tables of experiments/benchmarks/watch.py, as JSON
            holds them.
    """
    found: list[Goal] = []
    if "false_positives" in result:
        found += _false_positives(result["false_positives"], "")
    if "other_false_positives" in result:
        for family in ("gradient norm", "evaluation"):
            rows = [row for row in result["other_false_positives"] if row["family"] == family]
            found += _false_positives(rows, f", {family}s")
    if "sensitivity" in result:
        found += _sensitivity(result["sensitivity"])
    if "other_sensitivity" in result:
        for family in ("gradient norm", "evaluation"):
            found += _rivals([row for row in result["other_sensitivity"] if row["family"] == family], f", {family}s")
    if "calibration" in result:
        found += _calibration(result["calibration"])
    if "semi_real" in result:
        found.append(_siblings(result["semi_real"]))
    if "speed" in result:
        found += _speed(result["speed"])
    if "false_alarms" in result:
        row = next(r for r in result["false_alarms"] if (r["logging_steps"], r["confounder"]) == (1, "none"))
        error = math.sqrt(ALPHA * (1 - ALPHA) / row["curves"])
        bound = ALPHA + error
        name = "watch: runs with a false alarm, every step"
        found.append(Goal(name, f"{row['rate']:.3f}", f"≤ {ALPHA:g} + its error = {bound:.3f}", row["rate"] <= bound))
    return found


def _false_positives(rows: Rows, of: str, detector: str = OURS) -> list[Goal]:
    own = [row for row in rows if row["detector"] == detector]
    [whole] = [row for row in own if row["group"] == "all"]
    worst = max((row for row in own if row["group"] != "all"), key=lambda row: row["upper"])
    group = worst["group"].replace("_", " ")
    return [
        Goal(f"false-positive rate over all{of}", f"{whole['rate']:.4f}", f"≤ {ALPHA:g}", whole["rate"] <= ALPHA),
        Goal(
            f"upper 95 % bound in the worst group{of}", f"{worst['upper']:.3f} ({group})", "≤ 0.08",
            worst["upper"] <= 0.08,
        ),
    ]  # fmt: skip


def _sensitivity(rows: Rows) -> list[Goal]:
    cells = [row for row in rows if row["amplitude"] != "all"]
    own = [row for row in cells if row["detector"] == OURS]
    plain = [row for row in own if row["episodes"] == 1 and row["recovered"] == 1.0]
    large = [row["f1"] for row in plain if row["amplitude"] >= 6 and row["duration"] >= 0.05]
    [four] = [row["f1"] for row in plain if (row["amplitude"], row["duration"]) == (4, 0.1)]
    onset = max(row["onset_error"] for row in plain)
    return [
        Goal("F1, ≥ 6 noise units lasting ≥ 5 %: the worst cell", f"{min(large):.3f}", "≥ 0.90", min(large) >= 0.9),
        Goal("F1, 4 noise units lasting 10 %", f"{four:.3f}", "≥ 0.75", four >= 0.75),
        Goal("median onset error, the worst cell", f"{100 * onset:.2f} %", "≤ 1 %", onset <= 0.01),
        *_rivals(rows, ""),
    ]


def _rivals(rows: Rows, of: str) -> list[Goal]:
    """Ahead of every rival over all cells, and significantly behind in none."""
    rivals = [row for row in rows if not row["detector"].startswith(OURS)]
    nearest = min((row for row in rivals if row["amplitude"] == "all"), key=lambda row: row["behind"])
    cells = [(row["amplitude"], row["duration"], tuple(row["lengths"])) for row in rivals
             if row["amplitude"] != "all" and row["behind_high"] < 0]  # fmt: skip
    behind = len(set(cells))
    return [
        Goal(
            f"F1 over all cells above that of the best rival{of} ({nearest['detector']})",
            f"{nearest['behind']:+.3f} ({nearest['behind_low']:+.3f} to {nearest['behind_high']:+.3f})", "> 0",
            nearest["behind_low"] > 0,
        ),
        Goal(f"cells significantly behind a rival{of}", f"{behind}", "0", not behind),
    ]  # fmt: skip


def _calibration(rows: Rows) -> list[Goal]:
    own = [row for row in rows if row["own"]]
    found = []
    for row in own:
        met = row["ks_p"] > ALPHA
        name = f"p-values uniform, {row['noise']}, {row['curves']:,} curves (KS)"
        found.append(Goal(name, f"{row['ks_distance']:.3f}, p = {row['ks_p']:.2g}", f"p > {ALPHA:g}", met))
    levels = (0.01, 0.05, 0.1)
    foreign = [row for row in rows if not row["own"]]
    above = [f"{row['noise']} at {a:g}" for row in foreign for a in levels if not row[f"within {a:g}"]]
    name = f"P(p ≤ α) ≤ α + 2 standard errors, {len(foreign) * len(levels)} in families outside the null model"
    found.append(Goal(name, f"exceeded: {', '.join(above).replace('_', ' ') or 'none'}", "none", not above))
    return found


def _siblings(rows: Rows) -> Goal:
    raw, adjusted = (half_found(rows[:-1], kind) for kind in ("raw", "sibling"))
    measured = f"{adjusted:.2g} of {raw:.2g} noise units: 1/{raw / adjusted:.1f}"
    return Goal("half found with a sibling at a quarter of the amplitude", measured, "1/4", raw / adjusted >= 4)


def _speed(rows: Rows) -> list[Goal]:
    found = []
    for points, most in ((1000, 30), (1_000_000, 1000)):
        slowest = max(row["ms"] for row in rows if row["points"] == points)
        found.append(Goal(f"{points:,} points", f"{slowest:.0f} ms", f"≤ {most:,} ms", slowest <= most))
    return found
