"""What an engine costs a run, and what a kill costs, against a plain shell loop.

    python experiments/benchmarks/sweep.py [--runs 6] [--kills 3] [--engines loop,local] [--json out.json]
    python experiments/benchmarks/sweep.py --table out.json

The same runs of `tiny` each time, one at a time on one core, so that engines are compared and not cores. The loop
starts ``landscape train`` once a run, as a shell script would. Overhead is the wall time beyond the sum of the seconds
that the optimizer steps themselves took, a run. A kill hits the process at work in the middle of a run; its cost is the
wall time beyond the undisturbed sweep's, and of that the steps done again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from landscape.config.sweep import SweepConfig
from landscape.store import Store
from landscape.sweeps import plan_sweep
from landscape.sweeps.runner import enqueue

ENGINES = {
    "loop": "shell loop",
    "inline": "`--workers 0`",
    "local": "`--engine local`, one worker",
    "worker": "`landscape worker`",
    "ray": "`--engine ray`, one worker",
}
BASE: dict[str, Any] = {
    "model": "tiny", "task": "arithmetic", "rank": 8, "alpha": "r", "max_steps": 60, "save_steps": 10,
    "eval_steps": 0, "train_examples": 256, "eval_examples": 16, "probe_examples": 16,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of such a file and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())["rows"]))
        return
    rows, load = [], os.getloadavg()
    for engine in arguments.engines.split(","):
        if engine == "ray" and importlib.util.find_spec("ray") is None:
            print("ray is not installed: left out", file=sys.stderr)
            continue
        rows.append(measure(engine, arguments.runs, arguments.kills))
        print(row_text(rows[-1]), flush=True)
    if arguments.json:
        processor = platform.processor() or platform.machine()
        machine = {"cores": os.cpu_count(), "processor": processor, "load": load, "load_at_end": os.getloadavg()}
        arguments.json.write_text(json.dumps({"config": BASE, "machine": machine, "rows": rows}, indent=1) + "\n")


def measure(engine: str, runs: int, kills: int) -> dict[str, Any]:
    """One engine's sweep, undisturbed and then with kills."""
    with tempfile.TemporaryDirectory() as folder:
        calm, store = sweep(Path(folder) / "calm", engine, runs, 0)
        training = sum(run.metrics()["seconds"].to_numpy().sum() for run in store.runs())
        hit, disturbed = sweep(Path(folder) / "hit", engine, runs, kills)
        again = steps_taken(disturbed) - steps_taken(store)
    return {
        "engine": engine, "runs": runs, "seconds": calm, "training_seconds": training,
        "overhead_a_run": (calm - training) / runs, "kills": kills, "seconds_a_kill": (hit - calm) / max(1, kills),
        "steps_again_a_kill": again / max(1, kills),
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| | s a run beside its steps | s a kill | steps done again |", "|---|---|---|---|"]
    for row in rows:
        cells = f"{row['overhead_a_run']:.1f} | {row['seconds_a_kill']:.1f} | {row['steps_again_a_kill']:.0f}"
        lines.append(f"| {ENGINES[row['engine']]} | {cells.replace('-', '−')} |")
    return "\n".join(lines)


def row_text(row: dict[str, Any]) -> str:
    return (
        f"{row['engine']:<7} {row['seconds']:7.1f} s for {row['runs']} runs, {row['overhead_a_run']:5.2f} s a run "
        "beside the steps; "
        f"a kill costs {row['seconds_a_kill']:5.1f} s, {row['steps_again_a_kill']:.0f} steps are done again"
    )


def sweep(store: Path, engine: str, runs: int, kills: int) -> tuple[float, Store]:
    """Seconds until everything is done; after each kill whatever has ended is started again."""
    configs = SweepConfig.parse({**BASE, "sweep": {"grid": {"seed": list(range(runs))}}}).expand()
    enqueue(plan_sweep(configs, store))
    began = time.monotonic()
    starter = commands(engine, store, runs)
    process, left = starter(), kills
    deadline = next_kill(store)
    while True:
        if process.poll() is not None:
            if all_done(Store.open(store)):
                return time.monotonic() - began, Store.open(store)
            process = starter()
        if left and deadline():
            left -= 1
            deadline = next_kill(store)
        time.sleep(0.02)


def commands(engine: str, store: Path, runs: int) -> Callable[[], subprocess.Popen[bytes]]:
    """Starts the sweep, or goes on with it."""
    landscape = [sys.executable, "-m", "landscape"]
    values = [item for key, value in BASE.items() for item in ("--set", f"{key}={json.dumps(value)}")]
    loop = " ; ".join(
        " ".join(f"'{part}'" for part in [*landscape, "train", *values, "--set", f"seed={seed}", "--store", str(store)])
        for seed in range(runs)
    )
    line = {
        "loop": ["sh", "-c", loop],
        "inline": [*landscape, "resume", str(store), "--workers", "0"],
        "local": [*landscape, "resume", str(store), "--workers", "1"],
        "worker": [*landscape, "worker", str(store)],
        "ray": [*landscape, "resume", str(store), "--engine", "ray", "--workers", "1"],
    }[engine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return lambda: subprocess.Popen(line, env=environment, stdout=quiet, stderr=quiet)


def next_kill(store: Path) -> Callable[[], bool]:
    """Kills the process at work on a run once that is half done and not begun before; says whether it did."""
    spared = {run.id for run in Store.open(store).runs() if run.status.attempt}

    def try_to_kill() -> bool:
        for run in Store.open(store).runs():
            claim = run.last_claim
            if run.id in spared or claim is None or not claim.is_open or claim.pid is None or not run.status.attempt:
                continue
            if len(run.metrics()) >= BASE["max_steps"] // 2 + 5:
                psutil.Process(claim.pid).kill()
                return True
        return False

    return try_to_kill


def all_done(store: Store) -> bool:
    return all(run.status.state == "done" for run in store.runs())


def steps_taken(store: Store) -> int:
    """By all attempts; a resumed one counts from its checkpoint."""
    total = 0
    for run in store.runs():
        for folder in (run.path / "attempts").iterdir():
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            resumed = json.loads((folder / "attempt.json").read_text())["resume_step"]
            total += sum('"tokens"' in line for line in lines) - resumed
    return total


if __name__ == "__main__":
    main()
