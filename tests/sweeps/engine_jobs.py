"""What the engines under test are given to run; imported by name in worker processes, so it stays light."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from landscape.config import RunConfig
from landscape.store import Store
from landscape.sweeps import Cell, SweepPlan, run_sweep
from landscape.sweeps.cells import _warnings_of_ours


def add(left: int, right: int) -> int:
    return left + right


def process_id() -> int:
    return os.getpid()


def threads() -> list[str | None]:
    return [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]


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


def ignore_interrupts(begun: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(begun).touch()
    time.sleep(60)


def fake_train(config: dict[str, Any], store: str) -> dict[str, Any]:
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
    else:
        run.set_status(state="done", step=parsed.max_steps)
    with _warnings_of_ours() as warnings:
        if rate == 0.002:
            logging.getLogger("landscape.somewhere").warning("too far from %d home", 3)
            logging.getLogger("elsewhere").warning("not ours")
    return {"state": run.status.state, "warnings": warnings}


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
