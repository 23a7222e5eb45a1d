"""The Ray engine on a cluster of several nodes on this machine: what dies is run again, what is left is in order."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from landscape.errors import UsageError
from landscape.store import Store
from landscape.sweeps import plan_sweep, run_sweep
from landscape.sweeps.engines import Job, Resources
from landscape.sweeps.engines.ray import RayEngine, _options, _room
from tests.sweeps.fault_jobs import assert_equal_stores, finishers, grid, undisturbed

pytest.importorskip("ray", reason="pip install 'lora-landscape[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray leaves sockets and pipes to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes; the first has no room for jobs and stays."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1, num_gpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def job(key: str, function: str, **arguments: object) -> Job:
    return Job(key, f"tests.sweeps.engine_jobs:{function}", dict(arguments))


def test_jobs_are_run_and_answer_and_fail_alone(cluster: Any) -> None:
    with contextlib.closing(RayEngine(2, poll=0.05)) as engine:
        jobs = [*(job(str(i), "add", left=i, right=10) for i in range(4)), job("bad", "fail", message="no such luck")]
        events = {event.key: event for event in engine.run(jobs) if event.kind == "finished"}
        assert {key: event.result for key, event in events.items() if key != "bad"} == {
            str(i): i + 10 for i in range(4)
        }
        assert (events["bad"].error or "").endswith("RuntimeError: no such luck")
        assert not events["bad"].lost


def test_actors_stay_warm_and_a_dead_one_is_replaced(cluster: Any) -> None:
    with contextlib.closing(RayEngine(1, poll=0.05)) as engine:
        jobs = [job("a", "process_id"), job("b", "process_id"), job("dead", "kill_itself"), job("c", "process_id")]
        events = {event.key: event for event in engine.run(jobs) if event.kind == "finished"}
        assert events["a"].result == events["b"].result != events["c"].result
        assert events["dead"].lost
        assert "worker lost" in (events["dead"].error or "")


def test_fractions_of_a_gpu_are_shared(cluster: Any) -> None:
    import ray

    total = ray.cluster_resources()
    assert _room(_options(Resources(cpus=0.25, gpus=0.5), total), total) == 4
    assert _room(_options(Resources(cpus=0.25), total), total) == 2
    assert _room(_options(Resources(cpus=0.25, gpus=0), total), total) == 8
    with contextlib.closing(RayEngine(resources=Resources(cpus=0.25, gpus=0.5), poll=0.05)) as engine:
        assert engine.num_workers == 4
        found = list(engine.run([job(str(i), "visible_devices") for i in range(4)]))
        assert all(event.result is not None for event in found if event.kind == "finished")


def test_closing_the_iterator_interrupts_the_job(cluster: Any, tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    engine = RayEngine(1, poll=0.05, grace=20)
    events = engine.run([job("long", "sleep_in_steps", seconds=60, begun=str(begun), ended=str(ended))])
    while not begun.exists():
        next(events)
    began = time.monotonic()
    events.close()
    engine.close()
    assert ended.exists()
    assert time.monotonic() - began < 15


def test_a_sweep_survives_the_loss_of_a_node(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDSCAPE_LEASE_SECONDS", "3")
    configs = grid(method=["lora", "mgpo"], seed=[0, 1])
    expected = undisturbed(tmp_path / "expected", configs)
    victim = cluster.add_node(num_cpus=1)
    store = tmp_path / "store"
    plan = plan_sweep(configs, store)

    def lose_a_node_once_it_works() -> None:
        while not any(path.read_bytes() for path in store.glob("runs/*/attempts/*/metrics.jsonl")):
            time.sleep(0.1)
        cluster.remove_node(victim, allow_graceful=False)

    thread = threading.Thread(target=lose_a_node_once_it_works)
    thread.start()
    result = run_sweep(plan, engine=RayEngine(3, resources=Resources(cpus=1, gpus=0), poll=0.1))
    thread.join()
    assert set(result.states.values()) == {"done"}
    assert_equal_stores(Store.open(store), expected)
    assert set(finishers(Store.open(store)).values()) == {1}


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(UsageError, match=r"--address 127\.0\.0\.1:1: no Ray cluster there \(refused\)"):
        RayEngine(1, address="127.0.0.1:1")
