"""Jobs on a Ray cluster: an existing one, or a private one on this machine.

Each worker is an actor that takes one job after another, so that what its modules cache stays warm. An actor that dies,
alone or with its node, costs the job that it held; the engine says so and starts another one, and whoever gave the job
decides whether it is to be run again (`landscape.sweeps.runner` does, from the checkpoint). Ray itself retries nothing:
leases in the store say who may work on a run, and Ray does not know them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from landscape.errors import UsageError
from landscape.sweeps.engines.base import Event, Job, Resources, call, describe

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_NICENESS = "RAY_worker_niceness"
"""Ray's default is 15: beside a few other busy processes such workers take minutes to import what they need."""

_FAILED_STARTS = 5
"""Workers in a row that may fail to start, beyond one for each place: nodes come and go."""


class RayEngine:
    """A pool of actors that grows to as many as there are jobs, workers and free resources.

    Args:
        num_workers: actors at a time; None: as many as the cluster has room for.
        num_jobs: how many jobs there will be at most.
        address: of a cluster (``auto``, ``host:port``, ``ray://...``); None: ``RAY_ADDRESS``, or a private one. A
            connection that this process has already is used as it is.
        resources: of each actor; a fraction of a GPU lets several share one.
        poll: seconds between ticks.
        grace: seconds that an interrupted job has to put its run in order before it is killed.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        num_jobs: int | None = None,
        address: str | None = None,
        resources: Resources | None = None,
        poll: float = 0.5,
        grace: float = 30.0,
    ) -> None:
        self.poll = poll
        self.grace = grace
        self._actors: list[_Actor] = []
        self._failed_starts = 0
        self._ray = _import_ray()
        self._owns = not self._ray.is_initialized()
        address = address or os.environ.get("RAY_ADDRESS")
        if self._owns:
            self._connect(address, num_workers)
        self._options = _options(resources or Resources(), self._ray.cluster_resources())
        room = _room(self._options, self._ray.cluster_resources())
        if self._owns and address is None and not room:
            self.close()
            raise UsageError(
                f"--gpus-per-run {self._options['num_gpus']:g}, --cpus-per-run {self._options['num_cpus']:g}: "
                "more than this machine has"
            )
        room = max(1, room)  # a cluster may grow
        self.num_workers = max(1, min(num_workers or room, num_jobs if num_jobs is not None else room))

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """As `Engine.run`."""
        waiting = jobs if isinstance(jobs, deque) else deque(jobs)
        try:
            while waiting or any(actor.job for actor in self._actors):
                self._start_actors(len(waiting))
                for actor in self._actors:
                    if waiting and actor.is_ready and actor.job is None:
                        yield Event("started", actor.give(waiting.popleft()))
                for actor in self._answered():
                    yield self._collect(actor)
                yield Event("tick")
        finally:
            if any(actor.job for actor in self._actors):  # the caller has stopped listening
                self._stop()

    def close(self) -> None:
        """As `Engine.close`; a private cluster ends."""
        if self._ray.is_initialized():
            self._stop()
        if self._owns and self._ray.is_initialized():
            self._ray.shutdown()
            self._owns = False

    def _connect(self, address: str | None, num_workers: int | None) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
        if address is None:
            options["num_cpus"] = num_workers or os.cpu_count()
        else:
            options = {"log_to_driver": False, "address": address}
        try:
            self._ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"--address {address}: no Ray cluster there ({' '.join(str(error).split())})") from error

    def _start_actors(self, waiting: int) -> None:
        """One for each job that waits, up to the number of workers; Ray starts them as resources come free."""
        idle = sum(actor.job is None for actor in self._actors)
        for _ in range(min(waiting - idle, self.num_workers - len(self._actors))):
            self._actors.append(_Actor(self._ray, self._options))

    def _answered(self) -> list[_Actor]:
        by_reference = {actor.pending: actor for actor in self._actors if actor.pending is not None}
        if not by_reference:
            time.sleep(self.poll)
            return []
        done, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=self.poll)
        found = [by_reference[reference] for reference in done]
        for actor in found:
            if actor.job is None:  # it has just begun
                actor.pending = None
                try:
                    self._ray.get(done[0])
                    actor.is_ready = True
                    self._failed_starts = 0
                except self._ray.exceptions.RayError as error:
                    self._actors.remove(actor)
                    self._failed_starts += 1
                    if self._failed_starts > _FAILED_STARTS + self.num_workers:
                        raise UsageError(f"engine: Ray cannot start workers: {_first_line(error)}") from error
        return [actor for actor in found if actor.job is not None]

    def _collect(self, actor: _Actor) -> Event:
        """The answer of an actor; if it died instead, how."""
        job, reference = actor.job, actor.pending
        assert job is not None
        actor.job = actor.pending = None
        try:
            answer = json.loads(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            self._actors.remove(actor)
            actor.kill()
            return Event("finished", job.key, error=f"worker lost: {_first_line(error)}", lost=True)
        return Event("finished", job.key, result=answer.get("result"), error=answer.get("error"))

    def _stop(self) -> None:
        """End every actor: idle ones at once, busy ones are interrupted, and killed after ``grace`` seconds."""
        busy = [actor for actor in self._actors if actor.job is not None and actor.pending is not None]
        with contextlib.suppress(self._ray.exceptions.RayError):
            for actor in busy:
                actor.interrupt()
            if busy:
                self._ray.wait([actor.pending for actor in busy], num_returns=len(busy), timeout=self.grace)
        for actor in self._actors:
            actor.kill()
        self._actors.clear()


class _Actor:
    """The driver's end of one remote worker.

    Attributes:
        pending: what it will answer next: that it is there, or its job's result.
    """

    def __init__(self, ray: Any, options: dict[str, Any]) -> None:
        self._ray = ray
        self._handle = ray.remote(_Remote).options(**options).remote()
        self.job: Job | None = None
        self.is_ready = False
        self.pending: Any = self._handle.ready.remote()

    def give(self, job: Job) -> str:
        self.job = job
        self.pending = self._handle.answer.remote(json.dumps([job.key, job.function, job.arguments]))
        return job.key

    def interrupt(self) -> None:
        self._handle.interrupt.remote()

    def kill(self) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(self._handle, no_restart=True)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("engine: ray is not installed: pip install 'lora-landscape[ray]'") from None
    return ray


def _options(resources: Resources, cluster: dict[str, float]) -> dict[str, Any]:
    gpus = resources.gpus
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU") else 0.0
    threads = str(max(1, int(resources.cpus)))
    given = os.environ.get("OMP_NUM_THREADS")
    environment = dict.fromkeys(_THREAD_VARIABLES, given or threads) | {"TOKENIZERS_PARALLELISM": "false"}
    environment[_NICENESS] = os.environ.get(_NICENESS, "0")
    if seconds := os.environ.get("LANDSCAPE_LEASE_SECONDS"):  # a cluster's nodes do not have the driver's environment
        environment["LANDSCAPE_LEASE_SECONDS"] = seconds
    return {
        "num_cpus": resources.cpus,
        "num_gpus": gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 2,  # the second call interrupts the first
        "runtime_env": {"env_vars": environment},
    }


def _room(options: dict[str, Any], cluster: dict[str, float]) -> int:
    """Actors that fit on the cluster as a whole, 0 where not even one does."""
    room = cluster.get("CPU", 1.0) / max(options["num_cpus"], 1e-3)
    if options["num_gpus"]:
        room = min(room, cluster.get("GPU", 0.0) / options["num_gpus"])
    return int(room + 1e-9)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


# --- the worker's side ---


class _Remote:
    """One job at a time; answers are JSON, as with every other engine."""

    def __init__(self) -> None:
        self._thread: int | None = None

    def ready(self) -> bool:
        return True

    def answer(self, message: str) -> str:
        key, function, arguments = json.loads(message)
        self._thread = threading.get_ident()
        try:
            return json.dumps({"result": call(Job(key, function, arguments))}, default=str)
        except KeyboardInterrupt:
            return json.dumps({"error": "interrupted"})
        except Exception as error:
            return json.dumps({"error": describe(error)})
        finally:
            self._thread = None
            sys.stdout.flush()

    def interrupt(self) -> None:
        """Raise `KeyboardInterrupt` in the thread of the job: signals reach main threads only, and this is none."""
        if self._thread is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(KeyboardInterrupt)
            )
