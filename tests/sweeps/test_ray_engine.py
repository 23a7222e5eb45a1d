"""The Ray engine on a cluster of several nodes on this machine: what dies is run again, what is left is in order."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from landscape.errors import UsageError
from landscape.store import Store
from landscape.sweeps import plan_sweep, run_sweep
from landscape.sweeps.engines import Job, Resources
from landscape.sweeps.engines.ray import RayEngine, _options, _room
from tests.command_line import SETS, invoke, payload
from tests.sweeps.fault_jobs import (
    assert_equal_stores,
    command,
    finishers,
    grid,
    leave,
    progress,
    queue,
    undisturbed,
)

pytest.importorskip("ray", reason="pip install 'lora-landscape[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray leaves sockets and pipes to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FEWEST_KILLS, MOST_KILLS = 8, 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes; the first has no room for jobs and stays."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A busy machine takes its time to answer; a node that is cut off is noticed after half a minute.
    patient = {"health_check_failure_threshold": 10, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": patient})
    for _ in range(2):
        add_node(made, num_cpus=1, num_gpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def add_node(cluster: Any, **resources: float) -> Any:
    """One more node; on a busy machine it may not start within the 30 seconds that Ray waits for it."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return cluster.add_node(**resources)
    return cluster.add_node(**resources)


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


