"""The episode detector held to account: false alarms, sensitivity, p-values, rivals, real and semi-real curves, speed.

    python experiments/benchmarks/episodes.py --curves 60 -o episodes-dev.json            # development seeds
    python experiments/benchmarks/episodes.py --split test --curves 250 --runs runs/      # once a release

Semi-real curves need step losses of runs on the same batches, with the base model's. With ``--runs FOLDER`` they come
from ``shared.npz`` there (arrays runs, base and name), or else from short runs of the tiny model, which are trained
into the folder once, a few minutes on one core. Without the option there are none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from landscape.episodes import benchmark_run
from landscape.episodes.real_runs import load_real_runs
from landscape.episodes.semireal import SharedRuns, load_shared_runs, save_shared_runs
from landscape.errors import UsageError

SEEDS, STEPS = 3, 250
REAL = Path(__file__).with_name("episodes_real.csv")
"""Step losses of real runs, from experiments/episodes.yaml."""
TINY: dict[str, Any] = {
    "model": "tiny", "task": "arithmetic", "method": "lora", "rank": 8, "alpha": "r", "learning_rate": 1e-3,
    "max_steps": STEPS, "per_device_train_batch_size": 8, "eval_steps": STEPS, "eval_examples": 16,
    "probe_examples": 16, "data_seed": 0, "capture": {"every": STEPS},
}  # fmt: skip
"""A learning rate at which these runs do not rebound; seeds differ in the adapter's start, not in the batches."""


def shared_runs(folder: Path, progress: bool = True) -> SharedRuns:
    """Step losses from a folder, trained into it where it has none."""
    cached = folder / "shared.npz"
    if not cached.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_shared_runs(cached, trained(folder / "store", progress))
    return load_shared_runs(cached)


def trained(store: Path, progress: bool) -> SharedRuns:
    """Train what is missing and read the clean step losses."""
    from landscape.config import RunConfig
    from landscape.store import Store
    from landscape.training import train

    rows, base = [], None
    for seed in range(SEEDS):
        result = train(RunConfig.parse({**TINY, "seed": seed}), store, progress=progress)
        metrics = Store.open(store).get(result.run_id).metrics()
        rows.append(metrics["loss_clean"].to_numpy())
        base = metrics["loss_base"].to_numpy()
    if base is None or not np.isfinite(base).all():
        raise UsageError(f"{store}: the runs have no base loss.")
    return SharedRuns(np.stack(rows), base, f"{TINY['model']}, {TINY['task']}, {SEEDS} seeds, {STEPS} steps")


def main() -> None:
    """Measure one split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmark_run.add_arguments(parser)
    parser.add_argument("--runs", type=Path, help="folder with, or for, the runs behind the semi-real curves")
    arguments = parser.parse_args()
    runs = None if arguments.runs is None else shared_runs(arguments.runs)
    benchmark_run.run(arguments, runs, load_real_runs(REAL))


if __name__ == "__main__":
    main()
