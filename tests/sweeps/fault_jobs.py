"""Sweeps of `tiny` that are killed at random moments, and what they are compared with afterwards.

Every training writes down when it ends, by the store's own status; what matters is read from the store alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from landscape.config import RunConfig
from landscape.config.sweep import SweepConfig
from landscape.store import Run, Store
from landscape.sweeps import plan_sweep, run_sweep
from landscape.sweeps.plan import plan_store
from landscape.sweeps.runner import enqueue
from landscape.sweeps.worker import work

ROOT = Path(__file__).resolve().parents[2]
BASE: dict[str, Any] = {
    "model": "tiny", "task": "arithmetic", "rank": 4, "alpha": "r", "lora_dropout": 0.1, "learning_rate": 5e-3,
    "max_steps": 24, "per_device_train_batch_size": 4, "train_examples": 64, "eval_examples": 8, "probe_examples": 8,
    "eval_steps": 6, "save_steps": 2, "capture": {"every": 1, "moments": True},
}  # fmt: skip


def grid(**values: Sequence[Any]) -> list[RunConfig]:
    return SweepConfig.parse({**BASE, "sweep": {"grid": values}}).expand()


def undisturbed(store: Path, configs: Sequence[RunConfig]) -> Store:
    result = run_sweep(plan_sweep(configs, store), workers=0)
    assert set(result.states.values()) == {"done"}
    return Store.open(store)


def environment(**more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LANDSCAPE_LEASE_SECONDS": "3", **more}


def command(*arguments: object) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, silent."""
    return subprocess.Popen(
        [sys.executable, "-m", "landscape", *map(str, arguments)],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


class Forked:
    """A worker or driver forked from a server that has done the imports, so that a hundred can be killed.

    It answers to what `subprocess.Popen` is asked here.
    """

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["landscape.training", "landscape.sweeps.worker", "tests.sweeps.fault_jobs"])

    def __init__(self, name: str, store: Path) -> None:
        self._process = self._context.Process(target=_take_part, args=(name, str(store)))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode


Started = subprocess.Popen[bytes] | Forked


def _take_part(name: str, store: str) -> None:
    """As the commands of these names do."""
    os.environ["LANDSCAPE_LEASE_SECONDS"] = "3"
    if name == "worker":
        work(store, poll=0.2)
    else:
        run_sweep(plan_store(store), workers=0)


def queue(store: Path, configs: Sequence[RunConfig]) -> None:
    enqueue(plan_sweep(configs, store))


def family(process: Started) -> list[psutil.Process]:
    """A driver and its workers, those that live."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(victim: psutil.Process) -> bool:
    try:
        victim.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def progress(store: Path) -> int:
    """Optimizer steps that anybody took, whether or not they still count."""
    files = list(store.glob("runs/*/attempts/*/metrics.jsonl"))
    return sum(path.read_bytes().count(b'"tokens"') for path in files if path.exists())


def disturb(start: Callable[[], Started], store: Path, count: int, kills: int, seed: int) -> int:
    """Keep ``count`` processes running and kill random ones of them and of their children, until so many are dead.

    Each after a random number of further steps, and a random part of a second; some before anything happened.

    Returns:
        The kills that hit; fewer than asked for where all work was done before.
    """
    draw = random.Random(seed)
    running = [start() for _ in range(count)]
    hits = 0
    try:
        while hits < kills:
            goal = progress(store) + draw.choice([0, 1, 1, 2, 2, 3, 5, 8])
            deadline = time.monotonic() + 60
            while progress(store) < goal and time.monotonic() < deadline:
                if all(process.poll() is not None for process in running):
                    break
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.5))
            if any(process.poll() == 0 for process in running):  # nothing was left to do
                break
            members = [member for process in running for member in family(process)]
            victims = [member for member in members if "resource_tracker" not in " ".join(_command(member))]
            if victims and kill(draw.choice(victims)):
                hits += 1
            running = [process for process in running if process.poll() is None]
            running += [start() for _ in range(count - len(running))]
    finally:
        leave(running)
    return hits


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def leave(processes: Sequence[Started]) -> None:
    for process in processes:
        for member in family(process):
            kill(member)
        process.wait()


def contents(run: Run) -> dict[str, Any]:
    """Everything that a run measured, as bytes and lines; without what differs between equal runs."""
    folder = run.attempt_dir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
        line.pop("crc")
    streams = {}
    for stream in run.streams():
        reader = run.snapshots(stream)
        assert reader.damaged_steps() == []
        streams[stream] = (reader.steps.tolist(), (folder / f"snapshots-{stream}.bin").read_bytes())
    return {"lines": lines, "streams": streams, "parquet": run.metrics().drop(columns="seconds").to_csv()}


def assert_equal_stores(found: Store, expected: Store) -> None:
    """No run missing, none twice, and in each the same lines and the same bytes."""
    assert [run.id for run in found.runs()] == [run.id for run in expected.runs()]
    for run, other in zip(found.runs(), expected.runs(), strict=True):
        assert (run.status.state, run.status.step) == ("done", other.status.step)
        assert not run.is_leased
        assert contents(run) == contents(other), run.id


def finishers(store: Store) -> dict[str, int]:
    """By run: attempts that took the last step themselves, rather than resume behind it."""
    counts = {}
    for run in store.runs():
        last = run.status.max_steps
        counts[run.id] = 0
        for folder in (run.path / "attempts").iterdir():
            lines = [
                json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line[-1:] == "}"
            ]
            begun = folder / "attempt.json"
            resumed = json.loads(begun.read_text())["resume_step"] if begun.exists() else 0
            steps = [line["step"] for line in lines if "split" not in line]
            counts[run.id] += resumed < last and last in steps and (folder / "checkpoint" / f"step-{last:06d}").exists()
    return counts
