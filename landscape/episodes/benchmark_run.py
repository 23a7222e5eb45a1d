"""Runs the whole benchmark on one split and prints its tables: ``python -m landscape.episodes.benchmark_run --help``.

Thresholds of the detectors are tuned on the development split, whatever split is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from landscape.episodes.benchmark import (
    DEVELOPMENT,
    TEST,
    Outcome,
    clopper_pearson,
    draw_recipes,
    equal_rate_threshold,
    evaluate,
    false_positives,
    kolmogorov_smirnov,
    ours,
    sensitivity,
)
from landscape.episodes.control import Control
from landscape.episodes.detector import detect_episodes
from landscape.episodes.online import OnlineWatch
from landscape.episodes.rivals import Rival, installed
from landscape.episodes.synthetic import CONFOUNDERS, TRENDS, Recipe, add_episode, generate

ALPHA = 0.05
CELLS = ((3, 0.1), (4, 0.1), (6, 0.03), (6, 0.05), (6, 0.1), (6, 0.25), (12, 0.01), (12, 0.05))
"""(amplitude in noise units, duration as a share of the run) of the cells with one episode."""
OWN_FAMILIES = (("white", "flat"), ("ar0.5", "flat"), ("ar0.8", "flat"))
"""(noise, trend) families that the null model contains exactly."""
FOREIGN_FAMILIES = ("long_memory", "heavy", "ripple", "level")
OURS = "landscape"

Table = list[dict[str, Any]]


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
        "upper": plain.high,
        "rate_tuned": equal.rate,
        "ms": float(np.mean([o.milliseconds for o in outcomes])),
    }


def sensitivity_table(count: int, first: int, thresholds: dict[str, float]) -> Table:
    """F1, recall and onset error per cell and detector, at thresholds of equal false-positive rate (ours: p ≤ 0.05)."""
    rows: Table = []
    for k, (amplitude, duration) in enumerate(CELLS):
        for name, rival in detectors().items():
            rng = np.random.default_rng([first, 2, k])
            fixed = {"confounder": "none", "episodes": 1, "amplitude": float(amplitude), "duration": duration}
            outcomes = evaluate(rival.detector, draw_recipes(count, rng, **fixed), first + 10_000)
            threshold = rival.documented if name == OURS else thresholds[name]
            loose, strict = sensitivity(outcomes, threshold), sensitivity(outcomes, threshold, 0.5)
            rows.append(
                {
                    "detector": name,
                    "amplitude": amplitude,
                    "duration": duration,
                    "curves": count,
                    "f1": loose.f1,
                    "precision": loose.precision,
                    "recall": loose.recall,
                    "f1_half": strict.f1,
                    "onset_error": loose.onset_error,
                    "ms": float(np.mean([o.milliseconds for o in outcomes])),
                }
            )
    return rows


def p_value(recipe: Recipe, seed: int) -> float:
    """The smallest p-value on a curve; 1 if nothing is reported."""
    curve = generate(recipe, seed)
    return min((e.p_value for e in detect_episodes(curve.steps, curve.values)), default=1.0)


def calibration_table(count: int, first: int, points: int = 600) -> Table:
    """P(p ≤ α) per family on curves without an episode, and the distance from uniform for the null's own families."""
    rows: Table = []
    own = [(noise, (trend,)) for noise, trend in OWN_FAMILIES]
    foreign = [(noise, tuple(TRENDS)) for noise in FOREIGN_FAMILIES]
    flat = [(noise, ("flat",)) for noise in FOREIGN_FAMILIES]
    families = [(4, *f) for f in own] + [(2, *f) for f in foreign] + [(1, *f) for f in flat]
    for times, noise, trends in families:
        p = [p_value(Recipe(points, trends[s % len(trends)], noise), first + 20_000 + s) for s in range(times * count)]
        test = kolmogorov_smirnov(p)
        rows.append(
            {"noise": noise, "trend": "flat" if len(trends) == 1 else "all", "curves": times * count}
            | {f"p<={a:g}": float(np.mean(np.array(p) <= a)) for a in (0.01, 0.05, 0.1)}
            | {"ks_distance": test.distance, "ks_p": test.p_value}
            | {"ks_excess": test.excess, "ks_excess_p": test.excess_p_value}
        )
    return rows


