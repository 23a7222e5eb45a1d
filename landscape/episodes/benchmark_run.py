"""Runs the benchmark on one split and prints its tables: ``python -m landscape.episodes.benchmark_run --help``.

Thresholds of the detectors are tuned on the development split, whatever split is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.episodes.benchmark import DEVELOPMENT, TEST, kolmogorov_smirnov
from landscape.episodes.benchmark_tables import ALPHA, Table, families, null_table, sensitivity_table
from landscape.episodes.detector import RESAMPLES, VERSION, detect_episodes
from landscape.episodes.real_runs import RealRuns, real_table
from landscape.episodes.semireal import SharedRuns, sibling_table
from landscape.episodes.synthetic import TRENDS, Recipe, generate

OWN_FAMILIES = ("white", "ar0.5", "ar0.8")
"""Noises that the null model contains exactly; with a flat trend, the least favorable one."""
FOREIGN_FAMILIES = ("long_memory", "heavy", "ripple", "level")
SPEED_CURVES, SPEED_LONGEST = 20, 3
"""Curves that times are the medians of, and of those of a million points."""


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


def speed_table(first: int) -> Table:
    """Milliseconds of processor time for curves of several lengths, without and with an episode."""
    rows: Table = []
    for points in (50, 1000, 10_000, 1_000_000):
        for episodes in (0, 1):
            times = []
            for seed in range(SPEED_LONGEST if points > 100_000 else SPEED_CURVES):
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


PARTS = ("nulls", "other_curves", "real", "semi_real", "speed", "calibration")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` reads."""
    parser.add_argument("--split", choices=("development", "test"), default="development")
    parser.add_argument("--curves", type=int, default=100, help="curves in each cell; other counts follow from it")
    parser.add_argument("--nulls", type=int, default=2000, help="curves in each family of the p-values")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", "-o", help="file for the tables; those of the same setting that it has are kept")


def run(arguments: argparse.Namespace, runs: SharedRuns | None = None, real: RealRuns | None = None) -> dict[str, Any]:
    """Measure, print and write what the arguments ask for; semi-real curves need runs, real ones real runs."""
    first, count = (TEST if arguments.split == "test" else DEVELOPMENT + 100_000), arguments.curves
    setting: dict[str, Any] = {
        "split": arguments.split, "first_seed": first, "detector": VERSION, "resamples": RESAMPLES,
        "machine": platform.machine(), "curves": {},
    }  # fmt: skip
    result = _begun(arguments.json, setting)
    setting = result["setting"]
    if runs is not None:
        setting |= {"runs": runs.name, **runs.summary()}

    def keep(name: str, rows: Iterable[dict[str, Any]], **curves: int) -> None:
        """Print a table and write what there is so far, with the numbers of curves behind it."""
        result[name] = list(rows)
        setting["curves"][name] = curves
        printed(name.capitalize().replace("_", " "), result[name])
        if arguments.json:
            write_result(result, arguments.json)

    def tables(names: Sequence[str], prefix: str, times: int) -> None:
        nulls, cells = times * count, 2 * count
        rows: dict[str, Table] = {"false_positives": [], "sensitivity": []}
        for name in names:
            family = families()[name]
            found, thresholds = null_table(family, nulls, first, 6 * count)
            rows["false_positives"] += found
            keep(f"{prefix}false_positives", rows["false_positives"], group=nulls, tuning=6 * count)
            rows["sensitivity"] += sensitivity_table(family, cells, first, thresholds)
            keep(f"{prefix}sensitivity", rows["sensitivity"], cell=cells)

    parts: dict[str, Callable[[], None]] = {
        "nulls": lambda: tables(["step loss"], "", 4),
        "other_curves": lambda: tables(["gradient norm", "evaluation"], "other_", 5),
        "real": lambda: None if real is None else keep("real", real_table(real, ALPHA), run=1),
        "semi_real": lambda: None
        if runs is None
        else keep(
            "semi_real", sibling_table(runs, count, first, DEVELOPMENT, ALPHA), amplitude=count, without=2 * count,
            tuning=4 * count,
        ),
        "speed": lambda: keep("speed", speed_table(first), length=SPEED_CURVES, longest=SPEED_LONGEST),
        "calibration": lambda: keep(
            "calibration", calibration_rows(arguments.nulls, first), family=arguments.nulls,
            foreign_flat=arguments.nulls // 4,
        ),
    }  # fmt: skip
    for name in arguments.only:
        parts[name]()
    return result


def _begun(path: str | None, setting: dict[str, Any]) -> dict[str, Any]:
    """The tables that a file already has from the same split, detector and machine, so that parts can be run apart."""
    if path and Path(path).is_file():
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        if all(known.get("setting", {}).get(key) == value for key, value in setting.items() if key != "curves"):
            return known
    return {"setting": setting}


def main() -> None:
    """Measure one split of synthetic curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
