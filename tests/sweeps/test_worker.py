"""Workers that share a store without anybody to hand runs out."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from landscape.config import RunConfig
from landscape.store import Store
from landscape.sweeps import plan_sweep
from landscape.sweeps.runner import enqueue
from landscape.sweeps.worker import work
from tests.command_line import SETS, invoke, payload
from tests.sweeps.engine_jobs import fake_train, held_by_somebody
from tests.sweeps.test_sweep_runner import DIVERGES, DONE, FAILS, FULL, calls, configs

QUICKLY = {"train": fake_train, "poll": 0.05}


@pytest.fixture
def queued(tmp_path: Path) -> Path:
    """Runs that will be done, diverge, fail and be done."""
    enqueue(plan_sweep(configs(learning_rate=[DONE, DIVERGES, FAILS, 3e-3]), tmp_path / "store"))
    return tmp_path / "store"


def states(store: Path) -> dict[float, str]:
    return {run.config.learning_rate: run.status.state for run in Store.open(store).runs()}


def test_one_worker_takes_everything(queued: Path) -> None:
    told: list[tuple[str, str]] = []
    result = work(queued, told=lambda run_id, state, error: told.append((run_id, state)), **QUICKLY)
    assert states(queued) == {DONE: "done", DIVERGES: "diverged", FAILS: "failed", 3e-3: "done"}
    assert sorted(result.states.items()) == sorted(told)
    assert [error.splitlines()[-1] for error in result.errors.values()] == ["RuntimeError: out of luck"]
    assert (result.left, result.stopped) == (0, None)
    assert work(queued, **QUICKLY).states == {}, "a failed run is left to resume"


def test_many_workers_take_each_run_once(queued: Path) -> None:
    settings = {**QUICKLY, "train": claimed_train}
    threads = [threading.Thread(target=work, args=(queued,), kwargs=settings) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls(queued)) == sorted(run.id for run in Store.open(queued).runs())


def claimed_train(config: dict[str, Any], store: str, expired: object = None) -> dict[str, Any]:
    """`fake_train` under a lease."""
    from landscape.store import LeaseHeldError

    parsed = RunConfig.parse(config)
    run = next(run for run in Store.open(store).runs() if run.config == parsed)
    try:
        with run.claim():
            if run.status.state != "queued":
                return {"state": "held"}
            time.sleep(0.05)
            return fake_train(config, store)
    except LeaseHeldError:
        return {"state": "held"}


def test_limits_and_choice(queued: Path) -> None:
    first = work(queued, max_runs=1, choose=lambda run: run.config.learning_rate == 3e-3, **QUICKLY)
    assert list(first.states.values()) == ["done"]
    assert states(queued)[3e-3] == "done"
    second = work(queued, max_runs=1, **QUICKLY)
    assert second.stopped == "--max-runs 1 reached"
    assert len(calls(queued)) == 2


def test_a_worker_waits_for_others_to_die_or_to_finish(queued: Path) -> None:
    run_id = next(run.id for run in Store.open(queued).runs() if run.config.learning_rate == DONE)
    holder = held_by_somebody(queued, run_id, 60)
    idle = work(queued, idle_timeout=0.3, **QUICKLY)
    assert (idle.stopped, idle.left) == ("nothing to take for 0.3 s", 1)
    threading.Timer(0.5, holder.kill).start()
    last = work(queued, **QUICKLY)
    holder.wait()
    assert list(last.states) == [run_id]


def test_a_full_disk_stops_the_worker(tmp_path: Path) -> None:
    enqueue(plan_sweep(configs(learning_rate=[FULL]), tmp_path / "store"))
    result = work(tmp_path / "store", **QUICKLY)
    assert result.stopped == "the disk is full"


def test_a_worker_makes_the_runs_that_a_killed_driver_did_not(queued: Path) -> None:
    import shutil

    victim = Store.open(queued).runs()[0]
    shutil.rmtree(victim.path)
    assert victim.id in work(queued, **QUICKLY).states


def test_runs_of_others_are_not_taken(queued: Path) -> None:
    store = Store.open(queued)
    foreign = store.add(RunConfig.parse({"task": "external", "alpha": 8.0}), "external-lora-s0", {})
    damaged = store.runs()[-1]
    (damaged.path / "status.json").write_text("{")
    assert not {foreign.id, damaged.id} & work(queued, **QUICKLY).states.keys()
    assert foreign.status.state == "queued"


def test_a_run_that_cannot_begin_here_is_left_to_others(tmp_path: Path) -> None:
    enqueue(plan_sweep(configs(learning_rate=[DONE]), tmp_path / "store"))
    run = Store.open(tmp_path / "store").runs()[0]
    result = work(tmp_path / "store", train=lambda **_: 1 / 0, poll=0.05)  # type: ignore[arg-type,return-value]
    assert list(result.states.values()) == ["failed"]
    assert run.status.state == "queued"


# --- the commands ---


@pytest.fixture
def small(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    answer = payload(invoke("sweep", *SETS, "--seed", "0..2", "--store", store, "--queue", "--json"))
    assert len(answer["queued"]) == answer["cells"] == 3
    return store


def test_queue_work_resume(small: Path) -> None:
    assert "3 queued" in invoke("status", small, "--once").stdout
    first = invoke("worker", small, "--where", "seed==0", "--json")
    assert first.exit_code == 0, first.output
    assert list(payload(first)["states"].values()) == ["done"]
    second = invoke("worker", small, "--max-runs", 1)
    assert "1 runs taken (0 failed); --max-runs 1 reached" in second.stdout
    last = payload(invoke("resume", small, "--workers", 0, "--json"))
    assert (last["finished_before"], last["counts"]) == (2, {"done": 3})
    assert payload(invoke("worker", small, "--json"))["left"] == 0
    assert invoke("status", small).stdout.splitlines()[-1] == "3 runs: 3 done"


def test_resume_of_what_failed(small: Path) -> None:
    runs = Store.open(small).runs()
    runs[0].set_status(state="failed", error="RuntimeError: no luck")
    answer = payload(invoke("resume", small, "--failed-only", "--workers", 0, "--json"))
    assert answer["states"] == {runs[0].id: "done"}
    assert [run.status.state for run in runs] == ["done", "queued", "queued"]


def test_a_failed_run_is_exit_code_three(small: Path) -> None:
    run = Store.open(small).runs()[0]
    (run.path / "attempts").write_text("in the way")
    for command in (["worker", small, "--json"], ["resume", small, "--failed-only", "--workers", 0, "--json"]):
        result = invoke(*command)
        assert result.exit_code == 3
        assert list(payload(result)["errors"]) == [run.id]


def test_status_tells_pace_errors_and_departures(small: Path) -> None:
    runs = Store.open(small).runs()
    with runs[0].begin_attempt() as attempt:
        for step in (1, 2):
            attempt.log({"step": step, "loss_clean": 1.0, "seconds": 0.25})
    runs[0].set_status(state="running", step=2, overrides={
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    })  # fmt: skip
    runs[1].set_status(state="failed", error="Traceback\nRuntimeError: no luck")
    screen = invoke("status", small).stdout
    assert "3 runs: 1 failed, 1 queued, 1 running; step 2 of 6, 4.0 steps/s, about 1 s left" in screen
    assert "memory ran out: now 2 examples x 2" in screen
    assert "RuntimeError: no luck" in screen
    answer = payload(invoke("status", small, "--json"))
    pace = [answer[key] for key in ("steps", "max_steps", "steps_per_second", "seconds_left")]
    assert pace == [2, 6, 4.0, 1.0]
    assert answer["errors"] == {runs[1].id: "RuntimeError: no luck"}
    assert len(payload(invoke("status", small, "--json", "--limit", 1))["runs"]) == 1


def test_a_run_whose_process_is_gone_is_shown_as_interrupted(small: Path) -> None:
    run = Store.open(small).runs()[0]
    holder = held_by_somebody(small, run.id, 60)
    run.set_status(state="running")
    assert payload(invoke("status", small, "--json"))["counts"] == {"queued": 2, "running": 1}
    holder.kill()
    holder.wait()
    assert payload(invoke("status", small, "--json"))["counts"] == {"interrupted": 1, "queued": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["worker", "{}", "--max-runs", "-1"], "--max-runs: -1 is negative"),
        (["worker", "{}", "--where", "rnk==8"], "unknown key 'rnk'"),
        (["resume", "{}", "--engine", "slurm"], "engine: 'slurm' is not known; allowed: local, ray"),
        (["resume", "{}", "--cpus-per-run", "0"], "--cpus-per-run: 0 must be more than 0"),
        (["resume", "{}", "--gpus-per-run", "-1"], "--gpus-per-run: -1 is negative"),
        (["status", "{}", "--watch", "--json"], "--watch and --json"),
        (["status", "{}", "--interval", "0"], "--interval: 0 must be more than 0"),
    ],
)
def test_bad_arguments(small: Path, arguments: list[str], message: str) -> None:
    result = invoke(*(argument.format(small) for argument in arguments))
    assert result.exit_code == 2, json.dumps(result.output)
    assert message in result.stderr
