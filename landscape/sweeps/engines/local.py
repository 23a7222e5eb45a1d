"""A pool of processes on this machine that outlives the death of any of them.

`concurrent.futures` gives up the whole pool when one worker is killed, which is what an out-of-memory killer does;
here the job is lost, its worker is replaced and the sweep goes on. Workers are spawned, never forked: a fork of a
process that holds threads or a CUDA context does not work. Messages are JSON, so that jobs stay fit for any engine.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

from landscape.sweeps.engines.base import Event, Job, call, describe
from landscape.sweeps.engines.devices import Device, place_workers

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LOG_LINES = 5


def available_cores() -> int:
    """Cores that this process may use, which a container or a scheduler can hold below those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalEngine:
    """Spawned worker processes, each with its share of the cores; they stay warm from one `run` to the next.

    Each sees one of the devices, and a job joins the others on its device only where its memory fits beside theirs.

    Args:
        num_workers: processes at a time.
        devices: among which they are shared out; default: the CPU.
        threads: of each worker; default: its share of the cores. A thread count in the environment
            (``OMP_NUM_THREADS``) wins.
        poll: seconds between ticks.
        grace: seconds that an interrupted job has to put its run in order before it is killed.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        devices: Sequence[Device] | None = None,
        threads: int | None = None,
        poll: float = 0.5,
        grace: float = 30.0,
    ) -> None:
        self.num_workers = num_workers
        self.poll = poll
        self.grace = grace
        devices = list(devices or [Device(None)])
        place_workers(devices, num_workers)
        self._pool = _Pool(devices, threads or max(1, available_cores() // num_workers))

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """As `Engine.run`."""
        waiting, pool = jobs if isinstance(jobs, deque) else deque(jobs), self._pool
        try:
            while waiting or pool.busy:
                while waiting and (device := pool.place(waiting[0])) is not None:
                    yield Event("started", pool.start(waiting.popleft(), device))
                for worker in pool.wait(self.poll):
                    yield pool.collect(worker)
                yield Event("tick")
        finally:
            if pool.busy:  # the caller has stopped listening
                self.close()

    def close(self) -> None:
        """As `Engine.close`."""
        self._pool.stop(self.grace)


class _Worker:
    """One process, its end of the pipe, and the job that it holds."""

    def __init__(self, context: SpawnContext, threads: int, log: Path, device: Device) -> None:
        self.connection, theirs = context.Pipe()
        self.log = log
        self.device = device
        self.job: Job | None = None
        arguments = (theirs, threads, str(log), device.name)
        self.process = context.Process(target=_serve, args=arguments, name=log.stem)
        with _interrupts_held():
            self.process.start()
        theirs.close()

    def send(self, job: Job) -> None:
        self.job = job
        self.device.taken[job.key] = job.resources.memory
        message = {"key": job.key, "function": job.function, "arguments": job.arguments}
        with contextlib.suppress(OSError):  # it died while idle: collect() finds the pipe closed and says so
            self.connection.send_bytes(json.dumps(message).encode())


class _Pool:
    """As many workers as the devices have places, started when first needed and replaced when they die."""

    def __init__(self, devices: Sequence[Device], threads: int) -> None:
        self._devices = devices
        self._context = multiprocessing.get_context("spawn")
        self._threads = threads
        self._logs: tempfile.TemporaryDirectory[str] | None = None
        self._workers: list[_Worker] = []
        self._started = 0

    @property
    def busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.job is not None]

    def place(self, job: Job) -> Device | None:
        """Of the devices on which the job fits, the one with the fewest others; None: it has to wait."""
        fitting = [device for device in self._devices if device.places and device.fits(job.resources.memory)]
        return min(fitting, key=lambda device: len(device.taken), default=None)

    def start(self, job: Job, device: Device) -> str:
        idle = [worker for worker in self._workers if worker.job is None and worker.device is device]
        worker = next((worker for worker in idle if worker.process.is_alive()), None)
        if worker is None:
            self._started += 1
            self._logs = self._logs or tempfile.TemporaryDirectory(prefix="landscape-")
            log = Path(self._logs.name) / f"worker-{self._started}.log"
            worker = _Worker(self._context, self._threads, log, device)
            self._workers.append(worker)
        worker.send(job)
        return job.key

    def wait(self, seconds: float) -> list[_Worker]:
        """Busy workers that answered or died."""
        ready = set(connection.wait([worker.connection for worker in self.busy], seconds))
        return [worker for worker in self.busy if worker.connection in ready]

    def collect(self, worker: _Worker) -> Event:
        """The answer of a worker; if it died instead, how."""
        job, worker.job = worker.job, None
        assert job is not None
        worker.device.taken.pop(job.key, None)
        try:
            answer: dict[str, Any] = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            worker.process.join()
            self._workers.remove(worker)
            worker.connection.close()
            return Event("finished", job.key, error=_obituary(worker), lost=(worker.process.exitcode or 0) < 0)
        return Event("finished", job.key, result=answer.get("result"), error=answer.get("error"))

    def stop(self, grace: float) -> None:
        """End every worker: idle ones leave at once, busy ones are interrupted, and killed after ``grace`` seconds."""
        try:
            for worker in self._workers:
                if worker.job is not None:
                    worker.device.taken.pop(worker.job.key, None)
                    worker.process.terminate()
                worker.connection.close()
            deadline = time.monotonic() + grace
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # also when a second interrupt arrives while waiting
            for worker in self._workers:
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
            self._workers.clear()
            if self._logs is not None:
                self._logs.cleanup()
                self._logs = None


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back, here for a moment and in a process started meanwhile for good (it inherits the mask).

    Ctrl-C reaches the whole process group; the parent alone decides, and interrupts its workers by SIGTERM.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obituary(worker: _Worker) -> str:
    code = worker.process.exitcode or 0
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        cause = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        cause = f"exited with code {code}"
    tail = worker.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:] if worker.log.exists() else []
    return "\n".join([*tail, f"worker process {cause}"])


# --- the worker's side ---


def _serve(pipe: Connection, threads: int, log: str, device: str | None) -> None:
    """Answer jobs until the pipe closes."""
    if device is not None:  # CUDA reads it when it is first used
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _divert_output(log)
    _install_signals()
    wanted = os.environ.get("OMP_NUM_THREADS") or str(threads)
    for name in _THREAD_VARIABLES:  # MKL's own would win over OpenMP's
        os.environ.setdefault(name, wanted)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            answer = _answer(Job(**json.loads(pipe.recv_bytes())))
            pipe.send_bytes(json.dumps(answer, default=str).encode())


def _answer(job: Job) -> dict[str, Any]:
    try:
        return {"result": call(job)}
    except Exception as error:
        return {"error": describe(error)}


def _divert_output(log: str) -> None:
    """Send whatever the libraries print to the worker's log: the terminal is the sweep's, and a crash quotes it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()


def _install_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as _interrupts_held, where there are no signal masks

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _follow_parent() -> None:
    """Stop in order when the parent is gone (killed, say); nobody would collect the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os._exit(1)
