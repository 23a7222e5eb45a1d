"""The process pool: whatever becomes of one job, the others get their turn."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from landscape.errors import UsageError
from landscape.sweeps.engines import Engine, Event, InlineEngine, Job, LocalEngine, make_engine
from landscape.sweeps.engines.ray import RayEngine

ENGINES = {"inline": InlineEngine, "local": lambda: LocalEngine(2, poll=0.05, grace=10)}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with contextlib.closing(ENGINES[request.param]()) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[LocalEngine]:
    with contextlib.closing(LocalEngine(1, poll=0.05, grace=10)) as made:
        yield made


def job(key: str, function: str, **arguments: object) -> Job:
    return Job(key, f"tests.sweeps.engine_jobs:{function}", dict(arguments))


def finished(engine: Engine, jobs: list[Job]) -> dict[str, Event]:
    events = list(engine.run(jobs))
    started = [event.key for event in events if event.kind == "started"]
    ended = [event.key for event in events if event.kind == "finished"]
    assert sorted(started) == sorted(ended) == sorted(item.key for item in jobs)
    for key in started:
        kinds = [event.kind for event in events if event.key == key]
        assert kinds == ["started", "finished"]
    return {event.key: event for event in events if event.kind == "finished"}


def wait_for(path: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.02)


def test_every_job_is_run_once_and_answers(engine: Engine) -> None:
    events = finished(engine, [job(str(i), "add", left=i, right=10) for i in range(5)])
    assert {key: event.result for key, event in events.items()} == {str(i): i + 10 for i in range(5)}


def test_no_jobs_no_events(engine: Engine) -> None:
    assert [event for event in engine.run([]) if event.kind != "tick"] == []


def test_an_exception_ends_its_job_only(engine: Engine) -> None:
    events = finished(engine, [job("bad", "fail", message="no such luck"), job("good", "add", left=1, right=2)])
    assert events["good"].result == 3
    assert (events["bad"].error or "").endswith("RuntimeError: no such luck")


def test_an_unknown_function_is_an_error_of_its_job(engine: Engine) -> None:
    assert "no_such_function" in (finished(engine, [job("a", "no_such_function")])["a"].error or "")


def test_workers_stay_warm_and_are_others(pool: LocalEngine) -> None:
    first = finished(pool, [job("a", "process_id"), job("b", "process_id")])
    second = finished(pool, [job("c", "process_id")])
    pids = {event.result for event in (*first.values(), *second.values())}
    assert len(pids) == 1
    assert pids != {os.getpid()}


@pytest.mark.parametrize(
    ("function", "arguments", "cause"),
    [
        ("exit_at_once", {"code": 3}, "exited with code 3"),
        ("kill_itself", {}, r"killed by SIGKILL \(out of memory\?\)"),
    ],
)
def test_a_dead_worker_is_replaced(pool: LocalEngine, function: str, arguments: dict, cause: str) -> None:
    events = finished(pool, [job("dead", function, **arguments), job("next", "add", left=1, right=1)])
    assert events["next"].result == 2
    with pytest.raises(RuntimeError, match=cause):
        raise RuntimeError(events["dead"].error)


def test_a_dead_worker_is_quoted(pool: LocalEngine) -> None:
    error = finished(pool, [job("dead", "exit_at_once", code=1)])["dead"].error or ""
    assert error.splitlines() == ["last words", "worker process exited with code 1"]


def test_a_worker_killed_while_idle_costs_no_job(pool: LocalEngine) -> None:
    pid = finished(pool, [job("a", "process_id")])["a"].result
    os.kill(pid, 9)
    while any(child.pid == pid for child in multiprocessing.active_children()):
        time.sleep(0.01)
    assert finished(pool, [job("b", "add", left=2, right=2)])["b"].result == 4


@pytest.mark.parametrize(("set_to", "expected"), [(None, ["3", "3"]), ("2", ["2", "2"])])
def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch, set_to: str | None, expected: list[str]) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if set_to is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    with contextlib.closing(LocalEngine(1, threads=3, poll=0.05)) as pool:
        assert finished(pool, [job("a", "threads")])["a"].result == expected


def test_closing_the_iterator_interrupts_the_job(pool: LocalEngine, tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    events = pool.run([job("long", "sleep", seconds=60, begun=str(begun), ended=str(ended))])
    assert next(events).kind == "started"
    wait_for(begun)
    began = time.monotonic()
    events.close()
    assert ended.exists()
    assert time.monotonic() - began < 10


def test_a_job_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    pool = LocalEngine(1, poll=0.05, grace=0.5)
    begun = tmp_path / "begun"
    events = pool.run([job("deaf", "ignore_interrupts", begun=str(begun))])
    next(events)
    wait_for(begun)
    began = time.monotonic()
    events.close()
    assert 0.4 < time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("name", "workers", "message"),
    [
        ("locl", None, r"engine: 'locl' is not known; allowed: local, ray\. Did you mean 'local'\?"),
        ("local", -1, "workers: -1 is negative"),
    ],
)
def test_bad_engines_are_refused(name: str, workers: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_engine(name, workers)


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for make in (lambda: make_engine("ray", 1), RayEngine):
        with pytest.raises(UsageError, match=r"ray is not installed: pip install 'lora-landscape\[ray\]'"):
            make()


@pytest.mark.parametrize(("workers", "num_jobs", "expected"), [(0, 5, 0), (3, 5, 3), (8, 2, 2), (4, 0, 1)])
def test_workers_are_no_more_than_jobs(workers: int, num_jobs: int, expected: int) -> None:
    assert make_engine("local", workers, num_jobs=num_jobs).num_workers == expected
