"""An engine that stops in order when its time is over, so that long experiments run in pieces."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Generator, Sequence

from landscape.sweeps.engines import Engine, Event, Job, make_engine


class TimedEngine:
    """Hands jobs on to the local engine until a moment, then interrupts what is under way as Ctrl-C does.

    Args:
        workers: as `landscape.sweeps.engines.make_engine`.
        until: in seconds of `time.monotonic`; None: no end. May be changed between jobs.
        alone: one job at a time, each in a process of its own, so that time and memory are its own.
    """

    def __init__(self, workers: int | None, num_jobs: int, until: float | None, *, alone: bool = False) -> None:
        self._alone = alone and workers != 0
        self._engine: Engine = make_engine("local", 1 if self._alone else workers, num_jobs=max(1, num_jobs))
        self.until = until
        self.num_workers = self._engine.num_workers

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """As `landscape.sweeps.engines.Engine.run`; `KeyboardInterrupt` when the time is over."""
        # The caller's own queue, so that what it appends meanwhile is seen and what is done leaves it.
        waiting = jobs if isinstance(jobs, deque) else deque(jobs)
        while waiting:
            self._check()
            batch = deque([waiting.popleft()]) if self._alone else waiting
            with contextlib.closing(self._engine.run(batch)) as events:
                for event in events:
                    yield event
                    if event.kind == "tick" or waiting:
                        self._check()
            if self._alone:
                self._engine.close()

    def close(self) -> None:
        """As `landscape.sweeps.engines.Engine.close`."""
        self._engine.close()

    def _check(self) -> None:
        if self.until is not None and time.monotonic() > self.until:
            raise KeyboardInterrupt
