"""One process that takes runs from a store until none is left; any number of them, anywhere, share one store.

Nobody hands runs out: each worker looks for one that is queued, was interrupted, or whose lease has expired, and claims
it (`landscape.store.leases`). So a worker may be started and killed at any time, by any scheduler.
"""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.store import LeaseWatch, Store
from landscape.store.leases import Mark
from landscape.sweeps.cells import is_ours, train_cell
from landscape.sweeps.engines.base import describe
from landscape.sweeps.queue import QueueHunt
from landscape.sweeps.record import add_missing_runs

if TYPE_CHECKING:
    from landscape.store import Run

POLL_SECONDS = 2.0


@dataclass
class WorkerResult:
    """What one worker did.

    Attributes:
        states: of the runs that it took, by run id.
        analyses: how many it answered.
        errors: of those that failed.
        left: runs of the store that are neither finished nor failed, and analyses without an answer, which others may
            be at work on.
        stopped: why it stopped before none was left, if it did.
    """

    states: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    analyses: int = 0
    left: int = 0
    stopped: str | None = None


def work(
    store: str | Path,
    *,
    choose: Callable[[Run], bool] = lambda run: True,
    idle_timeout: float | None = None,
    max_runs: int | None = None,
    train: Callable[..., dict[str, Any]] = train_cell,
    told: Callable[[str, str, str | None], None] = lambda run_id, state, error: None,
    poll: float = POLL_SECONDS,
) -> WorkerResult:
    """Take runs until none is left: neither free, nor at work elsewhere, where a worker may yet die.

    Args:
        choose: which runs may be taken.
        idle_timeout: seconds without anything to take after which to stop; None: stay until all runs have ended.
        max_runs: to take at most.
        train: as `landscape.sweeps.cells.train_cell`, in this process.
        told: called with run id, state and error of each run that ended here.
        poll: seconds between looks at a store where nothing is free.

    Raises:
        StoreError: no store there, or one that is damaged as a whole.
    """
    opened = Store.open(store)
    add_missing_runs(opened)
    hunt, questions = _Hunt(opened, choose), QueueHunt(opened)
    result = WorkerResult()
    idle_since = time.monotonic()
    while True:
        took = False
        for run, mark in hunt.free_runs():
            if max_runs is not None and len(result.states) >= max_runs:
                result.stopped = f"--max-runs {max_runs} reached"
                break
            outcome = _take(run, mark, opened, train)
            if outcome["state"] == "held":
                continue
            took = True
            hunt.ended.add(run.id)
            result.states[run.id] = outcome["state"]
            if outcome["state"] == "failed":
                result.errors[run.id] = outcome["error"]
            told(run.id, outcome["state"], outcome.get("error"))
            if outcome.get("disk_full"):
                result.stopped = "the disk is full"
                break
        # Runs first: an analysis may be of one that is still to be trained.
        if result.stopped is None and not took and (answered := questions.take_one()):
            took = True
            told(answered[1], "failed" if answered[2] else "analyzed", answered[2])
            result.analyses += 1
        result.left = hunt.left + questions.left
        if took:
            idle_since = time.monotonic()
        if result.stopped or not (result.left or took):
            return result
        if not took:
            if idle_timeout is not None and time.monotonic() - idle_since >= idle_timeout:
                result.stopped = f"nothing to take for {idle_timeout:g} s"
                return result
            time.sleep(poll)


class _Hunt:
    """Looks through the runs of a store for those that are free."""

    def __init__(self, store: Store, choose: Callable[[Run], bool]) -> None:
        self.ended: set[str] = set()
        self.left = 0
        self._store = store
        self._choose = choose
        self._watch = LeaseWatch()
        self._chosen: dict[str, bool] = {}
        # Each worker begins elsewhere, so that they seldom reach for the same run.
        self._offset = zlib.crc32(f"{socket.gethostname()}/{os.getpid()}".encode())

    def free_runs(self) -> Iterator[tuple[Run, Mark | None]]:
        """Runs that can be claimed now; counts those that are `left` on the way, `ended` ones excepted."""
        runs = [run for run in self._store.runs() if run.id not in self.ended]
        start = self._offset % max(1, len(runs))
        self.left = 0
        for run in runs[start:] + runs[:start]:
            if not self._wants(run):
                self.ended.add(run.id)
                continue
            try:
                free, mark = self._watch.look(run.path)
            except StoreError:  # nobody can say who works on it
                self.ended.add(run.id)
                continue
            if free:
                yield run, mark
            self.left += run.id not in self.ended

    def _wants(self, run: Run) -> bool:
        """Not those that have ended, are damaged, or not ours to take."""
        try:
            if run.status.state in ("failed", "diverged", "done"):
                return False
            if run.id not in self._chosen:  # reading a config takes a thousand times as long as looking here
                self._chosen[run.id] = is_ours(run) and self._choose(run)
        except StoreError:
            return False
        return self._chosen[run.id]


def _take(run: Run, mark: Mark | None, store: Store, train: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    try:
        config = run.config.model_dump(mode="json")
        return train(config=config, store=str(store.path.absolute()), expired=mark)
    except Exception as error:
        return {"state": "failed", "error": describe(error)}
