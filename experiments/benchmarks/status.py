"""How long listing a store and `landscape status` take, at ten thousand synthetic runs (goal: one second).

    python experiments/benchmarks/status.py [--runs 10000] [--keep STORE] [--json out.json]

Most runs are done, some failed, eight are under way. Files are in the page cache; the command runs in a process of its
own, interpreter and imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from landscape.config import RunConfig
from landscape.store import Store
from landscape.sweeps.overview import overview_of

STEPS = 200
DIGESTS = {"data": "d" * 16, "model": "m" * 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="make the store here and leave it; use it if it is there")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "store"
        if not path.exists():
            build(path, arguments.runs)
        listing = timed(lambda: Store.open(path).runs())
        status = timed(lambda: overview_of(Store.open(path)))
        command = timed(lambda: run_command(path))
    found = {"listing": listing, "states of all": status, "the command": command}
    words = ", ".join(f"{name} {clock:.2f} ({processor:.2f})" for name, (clock, processor) in found.items())
    print(f"{arguments.runs} runs, seconds (of a processor): {words}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": arguments.runs, **found}, indent=1) + "\n")


def build(path: Path, count: int) -> None:
    """Runs that share one content; only their names, seeds and states differ."""
    store = Store.create(path)
    templates = {}
    for state in ("done", "failed", "running", "queued"):
        run = store.add(RunConfig.parse({"alpha": 16, "max_steps": STEPS}), f"template-{state}", DIGESTS)
        if state != "queued":
            with run.begin_attempt() as attempt:
                for step in range(1, STEPS + 1):
                    attempt.log({"step": step, "loss_clean": 2.0 / step, "loss_perturbed": 2.0 / step, "seconds": 0.1})
        error = "Traceback\nRuntimeError: out of luck" if state == "failed" else None
        run.set_status(state=state, step=0 if state == "queued" else STEPS // 2, error=error)
        templates[state] = run.path
    for number in range(count):
        state = "running" if number < 8 else "failed" if number % 100 == 0 else "queued" if number % 10 == 0 else "done"
        shutil.copytree(templates[state], path / "runs" / f"lora-r8-lr1e-4-s{number}-{number:010x}")
    for template in templates.values():
        shutil.rmtree(template)


def timed(action: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Median seconds by the clock and of a processor, after one run that warms the caches."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter(), processor_seconds()
        action()
        found.append((time.perf_counter() - began[0], processor_seconds() - began[1]))
    clock, processor = zip(*found[1:], strict=True)
    return statistics.median(clock), statistics.median(processor)


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_command(path: Path) -> None:
    subprocess.run([sys.executable, "-m", "landscape", "status", str(path)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