def difficulty_curve(seed: int, amplitude: float, points: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(curve, base model's losses, sibling run) that share their batches' difficulty.

    Correlations of the noise as measured between real runs on the same batches: 0.987 with a sibling, 0.9 with the
    base model. The episode, a raised cosine over a tenth of the run, makes the noise-free curve rise by `amplitude`
    units of the raw noise; 0 for none.
    """
    rng = np.random.default_rng([seed, 3])
    difficulty = rng.standard_normal(points)

    def noise(correlation: float) -> np.ndarray:
        return correlation * difficulty + np.sqrt(1 - correlation**2) * rng.standard_normal(points)

    own = np.sqrt(0.987)
    u = np.arange(points) / points
    clean, other = (rng.uniform(10, 30) * np.exp(-u * rng.uniform(3, 12)) for _ in range(2))
    start = rng.uniform(0.2, 0.8) * points
    if amplitude > 0:
        add_episode(Recipe(points, shape="cosine", amplitude=amplitude, duration=0.1), clean, 1.0, start, rng)
    return clean + noise(own), 5 + noise(0.9 / own), other + noise(own)


def control_table(count: int, first: int) -> Table:
    """Share of curves with p ≤ 0.05, raw and adjusted, over amplitudes.

    The last column is the price of the assumption that a sibling has no episode of its own: curves without one,
    adjusted by a sibling that has one of this amplitude.
    """
    rows: Table = []
    for amplitude in (0.0, 0.5, 1.0, 2.0, 4.0):
        hits = {"raw": 0, "base": 0, "sibling": 0, "false, sibling has it": 0}
        for seed in range(count):
            curve, base, sibling = difficulty_curve(first + seed, amplitude)
            controls = {"raw": None, "base": Control(base, "base"), "sibling": Control(sibling, "sibling")}
            for name, control in controls.items():
                found = detect_episodes(np.arange(len(curve)), curve, control=control)
                hits[name] += any(e.p_value <= ALPHA for e in found)
            found = detect_episodes(np.arange(len(curve)), sibling, control=Control(curve, "sibling"))
            hits["false, sibling has it"] += any(e.p_value <= ALPHA for e in found)
        rows.append({"amplitude": amplitude, "curves": count} | {k: v / count for k, v in hits.items()})
    return rows


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
            for seed in range(3 if points > 100_000 else 10):
                curve = generate(Recipe(points=points, episodes=episodes), first + 30_000 + seed)
                start = time.process_time()
                detect_episodes(curve.steps, curve.values)
                times.append(1e3 * (time.process_time() - start))
            rows.append({"points": points, "episodes": episodes, "ms": float(np.median(times))})
    return rows


def printed(title: str, rows: Table) -> None:
    """A Markdown table."""
    print(f"\n### {title}\n")
    if not rows:
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print(
            "| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |", flush=True
        )


def main() -> None:
    """Measure one split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("development", "test"), default="development")
    parser.add_argument("--curves", type=int, default=100, help="curves in each cell")
    parser.add_argument("--only", nargs="*", default=["nulls", "calibration", "control", "online", "speed"])
    parser.add_argument("--json", help="file for the tables")
    arguments = parser.parse_args()
    first, count = (TEST if arguments.split == "test" else DEVELOPMENT + 100_000), arguments.curves
    result: dict[str, Table] = {}
    simple: dict[str, Callable[[], Table]] = {
        "calibration": lambda: calibration_table(5 * count, first),
        "control": lambda: control_table(count, first),
        "online": lambda: online_table(2 * count, first),
        "speed": lambda: speed_table(first),
    }
    for name in arguments.only:
        if name == "nulls":
            result["false_positives"], thresholds = null_table(4 * count, first, 6 * count)
            printed("False positives", result["false_positives"])
            result["sensitivity"] = sensitivity_table(2 * count, first, thresholds)
            printed("Sensitivity at equal false-positive rate", result["sensitivity"])
        else:
            result[name] = simple[name]()
            printed(name.capitalize(), result[name])
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as stream:
            json.dump(result, stream, indent=1)


if __name__ == "__main__":
    main()
