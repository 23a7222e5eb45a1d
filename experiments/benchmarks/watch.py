"""How soon the watch notices a rebound, how often it cries wolf, and where its threshold comes from.

    python experiments/benchmarks/watch.py --curves 400                                    # development seeds
    python experiments/benchmarks/watch.py --curves 400 --split test -o watch-test.json
    python experiments/benchmarks/watch.py --tune --curves 1000                            # development seeds only

`EpisodeWatchCallback` and the watch of `landscape train` follow the rule that is measured,
`landscape.episodes.online.OnlineWatch`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from landscape.episodes.benchmark import DEVELOPMENT, TEST, draw_recipes
from landscape.episodes.benchmark_online import delay_rows, false_alarm_rows, highest_score
from landscape.episodes.benchmark_run import printed, write_result
from landscape.episodes.online import THRESHOLD
from landscape.episodes.synthetic import CONFOUNDERS, generate

RATE = 0.05
TUNING = DEVELOPMENT + 400_000


def thresholds(count: int) -> dict[str, float]:
    """For each confounder the threshold that `RATE` of the runs without an episode exceed, every step watched."""
    result = {}
    for confounder in CONFOUNDERS:
        recipes = draw_recipes(count, np.random.default_rng([TUNING, 7]), confounder=confounder)
        scores = [highest_score(generate(recipe, TUNING + s), 1) for s, recipe in enumerate(recipes)]
        result[confounder] = float(np.quantile(scores, 1 - RATE))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one split, or tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=200, help="curves in each cell")
    parser.add_argument("--split", choices=("development", "test"), default="development")
    parser.add_argument("--tune", action="store_true", help="print the thresholds that 5 % of the runs exceed")
    parser.add_argument("-o", "--output", help="JSON file for the tables")
    options = parser.parse_args(arguments)
    if options.tune:
        for confounder, threshold in thresholds(options.curves).items():
            print(f"{confounder}: {threshold:.2f}")
        return
    first = TEST if options.split == "test" else DEVELOPMENT + 200_000
    result: dict[str, Any] = {
        "setting": {"split": options.split, "first_seed": first, "curves": options.curves, "threshold": THRESHOLD},
        "false_alarms": list(false_alarm_rows(options.curves, first)),
    }
    printed("Runs without an episode in which the watch warns", result["false_alarms"])
    result["delays"] = list(delay_rows(options.curves, first))
    printed("Episodes noticed before they end, and the delay after their onset", result["delays"])
    if options.output:
        write_result(result, options.output)


if __name__ == "__main__":
    main()
