"""Analyses that wait in a store for workers: asked once, answered once, and nothing else is ever called."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from landscape.analysis import analyze_gap
from landscape.config import RunConfig
from landscape.store import Store
from landscape.sweeps import queue
from landscape.sweeps.analyses import GAP
from landscape.sweeps.engines import Event, Job
from landscape.sweeps.engines.queued import QueueEngine
from landscape.sweeps.worker import work
from tests.command_line import SETS, invoke, payload


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs that were evaluated on both splits; nothing was trained."""
    store = Store.create(tmp_path / "store")
    for seed in range(2):
        run = store.add(RunConfig.parse({"alpha": 8, "max_steps": 4, "seed": seed}), f"run-{seed}", {"data": "d"})
        with run.begin_attempt() as attempt:
            for split, loss in (("eval", 2.0), ("probe", 1.5 - seed)):
                attempt.log({"step": 4, "split": split, "loss": loss, "standard_error": 0.1, "num_examples": 8})
        run.set_status(state="done", step=4)
    return store


def question(store: Store, run_id: str, function: str = GAP) -> Job:
    return Job(run_id, function, {"store": str(store.path), "run_id": run_id})


def finished(events: list[Event]) -> dict[str, Event]:
    return {event.key: event for event in events if event.kind == "finished"}


def test_whoever_has_time_answers(store: Store) -> None:
    engine, told = QueueEngine(store.path, poll=0.01), []
    events = engine.run([question(store, f"run-{seed}") for seed in range(2)])
    assert [next(events).kind for _ in range(2)] == ["tick", "tick"]
    assert work(store.path, poll=0.01, told=lambda *said: told.append(said)).analyses == 2
    seen = list(events)
    assert [event.kind for event in seen if event.kind != "tick"] == ["started", "finished"] * 2
    assert sorted(told) == [("run-0", "analyzed", None), ("run-1", "analyzed", None)]
    for key, event in finished(seen).items():
        expected = json.loads(json.dumps(analyze_gap(store.get(key)).to_dict("records")))
        assert event.result == expected
        assert expected[0]["gap"] == pytest.approx(0.5 + int(key[-1]))
    assert list((store.path / "queue").iterdir()) == []
    assert work(store.path, poll=0.01).analyses == 0


def test_the_same_question_is_there_once_and_its_answer_is_found_again(store: Store) -> None:
    first, second = (QueueEngine(store.path, poll=0.01).run([question(store, "run-0")]) for _ in range(2))
    next(first), next(second)
    assert len(list((store.path / "queue").iterdir())) == 1
    first.close()  # its driver was killed
    work(store.path, poll=0.01)
    assert finished(list(second))["run-0"].error is None


def test_many_workers_answer_each_question_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(queue, "call", lambda job: calls.append(job.key))
    for number in range(8):
        queue.put(store, Job(f"run-{number % 2}", GAP, {"run_id": f"run-{number % 2}", "number": number}))
    threads = [threading.Thread(target=work, args=(store.path,), kwargs={"poll": 0.01}) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == ["run-0"] * 4 + ["run-1"] * 4


def test_another_worker_takes_over_from_one_that_died(store: Store) -> None:
    folder = queue.put(store, question(store, "run-0"))
    code = f"import os, pathlib; from landscape.store.leases import claim_lease as c; c(pathlib.Path({str(folder)!r}))"
    assert subprocess.run([sys.executable, "-c", f"{code}; os._exit(9)"], check=False).returncode == 9
    assert queue.is_taken(folder)
    assert work(store.path, poll=0.01).analyses == 1
    assert len((queue.answer_of(folder) or {})["result"]) == 1


def test_what_kills_every_worker_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = queue.put(store, question(store, "run-0"))
    monkeypatch.setattr(queue, "MOST_DEATHS", 0)
    work(store.path, poll=0.01)
    assert (queue.answer_of(folder) or {})["error"] == "killed its worker 0 times"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"key": "x", "function": "os:mkdir", "arguments": {"path": "TARGET"}}, "is no analysis: 'os:mkdir'"),
        ({"key": "x", "function": ["os"], "arguments": {}}, "is no analysis"),
        ({"key": "x", "function": GAP, "arguments": {"run_id": "../../x"}}, "has no run '../../x'"),
        ({"key": 5, "function": GAP, "arguments": []}, "is no analysis"),
        ([], "instead of an object"),
    ],
)
def test_only_analyses_are_called(store: Store, tmp_path: Path, content: object, message: str) -> None:
    folder = store.path / "queue" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(content).replace("TARGET", str(tmp_path / "made")))
    (store.path / "queue" / "fedcba9876543210").symlink_to(tmp_path)
    work(store.path, poll=0.01)
    assert message in (queue.answer_of(folder) or {})["error"]
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "leases").exists()


def test_the_command_waits_for_a_worker(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert invoke("train", *SETS, "--store", store).exit_code == 0
    worker = threading.Thread(target=work_until_answered, args=(store, 2))
    worker.start()
    result = invoke("analyze", "trace", store, "--steps", "0", "--num-probes", "2", "--engine", "worker", "--json")
    worker.join()
    assert result.exit_code == 0, result.output
    (rows,) = payload(result)["results"].values()
    assert [row["step"] for row in rows] == [0]


def work_until_answered(store: Path, count: int) -> None:
    """As a worker that is started again and again, until it has answered so many."""
    answered = 0
    while answered < count:
        answered += work(store, poll=0.05).analyses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "rey"), "--engine: 'rey' is not known; allowed: local, ray, worker"),
        (("--engine", "worker", "--workers", "2"), "start: landscape worker STORE"),
    ],
)
def test_engines_are_checked_first(store: Store, options: tuple[str, ...], message: str) -> None:
    result = invoke("analyze", "trace", store.path, *options)
    assert result.exit_code == 2
    assert message in result.output
