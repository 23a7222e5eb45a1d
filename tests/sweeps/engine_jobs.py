"""What the engines under test are given to run; imported by name in worker processes, so it stays light."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from landscape.config import RunConfig
from landscape.store import Store
from landscape.store.leases import lease_seconds
from landscape.sweeps import Cell, SweepPlan, run_sweep
from landscape.sweeps.cells import _warnings_of_ours


def add(left: int, right: int) -> int:
    return left + right


def process_id() -> int:
    return os.getpid()


def threads() -> list[str | None]:
    return [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]


def lease_and_niceness() -> list[float]:
    return [lease_seconds(), os.nice(0)]


def fail(message: str) -> None:
    raise RuntimeError(message)


def exit_at_once(code: int) -> None:
    print("last words", file=sys.stderr, flush=True)
    os._exit(code)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float, begun: str, ended: str) -> None:
    """Touches ``begun``; touches ``ended`` if it is interrupted rather than killed."""
    try:
        Path(begun).touch()
        time.sleep(seconds)
    except KeyboardInterrupt:
        Path(ended).touch()
        raise


def sleep_in_steps(seconds: float, begun: str, ended: str) -> None:
    """As `sleep`, for an interrupt that comes between two lines of Python rather than by a signal."""
    try:
        Path(begun).touch()
        for _ in range(int(seconds * 20)):
            time.sleep(0.05)
    except KeyboardInterrupt:
        Path(ended).touch()
        raise


def visible_devices() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all")


def visible_devices_after(seconds: float) -> str:
    time.sleep(seconds)
    return visible_devices()


def ignore_interrupts(begun: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(begun).touch()
    time.sleep(60)


def fake_train(config: dict[str, Any], store: str, expired: object = None) -> dict[str, Any]:
    """Takes no step; what becomes of the run depends on its learning rate, and on a file for those that recover."""
    parsed = RunConfig.parse(config)
    run = next(run for run in Store.open(store).runs() if run.config == parsed)
    run.set_status(state="running", pid=os.getpid(), max_steps=parsed.max_steps)
    with (Path(store) / "calls").open("a") as file:
        file.write(f"{run.id}\n")
    rate = parsed.learning_rate
    if rate == 0.5:
        run.set_status(state="diverged", step=3)
    elif rate == 0.25:
        run.set_status(state="failed", error="Traceback...\nRuntimeError: out of luck")
        raise RuntimeError("out of luck")
    elif rate == 0.125:
        os._exit(9)
    elif rate == 0.0625:
        try:
            (Path(store) / "begun").touch()
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.5)
            (Path(store) / "orderly").touch()
            raise
    elif rate == 0.03125 or (rate == 0.015625 and (Path(store) / "calls").read_text().count(run.id) == 1):
        kill_itself()
    elif rate == 0.0078125:
        run.set_status(state="failed", error="No space left on device")
        return {"state": "failed", "disk_full": True, "error": "No space left on device"}
    else:
        run.set_status(state="done", step=parsed.max_steps)
    with _warnings_of_ours() as warnings:
        if rate == 0.002:
            logging.getLogger("landscape.somewhere").warning("too far from %d home", 3)
            logging.getLogger("elsewhere").warning("not ours")
    return {"state": run.status.state, "warnings": warnings}


def held_by_somebody(store: Path, run_id: str, seconds: float) -> subprocess.Popen[bytes]:
    """Another process that claims a run and keeps renewing its lease for so long; returns once it has it."""
    code = (
        "import time; from landscape.store import Store; "
        f"lease = Store.open({str(store)!r}).get({run_id!r}).claim(); print(1, flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline()
    return process


def plan_of_rates(store: Path, *rates: float) -> SweepPlan:
    """A plan with one run a learning rate, made without a model."""
    configs = [RunConfig.parse({"alpha": 8.0, "learning_rate": rate, "max_steps": 20}) for rate in rates]
    cells = [Cell(f"run-{i}", config, {}, "new", 0, held=False) for i, config in enumerate(configs)]
    return SweepPlan(store, tuple(cells), 0, 0, 10**12)


def run_and_report(store: Path, *rates: float) -> None:
    """A sweep for a test to interrupt; prints what it says of itself."""
    plan = plan_of_rates(store, *rates)
    result = run_sweep(
        plan, workers=1, train="tests.sweeps.engine_jobs:fake_train", prepare="tests.sweeps.engine_jobs:fake_prepare"
    )
    print(result.interrupted, *[result.states[cell.run_id] for cell in plan.cells])


def fake_prepare(configs: list[dict[str, Any]], store: str) -> None:
    with (Path(store) / "prepared").open("a") as file:
        file.write(",".join(str(config["data_seed"]) for config in configs) + "\n")


def failing_prepare(configs: list[dict[str, Any]], store: str) -> None:
    raise RuntimeError("no base loss today")
