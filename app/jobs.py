"""Analyses queued from a page: the command line's own, one after the other, as processes of this machine."""

from __future__ import annotations

import atexit
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LOG_TAIL = 4000
"""Characters of a job's output that are shown."""

JobState = Literal["queued", "running", "done", "failed", "stopped"]
Progress = Callable[[], tuple[int, int]]
"""Snapshots that have their answer, and how many were asked for."""


@dataclass(eq=False)
class Job:
    """One command of `landscape`, without its program's name."""

    number: int
    title: str
    arguments: tuple[str, ...]
    run_id: str
    log: Path
    progress: Progress | None = None
    state: JobState = "queued"
    started: float | None = None
    finished: float | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """Since it was started, until it ended."""
        return 0.0 if self.started is None else (self.finished or time.monotonic()) - self.started

    @property
    def is_open(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in ("queued", "running")

    def output(self) -> str:
        """The end of what it printed."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()
        except OSError:
            return ""

    def share(self) -> float:
        """How much is done, 0 to 1, as far as its results say."""
        if self.state == "done":
            return 1.0
        if self.progress is None or self.state == "queued":
            return 0.0
        done, total = self.progress()
        return done / total if total else 0.0


class JobQueue:
    """Runs jobs one at a time, in the order in which they came; what is still running is stopped at exit."""

    def __init__(self, program: Sequence[str] = (sys.executable, "-m", "landscape")) -> None:
        self._program = tuple(program)
        self._folder = tempfile.TemporaryDirectory(prefix="landscape-app-")
        self._jobs: list[Job] = []
        self._waiting: queue.Queue[Job] = queue.Queue()
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True, name="landscape analyses").start()
        atexit.register(self.close)

    def submit(self, title: str, arguments: Sequence[str], run_id: str, progress: Progress | None = None) -> Job:
        """Queue a command; one that is queued or running already is not queued twice."""
        with self._lock:
            for job in self._jobs:
                if job.is_open and job.arguments == tuple(arguments):
                    return job
            number = len(self._jobs) + 1
            job = Job(number, title, tuple(arguments), run_id, Path(self._folder.name) / f"{number}.log", progress)
            self._jobs.append(job)
        self._waiting.put(job)
        return job

    def jobs(self) -> list[Job]:
        """Newest first."""
        with self._lock:
            return list(reversed(self._jobs))

    def stop(self, job: Job) -> None:
        """End a job; what it has measured so far stays, and the same command goes on from there."""
        with self._lock:
            if job.state == "queued":
                job.state = "stopped"
            elif job.state == "running" and job.process is not None:
                job.state = "stopped"
                _interrupt(job.process)

    def close(self) -> None:
        """Stop everything and remove the logs."""
        for job in self.jobs():
            self.stop(job)
        self._folder.cleanup()

    def _work(self) -> None:
        while True:
            job = self._waiting.get()
            with self._lock:
                if job.state != "queued":
                    continue
                job.state, job.started = "running", time.monotonic()
            try:
                self._run(job)
            except OSError as error:
                job.log.write_text(f"error: {error}", encoding="utf-8")
                job.state = "failed"
            job.finished = time.monotonic()

    def _run(self, job: Job) -> None:
        with job.log.open("wb") as log:
            # A session of its own, so that what it starts ends with it.
            process = subprocess.Popen(
                [*self._program, *job.arguments], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            job.process = process
            if job.state == "stopped":
                _interrupt(process)
            code = process.wait()
        with self._lock:
            if job.state == "running":
                job.state = "done" if code == 0 else "failed"


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would, to the process and what it started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
    except (ProcessLookupError, PermissionError):
        pass
