"""The demo: a small sweep, sharpness and gap of what it captured, and a report, without a download."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from landscape.config.run import read_yaml
from landscape.config.sweep import SweepConfig
from landscape.resources import experiment
from landscape.sweeps import SweepPlan, SweepResult, plan_sweep, run_sweep
from landscape.sweeps.analyses import GAP, SHARPNESS, run_analyses, spread
from landscape.sweeps.engines import Engine, make_engine

if TYPE_CHECKING:
    from landscape.store import Store

SNAPSHOTS = 6
"""At which sharpness is measured, from the first step to the last; enough to see it rise and fall."""
SHARPNESS_OPTIONS = {"num_examples": 32, "tol": 1e-2}
"""A quarter of the probe split and two digits: a fourth of the time, and the curves tell the same story."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo left behind.

    Attributes:
        report: the file; None after Ctrl-C.
        analysis_errors: what could not be measured, by run id.
    """

    report: Path | None
    sweep: SweepResult
    analysis_errors: dict[str, str]
    seconds: float


def run_demo(
    store: str | Path,
    report: str | Path,
    *,
    workers: int | None = None,
    console: Console | None = None,
    sweep_file: str | Path | None = None,
) -> DemoResult:
    """Train, analyze and report; what is already in the store is not done again.

    Args:
        store: folder of the run store, made if absent.
        report: HTML file to write.
        workers: processes at a time; None: one a core.
        console: where progress is shown; default: nowhere.
        sweep_file: default: the shipped ``experiments/demo.yaml``.

    Raises:
        StoreError: too little disk, or a folder that is no store.
    """
    from landscape.report import write_report
    from landscape.store import Store

    began = time.monotonic()
    sweep = SweepConfig.parse(read_yaml(sweep_file or experiment("demo")))
    plan = plan_sweep(sweep.expand(), store)
    with contextlib.closing(make_engine("local", workers, num_jobs=len(plan.cells))) as engine:
        result = run_sweep(plan, engine=engine, console=console)
        if result.interrupted:
            return DemoResult(None, result, {}, time.monotonic() - began)
        opened = Store.open(store)
        errors = _analyze(opened, plan, engine, console)
    path = write_report(opened, Path(report), title="Demo")
    return DemoResult(path, result, errors, time.monotonic() - began)


def _analyze(store: Store, plan: SweepPlan, engine: Engine, console: Console | None) -> dict[str, str]:
    """Sharpness and gap of every run that ended; returns what went wrong, by run id."""
    runs = [run for cell in plan.cells if (run := store.get(cell.run_id)).status.state in ("done", "diverged")]
    place = str(store.path.absolute())
    gap = {run.id: {"store": place, "run_id": run.id} for run in runs}
    sharpness = {
        run.id: {**gap[run.id], "steps": spread(run.snapshots().steps, SNAPSHOTS), "options": SHARPNESS_OPTIONS}
        for run in runs
    }
    measured = run_analyses("sharpness", SHARPNESS, sharpness, engine, console)
    return measured.errors | run_analyses("gap", GAP, gap, engine, console).errors
