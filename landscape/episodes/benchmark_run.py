"""Runs the benchmark on one split and prints its tables: ``python -m landscape.episodes.benchmark_run --help``.

Thresholds of the detectors are tuned on the development split, whatever split is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.episodes.benchmark import (
    DEVELOPMENT,
    TEST,
    Outcome,
    clopper_pearson,
    counts,
    draw_recipes,
    equal_rate_threshold,
    evaluate,
    f1_difference,
    false_positives,
    kolmogorov_smirnov,
    ours,
    sensitivity,
)
from landscape.episodes.detector import detect_episodes
from landscape.episodes.online import OnlineWatch
from landscape.episodes.rivals import Rival, installed
from landscape.episodes.semireal import SharedRuns, sibling_table
from landscape.episodes.synthetic import CONFOUNDERS, TRENDS, Recipe, generate

ALPHA = 0.05
OWN_FAMILIES = ("white", "ar0.5", "ar0.8")
"""Noises that the null model contains exactly; with a flat trend, the least favorable one."""
FOREIGN_FAMILIES = ("long_memory", "heavy", "ripple", "level")
OURS = "landscape"

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """Curves of one difficulty."""

    amplitude: float
    """Noise units."""
    duration: float
    """Share of the run."""
    episodes: int = 1
    recovered: float = 1.0

    @property
    def fixed(self) -> dict[str, Any]:
        """What of a recipe it fixes."""
        return {"confounder": "none", **vars(self)}


CELLS = (
    *(Cell(*c) for c in ((3, 0.1), (4, 0.1), (6, 0.03), (6, 0.05), (6, 0.1), (6, 0.25), (12, 0.01), (12, 0.05))),
    Cell(6, 0.1, episodes=2), Cell(6, 0.1, episodes=3), Cell(6, 0.1, recovered=0.5), Cell(6, 0.1, recovered=0.0),
)  # fmt: skip


def detectors() -> dict[str, Rival]:
    """Ours, counting p ≤ 0.05, and the rivals that are installed."""
    return {OURS: Rival(ours, 1 - ALPHA), **installed()}


def null_table(count: int, first: int, tuning: int) -> tuple[Table, dict[str, float]]:
    """False positives per confounder and detector, at documented thresholds and at ones tuned over all confounders.

    Also returned: thresholds tuned on the curves without any confounder.
    """
    rows: Table = []
    thresholds = {}
    for name, rival in detectors().items():
        tuned = equal_rate_threshold(_nulls(rival, tuning, DEVELOPMENT), ALPHA)
        # The cells with an episode have no confounder, so a rival's threshold there is not raised for any.
        thresholds[name] = equal_rate_threshold(_nulls(rival, tuning, DEVELOPMENT, "none"), ALPHA)
        pooled: list[Outcome] = []
        for confounder in CONFOUNDERS:
            outcomes = _nulls(rival, count, first, confounder)
            pooled += outcomes
            rows.append(_null_row(name, confounder, outcomes, rival.documented, tuned))
        rows.append(_null_row(name, "all", pooled, rival.documented, tuned))
    return rows, thresholds


def _nulls(rival: Rival, count: int, first: int, confounder: str | None = None) -> list[Outcome]:
    rng = np.random.default_rng([first, 1, *([] if confounder is None else [sorted(CONFOUNDERS).index(confounder)])])
    fixed = {} if confounder is None else {"confounder": confounder}
    return evaluate(rival.detector, draw_recipes(count, rng, **fixed), first)


def _null_row(name: str, confounder: str, outcomes: list[Outcome], documented: float, tuned: float) -> dict[str, Any]:
    plain, equal = false_positives(outcomes, documented), false_positives(outcomes, tuned)
    return {
        "detector": name,
        "confounder": confounder,
        "curves": plain.curves,
        "rate": plain.rate,
        "low": plain.low,
        "upper": plain.high,
        "rate_tuned": equal.rate,
        "upper_tuned": equal.high,
        "ms": float(np.mean([o.milliseconds for o in outcomes])),
    }


def sensitivity_table(count: int, first: int, thresholds: dict[str, float]) -> Table:
    """F1, recall and onset error per cell and detector, at equal false-positive rate (ours: p ≤ 0.05).

    `behind` is what ours exceeds the detector by in F1, with the 95 % interval over curves; the last rows pool the
    cells.
    """
    rows: Table = []
    pooled: dict[str, list[np.ndarray]] = {}
    for k, cell in enumerate(CELLS):
        mine = None
        for name, rival in detectors().items():
            recipes = draw_recipes(count, np.random.default_rng([first, 2, k]), **cell.fixed)
            outcomes = evaluate(rival.detector, recipes, first + 10_000 + 1000 * k)
            threshold = rival.documented if name == OURS else thresholds[name]
            table = counts(outcomes, threshold)
            mine = table if name == OURS or mine is None else mine
            pooled.setdefault(name, []).append(table)
            loose, strict = sensitivity(outcomes, threshold), sensitivity(outcomes, threshold, 0.5)
            rows.append(
                {"detector": name, **vars(cell), "curves": count}
                | {"f1": loose.f1, "precision": loose.precision, "recall": loose.recall, "f1_half": strict.f1}
                | {"onset_error": loose.onset_error, "peak_error": loose.peak_error}
                | _behind(mine, table)
                | {"ms": float(np.mean([o.milliseconds for o in outcomes]))}
            )
    for name, tables in pooled.items():
        whole = np.concatenate(tables)
        hits, true, reported = whole.sum(axis=0).tolist()
        rows.append(
            {"detector": name, "amplitude": "all", "curves": len(whole), "f1": 2 * hits / max(true + reported, 1)}
            | {"precision": hits / max(reported, 1), "recall": hits / true}
            | _behind(np.concatenate(pooled[OURS]), whole)
        )
    return rows


def _behind(ours_: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    difference, low, high = f1_difference(ours_, theirs)
    return {"behind": difference, "behind_low": low, "behind_high": high}


def p_value(recipe: Recipe, seed: int) -> float:
    """The smallest p-value on a curve; 1 if nothing is reported."""
    curve = generate(recipe, seed)
    return min((e.p_value for e in detect_episodes(curve.steps, curve.values)), default=1.0)


def calibration_rows(count: int, first: int, points: int = 600) -> Iterator[dict[str, Any]]:
    """P(p ≤ α) per family on curves without an episode, distances from uniform and the quantiles of p."""
    families = [(noise, ("flat",), count) for noise in OWN_FAMILIES]
    families += [(noise, tuple(TRENDS), count) for noise in FOREIGN_FAMILIES]
    families += [(noise, ("flat",), count // 4) for noise in FOREIGN_FAMILIES]
    for noise, trends, curves in families:
        p = np.array(
            [p_value(Recipe(points, trends[s % len(trends)], noise), first + 20_000 + s) for s in range(curves)]
        )
        test = kolmogorov_smirnov(p.tolist())
        row: dict[str, Any] = {"noise": noise, "trend": "flat" if len(trends) == 1 else "all", "curves": curves}
        row["own"] = noise in OWN_FAMILIES
        for a in (0.01, 0.05, 0.1):
            row[f"p<={a:g}"] = float((p <= a).mean())
            row[f"within {a:g}"] = bool((p <= a).mean() <= a + 2 * np.sqrt(a * (1 - a) / curves))
        row |= {"ks_distance": test.distance, "ks_p": test.p_value}
        row |= {"ks_excess": test.excess, "ks_excess_p": test.excess_p_value}
        row["quantiles"] = np.quantile(p, np.arange(1, 200) / 200).round(5).tolist()
        yield row


def online_table(count: int, first: int) -> Table:
    """The online watch: runs that it alarms in, episodes caught before they end, and its delay."""
    rows: Table = []
    for k, (amplitude, duration) in enumerate(((0, 0.1), (4, 0.1), (6, 0.05), (6, 0.1), (6, 0.25), (12, 0.05))):
        fixed = {"confounder": "none", "episodes": int(amplitude > 0), "amplitude": amplitude, "duration": duration}
        delays, alarms = [], 0
        for s, recipe in enumerate(draw_recipes(count, np.random.default_rng([first, 4, k]), **fixed)):
            curve = generate(recipe, first + 40_000 + s)
            watch = OnlineWatch()
            seen = [watch.update(*point) for point in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)]
            truth = curve.episodes[0] if curve.episodes else None
            warned = [w.step for w in seen if w.warning and (truth is None or truth.onset <= w.step <= truth.recovery)]
            alarms += bool(warned)
            if warned and truth is not None:
                delays.append((warned[0] - truth.onset) / (truth.recovery - truth.onset))
        rows.append(
            {
                "amplitude": amplitude,
                "duration": duration,
                "curves": count,
                "alarmed": alarms / count,
                "upper": clopper_pearson(alarms, count)[1],
                "median delay / duration": float(np.median(delays)) if delays else float("nan"),
            }
        )
    return rows


def speed_table(first: int) -> Table:
    """Milliseconds of processor time for curves of several lengths, without and with an episode."""
    rows: Table = []
    for points in (50, 1000, 10_000, 1_000_000):
        for episodes in (0, 1):
            times = []
            for seed in range(3 if points > 100_000 else 20):
                curve = generate(Recipe(points=points, episodes=episodes), first + 30_000 + seed)
                start = time.process_time()
                detect_episodes(curve.steps, curve.values)
                times.append(1e3 * (time.process_time() - start))
            rows.append({"points": points, "episodes": episodes, "ms": float(np.median(times))})
    return rows


def printed(title: str, rows: Table) -> None:
    """A Markdown table; lists are left out."""
    print(f"\n### {title}\n")
    if not rows:
        return
    keys = [key for key, value in rows[0].items() if not isinstance(value, list)]
    print("| " + " | ".join(keys) + " |\n|" + " --- |" * len(keys))
    for row in rows:
        cells = [row.get(key, "") for key in keys]
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells) + " |", flush=True)


def write_result(result: dict[str, Any], path: str | Path) -> None:
    """One row a line, five digits, null for what is not known."""
    parts = []
    for key, value in _plain(result).items():
        lines = ",\n".join("  " + json.dumps(row) for row in value) if isinstance(value, list) else ""
        parts.append(f" {json.dumps(key)}: " + (f"[\n{lines}\n ]" if lines else json.dumps(value)))
    Path(path).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


PARTS = ("nulls", "semi_real", "online", "speed", "calibration")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` reads."""
    parser.add_argument("--split", choices=("development", "test"), default="development")
    parser.add_argument("--curves", type=int, default=100, help="curves in each cell; other counts follow from it")
    parser.add_argument("--nulls", type=int, default=2000, help="curves in each family of the p-values")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", "-o", help="file for the tables")


