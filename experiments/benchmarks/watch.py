"""How soon `EpisodeWatchCallback`'s rule notices a rebound, and how often it cries wolf, on synthetic curves.

python experiments/benchmarks/watch.py --curves 400
"""

from __future__ import annotations

import argparse

import numpy as np

from landscape.episodes.benchmark import DEVELOPMENT, TEST, clopper_pearson, draw_recipes
from landscape.episodes.synthetic import CONFOUNDERS, SyntheticCurve, generate
from landscape.training.watch import EventWatch, WatchEvent

CELLS = ((4, 0.1), (6, 0.05), (6, 0.1), (6, 0.25), (12, 0.05), (12, 0.1))
"""(amplitude in noise units of a step's loss, duration as a share of the run)."""
LOGGED = (1, 5, 10)
"""Steps that one logged value is the mean of."""


def events(curve: SyntheticCurve, every: int) -> tuple[WatchEvent, ...]:
    """What is noticed when the mean of every so many steps is logged, as a Trainer does."""
    watch = EventWatch(curve.warmup_steps)
    n = len(curve.values) // every * every
    means = curve.values[:n].reshape(-1, every).mean(axis=1)
    steps = curve.steps[every - 1 : n : every].astype(int)
    watch.replay(zip(steps.tolist(), means.tolist(), strict=True))
    return tuple(watch.events)


def false_alarms(count: int, first: int) -> None:
    """Share of runs without an episode in which anything is noticed."""
    print(f"\n### Runs without an episode in which the watch warns ({count} a cell; upper 95 % bound)\n")
    print("| logging_steps | " + " | ".join(CONFOUNDERS) + " |")
    print("|---" * (len(CONFOUNDERS) + 1) + "|")
    for every in LOGGED:
        cells = []
        for k, confounder in enumerate(CONFOUNDERS):
            recipes = draw_recipes(count, np.random.default_rng([first, 5, k]), confounder=confounder)
            alarms = sum(bool(events(generate(r, first + 50_000 + s), every)) for s, r in enumerate(recipes))
            cells.append(f"{alarms / count:.3f} (≤ {clopper_pearson(alarms, count)[1]:.3f})")
        print(f"| {every} | " + " | ".join(cells) + " |", flush=True)


def delays(count: int, first: int) -> None:
    """Share of episodes noticed before they end, and how long after their onset."""
    print(f"\n### Episodes noticed before they end, and the delay after their onset ({count} a cell)\n")
    print("| logging_steps | amplitude, duration | noticed | median delay, % of the episode | 90 % | % of the run |")
    print("|---" * 6 + "|")
    for every in LOGGED:
        for k, (amplitude, duration) in enumerate(CELLS):
            fixed = {"confounder": "none", "episodes": 1, "amplitude": float(amplitude), "duration": duration}
            late, of_run = [], []
            for s, recipe in enumerate(draw_recipes(count, np.random.default_rng([first, 6, k]), **fixed)):
                curve = generate(recipe, first + 60_000 + s)
                truth = curve.episodes[0]
                seen = [e.step for e in events(curve, every) if truth.onset <= e.step <= truth.recovery]
                if seen:
                    late.append((seen[0] - truth.onset) / (truth.recovery - truth.onset))
                    of_run.append((seen[0] - truth.onset) / recipe.points)
            median, most = np.percentile(late, [50, 90]) if late else (np.nan, np.nan)
            print(
                f"| {every} | {amplitude}, {duration:.0%} | {len(late) / count:.2f} | {median:.0%} | {most:.0%} "
                f"| {np.median(of_run) if of_run else np.nan:.1%} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=200, help="curves in each cell")
    parser.add_argument("--split", choices=("development", "test"), default="development")
    options = parser.parse_args()
    first = TEST if options.split == "test" else DEVELOPMENT + 200_000
    false_alarms(options.curves, first)
    delays(options.curves, first)


if __name__ == "__main__":
    main()
