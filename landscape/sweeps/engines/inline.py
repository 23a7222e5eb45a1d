"""Every job in this process, one after another: for debuggers (``--workers 0``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

from landscape.sweeps.engines.base import Event, Job, call, describe


class InlineEngine:
    """No worker process; an interrupt reaches the running job directly."""

    num_workers = 0

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """As `Engine.run`."""
        waiting = jobs if isinstance(jobs, deque) else deque(jobs)
        while waiting:
            job = waiting.popleft()
            yield Event("started", job.key)
            try:
                result = call(job)
            except Exception as error:
                yield Event("finished", job.key, error=describe(error))
            else:
                yield Event("finished", job.key, result=result)

    def close(self) -> None:
        """There is nothing to let go."""
