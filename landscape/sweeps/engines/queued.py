"""Jobs left in a store for ``landscape worker``, wherever such are running; only analyses go this way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path

from landscape.sweeps.engines.base import Event, Job


class QueueEngine:
    """Puts jobs into the queue of a store and waits for the answers; killed, the same question finds them again.

    Args:
        store: folder.
        poll: seconds between looks.

    Raises:
        StoreError: from `run`, when the disk is full or refuses.
    """

    num_workers = 1
    """Nobody knows how many there are."""

    def __init__(self, store: Path, poll: float = 1.0) -> None:
        self.store = store
        self.poll = poll

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """As `Engine.run`; what is under way is left to the workers when the caller stops listening."""
        from landscape.errors import StoreError
        from landscape.store import Store
        from landscape.sweeps import queue

        store, waiting = Store.open(self.store), {job.key: job for job in jobs}
        if isinstance(jobs, deque):
            jobs.clear()
        folders = {key: queue.put(store, job) for key, job in waiting.items()}
        started: set[str] = set()
        while waiting:
            for key in list(waiting):
                # Somebody who asked the same may have read the answer, and removed it with the job.
                folder = queue.put(store, waiting[key])
                if key not in started and queue.is_taken(folder):
                    started.add(key)
                    yield Event("started", key)
                try:
                    answer = queue.answer_of(folder)
                except StoreError as error:
                    answer = {"error": str(error)}
                if answer is None:
                    continue
                if key not in started:
                    yield Event("started", key)
                del waiting[key]
                yield Event("finished", key, result=answer.get("result"), error=answer.get("error"))
                queue.remove(folders[key])
            yield Event("tick")
            if waiting:
                time.sleep(self.poll)

    def close(self) -> None:
        """Nothing to let go."""