def run(arguments: argparse.Namespace, runs: SharedRuns | None) -> dict[str, Any]:
    """Measure, print and write what the arguments ask for; semi-real curves need runs."""
    first, count = (TEST if arguments.split == "test" else DEVELOPMENT + 100_000), arguments.curves
    result: dict[str, Any] = {
        "setting": {"split": arguments.split, "first_seed": first, "curves": count, "machine": platform.machine()}
    }
    if runs is not None:
        result["setting"] |= {"runs": runs.name, **runs.summary()}
    simple: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        "calibration": lambda: calibration_rows(arguments.nulls, first),
        "semi_real": lambda: [] if runs is None else sibling_table(runs, count, first, DEVELOPMENT, ALPHA),
        "online": lambda: online_table(2 * count, first),
        "speed": lambda: speed_table(first),
    }

    def keep() -> None:
        if arguments.json:
            write_result(result, arguments.json)

    for name in arguments.only:
        if name == "nulls":
            result["false_positives"], thresholds = null_table(4 * count, first, 6 * count)
            printed("False positives", result["false_positives"])
            keep()
            result["sensitivity"] = sensitivity_table(2 * count, first, thresholds)
            printed("Sensitivity at equal false-positive rate", result["sensitivity"])
        else:
            rows = result.setdefault(name, [])
            for row in simple[name]():
                rows.append(row)
                keep()
            printed(name.capitalize().replace("_", "-"), rows)
        keep()
    return result


def main() -> None:
    """Measure one split of synthetic curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args(), None)


if __name__ == "__main__":
    main()