def test_actors_are_as_nice_as_the_cluster_and_know_the_term_of_leases(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANDSCAPE_LEASE_SECONDS", "7")
    with contextlib.closing(RayEngine(1, poll=0.05)) as engine:
        (event,) = [event for event in engine.run([job("a", "lease_and_niceness")]) if event.kind == "finished"]
    assert event.result == [7.0, os.nice(0)]


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


@pytest.mark.parametrize("how", ["dead", "hung"])
def test_a_sweep_survives_the_loss_of_a_node(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A node that works on a run loses power, or is cut off; then what it still writes harms nobody."""
    monkeypatch.setenv("LANDSCAPE_LEASE_SECONDS", "3")
    configs = grid(method=["lora", "mgpo"], seed=[0, 1])
    expected = undisturbed(tmp_path / "expected", configs)
    store = tmp_path / "store"
    plan = plan_sweep(configs, store)
    lost: list[tuple[Any, list[psutil.Process]]] = []

    def lose_a_node_once_it_works() -> None:
        while not (progress(store) and (claims := open_claims(store))):
            time.sleep(0.02)
        node = node_of(cluster, claims[0].pid)
        members = processes_of(node)
        send(members, signal.SIGSTOP)
        if how == "dead":
            send(members, signal.SIGKILL)
        lost.append((node, members))

    thread = threading.Thread(target=lose_a_node_once_it_works)
    thread.start()
    result = run_sweep(plan, engine=RayEngine(2, resources=Resources(cpus=1, gpus=0), poll=0.1))
    thread.join()
    for node, members in lost:
        send(members, signal.SIGCONT)
        psutil.wait_procs(members, timeout=60)
        cluster.remove_node(node, allow_graceful=False)
        add_node(cluster, num_cpus=1, num_gpus=1)
    assert set(result.states.values()) == {"done"}
    assert max(run.status.attempt for run in Store.open(store).runs()) == 2
    assert_equal_stores(Store.open(store), expected)
    assert set(finishers(Store.open(store)).values()) == {1}


def open_claims(store: Path) -> list[Any]:
    """Who works on the runs of a store now."""
    if not (store / "store.json").exists():
        return []
    claims = [run.last_claim for run in Store.open(store).runs()]
    return [claim for claim in claims if claim is not None and claim.is_open and claim.pid]


def node_of(cluster: Any, pid: int) -> Any:
    """The node whose worker a process is."""
    above = {process.pid for process in psutil.Process(pid).parents()}
    return next(node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid in above)


def processes_of(node: Any) -> list[psutil.Process]:
    found = []
    for processes in node.all_processes.values():
        for item in processes:
            process = psutil.Process(item.process.pid)
            found += [process, *process.children(recursive=True)]
    return found


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(UsageError, match=r"--address 127\.0\.0\.1:1: no Ray cluster there \(refused\)"):
        RayEngine(1, address="127.0.0.1:1")


@pytest.mark.timeout(3600)
def test_random_kills(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and nodes, at random moments; the driver's own death is `test_a_killed_driver_is_resumed`."""
    monkeypatch.setenv("LANDSCAPE_LEASE_SECONDS", "3")
    configs = grid(method=["lora", "mgpo", "ggpo"], rank=[4, 8], seed=[0, 1])
    expected = undisturbed(tmp_path / "expected", configs)
    store = tmp_path / "store"
    killer = Killer(cluster, store, kills=MOST_KILLS)
    killer.start()
    states: dict[str, str] = {}
    for _ in range(MOST_KILLS):  # a run that died five times in a row at one step is failed, and waits to be resumed
        result = run_sweep(
            plan_sweep(configs, store), engine=RayEngine(3, resources=Resources(cpus=1, gpus=0), poll=0.1)
        )
        states = result.states
        if set(states.values()) == {"done"}:
            break
    killer.ended.set()
    killer.join()
    assert set(states.values()) == {"done"}
    assert killer.hits >= FEWEST_KILLS
    assert killer.nodes_lost
    assert_equal_stores(Store.open(store), expected)
    assert set(finishers(Store.open(store)).values()) == {1}


class Killer(threading.Thread):
    """Kills who works on a run after a random number of further steps; twice a whole node, with what it works on.

    Attributes:
        hits: kills so far, lost nodes among them.
    """

    def __init__(self, cluster: Any, store: Path, kills: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.store, self.kills = cluster, store, kills
        self.hits = self.nodes_lost = 0
        self.ended = threading.Event()
        self._draw = random.Random(kills)
        # All of them now: Ray starts nodes in the main thread alone.
        self._nodes = [add_node(cluster, num_cpus=1) for _ in range(2)]

    def run(self) -> None:
        while self.hits < self.kills and not self.ended.is_set():
            goal = progress(self.store) + self._draw.choice([0, 1, 1, 2, 3])
            while progress(self.store) < goal and not self.ended.is_set():
                time.sleep(0.02)
            time.sleep(self._draw.uniform(0, 0.2))
            victims = [claim.pid for claim in open_claims(self.store)]
            if not victims:
                continue
            if self.hits % 4 == 3 and self._nodes:
                self.cluster.remove_node(self._nodes.pop(), allow_graceful=False)
                self.nodes_lost += 1
                self.hits += 1
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._draw.choice(victims), signal.SIGKILL)
                    self.hits += 1


def test_a_killed_driver_is_resumed(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDSCAPE_LEASE_SECONDS", "3")
    configs = grid(method=["mgpo"], seed=[0, 1])
    expected = undisturbed(tmp_path / "expected", configs)
    store = tmp_path / "store"
    queue(store, configs)
    arguments = ("resume", store, "--engine", "ray", "--address", cluster.address, "--workers", 1, "--gpus-per-run", 0)
    for steps in (4, 12):
        process = command(*arguments)
        while progress(store) < steps:
            assert process.poll() is None
            time.sleep(0.05)
        leave([process])
    assert command(*arguments).wait(600) == 0
    assert_equal_stores(Store.open(store), expected)
    assert set(finishers(Store.open(store)).values()) == {1}


def test_analyses_are_measured_on_the_cluster(cluster: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert invoke("train", *SETS, "--store", store).exit_code == 0
    options = ("--steps", "0,3", "--num-probes", "2", "--json")
    there = invoke("analyze", "trace", store, "--engine", "ray", "--workers", "1", *options)
    assert there.exit_code == 0, there.output
    measured = payload(there)["results"]
    assert [row["step"] for rows in measured.values() for row in rows] == [0, 3]
    shutil.rmtree(Store.open(store).runs()[0].analysis_dir)
    here = payload(invoke("analyze", "trace", store, *options))["results"]
    assert [row["value"] for rows in here.values() for row in rows] == pytest.approx(
        [row["value"] for rows in measured.values() for row in rows], rel=1e-5
    )
