"""Plans and their execution, with runs that take no step (tests/sweeps/engine_jobs.py)."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from landscape.config import RunConfig
from landscape.config.sweep import SweepConfig
from landscape.errors import StoreError, UsageError
from landscape.store import Store
from landscape.store.leases import MOST_DEATHS
from landscape.sweeps import SweepPlan, SweepResult, plan_sweep, run_sweep
from landscape.sweeps.plan import free_disk, gigabytes, plan_store
from landscape.sweeps.runner import enqueue
from landscape.training import identify
from tests.sweeps.engine_jobs import held_by_somebody, plan_of_rates

BASE = {"model": "tiny", "task": "arithmetic", "max_steps": 20, "train_examples": 64, "alpha": "r"}
DONE, DIVERGES, FAILS, DIES, HANGS, WARNS = 1e-3, 0.5, 0.25, 0.125, 0.0625, 2e-3
KILLED, KILLED_ONCE, FULL = 0.03125, 0.015625, 0.0078125


def configs(base: dict[str, Any] | None = None, **grid: Any) -> list[RunConfig]:
    return SweepConfig.parse({**BASE, **(base or {}), "sweep": {"grid": grid}}).expand()


def execute(plan: SweepPlan, **changes: Any) -> SweepResult:
    settings = {
        "workers": 0,
        "train": "tests.sweeps.engine_jobs:fake_train",
        "prepare": "tests.sweeps.engine_jobs:fake_prepare",
    }
    return run_sweep(plan, **{**settings, **changes})


def calls(store: Path) -> list[str]:
    path = store / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_equal_cells_are_run_once(tmp_path: Path) -> None:
    plan = plan_sweep(configs(method=["lora", "full"], rank=[4, 8], seed=[0, 1]), tmp_path / "store")
    assert len(plan.cells) == 6
    assert plan.duplicates == 2
    assert plan.steps == 6 * 20
    assert [cell.state for cell in plan.cells] == ["new"] * 6


def test_planning_writes_nothing(tmp_path: Path) -> None:
    plan_sweep(configs(rank=[4, 8]), tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_ids_are_those_of_training(tmp_path: Path) -> None:
    given = configs(rank=[4, 8], method=["mgpo"])
    plan = plan_sweep(given, tmp_path / "store")
    assert [cell.run_id for cell in plan.cells] == [identify(config)[0] for config in given]
    assert [cell.config.alpha for cell in plan.cells] == [4.0, 8.0]


def test_the_longer_of_two_equal_cells_is_kept(tmp_path: Path) -> None:
    given = configs({"lr_scheduler_steps": 10}, max_steps=[10, 30, 20])
    plan = plan_sweep(given, tmp_path / "store")
    assert [cell.config.max_steps for cell in plan.cells] == [30]
    assert plan.duplicates == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lroa"}, r"method: 'lroa' is not known; .*Did you mean 'lora'\?"),
        ({"model": "tinny"}, "tinny"),
        ({"task": "arithmetics"}, r"task: 'arithmetics' .*'arithmetic'"),
        ({"method": "mgpo", "method_args": {"rhoo": 1}}, r"method_args\.rhoo: .*Did you mean 'rho'\?"),
        ({"target_modules": ["no_such_layer"]}, "no_such_layer"),
    ],
)
def test_any_bad_cell_stops_the_sweep_before_it_starts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_sweep([*configs(rank=[4]), *configs(changes, rank=[8])], tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_every_kind_of_end(tmp_path: Path) -> None:
    plan = plan_of_rates(tmp_path / "store", DONE, DIVERGES, FAILS, DIES, 2e-3)
    result = execute(plan, workers=2)
    ids = [cell.run_id for cell in plan.cells]
    assert [result.states[run_id] for run_id in ids] == ["done", "diverged", "failed", "failed", "done"]
    assert result.counts == {"done": 2, "diverged": 1, "failed": 2}
    assert set(result.errors) == {ids[2], ids[3]}
    assert result.errors[ids[2]].endswith("RuntimeError: out of luck")
    assert result.errors[ids[3]] == "worker process exited with code 9"
    assert sorted(calls(plan.store)) == sorted(ids)
    assert not result.interrupted


def test_finished_runs_are_not_run_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    given = configs(learning_rate=[DONE, DIVERGES, FAILS])
    execute(plan_sweep(given, store))
    again = plan_sweep([*given, *configs(learning_rate=[3e-3])], store)
    assert [cell.state for cell in again.cells] == ["done", "diverged", "failed", "new"]
    assert [cell.finished for cell in again.cells] == [True, True, False, False]
    before = len(calls(store))
    result = execute(again)
    assert calls(store)[before:] == [cell.run_id for cell in again.pending]
    assert result.counts == {"done": 2, "diverged": 1, "failed": 1}


def test_a_done_run_that_is_to_be_longer_is_pending(tmp_path: Path) -> None:
    base = {"lr_scheduler_steps": 20}
    execute(plan_sweep(configs(base, rank=[4]), tmp_path / "store"))
    longer = plan_sweep(configs(base | {"max_steps": 40}, rank=[4]), tmp_path / "store")
    assert [(cell.state, cell.finished) for cell in longer.cells] == [("done", False)]


def test_a_run_that_somebody_else_trains_is_not_pending(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = plan_sweep(configs(rank=[4, 8]), store)
    enqueue(first)
    holder = held_by_somebody(store, first.cells[0].run_id, 60)
    plan = plan_sweep(configs(rank=[4, 8]), store)
    assert [cell.held for cell in plan.cells] == [True, False]
    assert [cell.run_id for cell in plan.pending] == [first.cells[1].run_id]
    assert plan.unfinished == plan.cells
    holder.kill()
    holder.wait()
    assert not any(cell.held for cell in plan_sweep(configs(rank=[4, 8]), store).cells)


def test_a_run_whose_owner_is_killed_meanwhile_is_taken_over(tmp_path: Path) -> None:
    store = tmp_path / "store"
    plan = plan_sweep(configs(rank=[4, 8]), store)
    enqueue(plan)
    holder = held_by_somebody(store, plan.cells[0].run_id, 60)
    threading.Timer(2.5, holder.kill).start()
    began = time.monotonic()
    result = execute(plan_sweep(configs(rank=[4, 8]), store))
    holder.wait()
    assert time.monotonic() - began > 2
    assert result.counts == {"done": 2}
    assert calls(store) == [plan.cells[1].run_id, plan.cells[0].run_id]


def test_a_run_that_its_owner_finishes_meanwhile_is_not_run_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    plan = plan_sweep(configs(rank=[4, 8]), store)
    _, runs = enqueue(plan)
    run = runs[plan.cells[0].run_id]
    with run.claim() as lease:
        timer = threading.Timer(2.0, lambda: run.under(lease).set_status(state="done", step=20))
        timer.start()
        result = execute(plan_sweep(configs(rank=[4, 8]), store))
    assert result.counts == {"done": 2}
    assert calls(store) == [plan.cells[1].run_id]


def test_a_cell_whose_worker_is_killed_is_begun_again_but_not_for_ever(tmp_path: Path) -> None:
    plan = plan_of_rates(tmp_path / "store", KILLED, KILLED_ONCE, DONE)
    result = execute(plan, workers=1)
    assert [result.states[cell.run_id] for cell in plan.cells] == ["failed", "done", "done"]
    assert calls(plan.store).count("run-0") == MOST_DEATHS
    assert calls(plan.store).count("run-1") == 2
    assert "killed by SIGKILL" in result.errors["run-0"]


def test_a_full_disk_stops_the_sweep_and_says_what_is_needed(tmp_path: Path) -> None:
    plan = plan_sweep(configs(learning_rate=[DONE, FULL, 3e-3]), tmp_path / "store")
    result = execute(plan)
    assert [result.states[cell.run_id] for cell in plan.cells] == ["done", "failed", "queued"]
    needed = sum(cell.disk for cell in plan.cells[1:])
    assert result.stopped is not None
    assert result.stopped.startswith(f"the disk is full: the runs that are left need about {gigabytes(needed)}, ")


def test_a_store_knows_what_is_left_of_its_sweeps(tmp_path: Path) -> None:
    store = tmp_path / "store"
    plan = plan_sweep(configs(learning_rate=[DONE, FAILS, DIVERGES, 3e-3, 4e-3]), store)
    execute(plan)
    shutil.rmtree(store / "runs" / plan.cells[4].run_id)  # as if the driver had been killed before it was made
    Store.open(store).get(plan.cells[3].run_id).set_status(state="interrupted", step=7)
    left = plan_store(store)
    assert left.snapshot_bytes == sum(plan.cells[index].disk for index in (1, 3, 4)) > 0
    assert {cell.run_id: cell.state for cell in left.unfinished} == {
        plan.cells[1].run_id: "failed", plan.cells[3].run_id: "interrupted", plan.cells[4].run_id: "new",
    }  # fmt: skip
    assert {cell.run_id: cell.config for cell in left.cells} == {cell.run_id: cell.config for cell in plan.cells}
    failed = plan_store(store, failed_only=True)
    assert [cell.run_id for cell in failed.cells] == [plan.cells[1].run_id]
    assert execute(left).counts == {"done": 3, "failed": 1, "diverged": 1}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = tmp_path / "store"
    enqueue(plan_sweep(configs(rank=[4]), store))
    (path,) = (store / "sweeps").iterdir()
    path.write_text('{"cells": [{}]}')
    with pytest.raises(StoreError, match=f"{path.name} is damaged: KeyError"):
        plan_store(store)


def test_shared_work_is_prepared_once(tmp_path: Path) -> None:
    given = [*configs(rank=[4, 8], seed=[0, 1]), *configs({"max_length": 64}, rank=[4])]
    execute(plan_sweep(given, tmp_path / "store"))
    assert (tmp_path / "store" / "prepared").read_text().splitlines() == ["0,1", "0"]


def test_nothing_is_prepared_where_nobody_wants_it(tmp_path: Path) -> None:
    execute(plan_sweep(configs({"base_loss": False}, rank=[4]), tmp_path / "store"))
    assert not (tmp_path / "store" / "prepared").exists()


def test_a_failed_preparation_is_told_and_not_fatal(tmp_path: Path) -> None:
    result = execute(
        plan_sweep(configs(rank=[4]), tmp_path / "store"), prepare="tests.sweeps.engine_jobs:failing_prepare"
    )
    assert result.counts == {"done": 1}
    assert [error.splitlines()[-1] for error in result.preparation_errors] == ["RuntimeError: no base loss today"]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_toolkit_warned_of_reaches_the_result(tmp_path: Path, workers: int) -> None:
    plan = plan_of_rates(tmp_path / "store", DONE, WARNS)
    result = execute(plan, workers=workers)
    assert result.warnings == {"run-1": ["too far from 3 home"]}


def test_too_little_disk_is_seen_before_the_start(tmp_path: Path) -> None:
    plan = dataclasses.replace(plan_sweep(configs(rank=[4]), tmp_path / "store"), snapshot_bytes=2 * 10**18)
    with pytest.raises(StoreError, match=r"needs about 2000000000.00 GB of snapshots and [\d.]+ GB are free; lower"):
        execute(plan)
    assert not list(tmp_path.iterdir())


def test_the_disk_estimate_is_that_of_the_snapshots(tmp_path: Path) -> None:
    def estimate(**capture: Any) -> int:
        return plan_sweep(configs({"capture": capture}, rank=[4], seed=[0, 1]), tmp_path / "store").snapshot_bytes

    lines = estimate(policy="none")
    assert 0 < lines <= 2 * 20 * 1000
    record = (estimate(every=20) - lines) / (2 * 2)
    assert record == int(record) > 0
    assert estimate(every=1) - lines == 2 * 21 * record
    assert estimate(every=1, moments=True) - lines == 2 * 21 * 2 * record


def test_free_disk_of_a_path_that_does_not_exist(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.1)


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 MB"), (1.5e6, "1.5 MB"), (1e8, "0.10 GB"), (2.346e9, "2.35 GB")])
def test_sizes(size: float, text: str) -> None:
    assert gigabytes(int(size)) == text


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_names_every_run(tmp_path: Path, is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=150)
    plan = plan_sweep(configs(learning_rate=[DONE, FAILS]), tmp_path / "store")
    execute(plan, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for cell in plan.cells:
        assert cell.run_id in text
    assert "[1/2] done" in text
    assert "[2/2] failed" in text
    assert "RuntimeError: out of luck" in text
    assert ("1 failed" in text) == is_terminal


@pytest.mark.parametrize(
    ("numbers", "orderly"),
    [
        ([signal.SIGINT], True),
        ([signal.SIGTERM], True),
        ([signal.SIGTERM, signal.SIGTERM], True),  # as `timeout` does
        ([signal.SIGINT, signal.SIGINT], False),
    ],
)
def test_an_interrupted_sweep_leaves_every_run_in_order(
    tmp_path: Path, numbers: list[signal.Signals], orderly: bool
) -> None:
    store = tmp_path / "store"
    code = (
        "import pathlib; from tests.sweeps.engine_jobs import run_and_report; "
        f"run_and_report(pathlib.Path({str(store)!r}), {DONE}, {HANGS}, 2e-3)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (store / "begun").exists():
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    output, _ = process.communicate(timeout=30)
    assert output.split() == ["True", "done", "interrupted", "queued"]
    assert (store / "orderly").exists() == orderly
