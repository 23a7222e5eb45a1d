"""Sweeps that are killed at any moment, on any engine, end as if nothing had happened."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from landscape.store import Store
from landscape.sweeps import run_sweep
from landscape.sweeps.plan import plan_store
from tests.sweeps.fault_jobs import (
    Forked,
    Started,
    assert_equal_stores,
    command,
    disturb,
    finishers,
    grid,
    kill,
    leave,
    queue,
    undisturbed,
)

SMALL = {"method": ["mgpo"], "seed": [0, 1]}
LARGE = {"method": ["lora", "mgpo", "ggpo"], "rank": [4, 8], "seed": [0, 1, 2]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return undisturbed(tmp_path_factory.mktemp("undisturbed") / "store", grid(**SMALL))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return undisturbed(tmp_path_factory.mktemp("undisturbed") / "store", grid(**LARGE))


def kill_at_step(store: Path, step: int) -> None:
    """Kill the process whose lease some run is under, once it has come so far."""
    import psutil

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for run in Store.open(store).runs():
            claim, lines = run.last_claim, 0
            if claim is None or not claim.is_open or claim.pid is None:
                continue
            path = run.path / "attempts" / str(run.status.attempt) / "metrics.jsonl"
            with contextlib.suppress(OSError):
                lines = path.read_bytes().count(b'"tokens"')
            if lines >= step:
                kill(psutil.Process(claim.pid))
                return
        time.sleep(0.01)
    raise AssertionError("nobody came so far")


@pytest.mark.parametrize("who", ["worker of a driver", "worker command"])
def test_a_killed_process_costs_nothing_but_time(tmp_path: Path, small: Store, who: str) -> None:
    store = tmp_path / "store"
    queue(store, grid(**SMALL))
    driven = who == "worker of a driver"
    process = command("resume", store, "--workers", 1) if driven else command("worker", store)
    kill_at_step(store, 5)
    if not driven:
        process.wait()
        process = command("worker", store)
    assert process.wait(600) == 0
    assert_equal_stores(Store.open(store), small)
    assert sum(finishers(Store.open(store)).values()) == 2


def test_a_killed_driver_is_resumed_beside_a_second_one(tmp_path: Path, small: Store) -> None:
    store = tmp_path / "store"
    queue(store, grid(**SMALL))
    first = command("resume", store, "--workers", 1)
    second = command("resume", store, "--workers", 1)
    kill_at_step(store, 3)
    kill_at_step(store, 7)
    leave([first])
    assert second.wait(600) == 0
    assert_equal_stores(Store.open(store), small)
    assert set(finishers(Store.open(store)).values()) == {1}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("engine", "count", "kills"),
    [("worker", 3, 50), ("inline", 1, 25), ("inline", 2, 25), ("local", 1, 6), ("local", 2, 6)],
)
def test_random_kills(tmp_path: Path, large: Store, engine: str, count: int, kills: int) -> None:
    store = tmp_path / "store"
    queue(store, grid(**LARGE))

    def start() -> Started:
        return command("resume", store, "--workers", 2) if engine == "local" else Forked(engine, store)

    assert disturb(start, store, count, kills, seed=count) == kills
    for _ in range(2):  # what happened to die five times in a row at one step is given up once, and then resumed
        result = run_sweep(plan_store(store), workers=0)
        assert all("died 5 times in a row at step" in error for error in result.errors.values())
    assert set(result.states.values()) == {"done"}
    assert_equal_stores(Store.open(store), large)
    assert set(finishers(Store.open(store)).values()) == {1}
