"""Run a sweep: prepare what its runs share, hand its cells to an engine, and leave every run folder in order."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from landscape.config import RunConfig
from landscape.sweeps.engines import Engine, Event, Job, make_engine
from landscape.sweeps.plan import Cell, SweepPlan, check_disk
from landscape.sweeps.progress import SweepDisplay

if TYPE_CHECKING:
    from landscape.store import Run, RunStatus

FINAL_STATES = ("done", "diverged", "failed", "interrupted")
TRAIN = "landscape.sweeps.cells:train_cell"
PREPARE = "landscape.sweeps.cells:prepare_cells"

_TABLE_KEYS = {"dtype", "bf16", "max_length", "label_noise", "train_examples"}
"""Beside the digests of model and data: what base losses depend on."""


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
        states: of every cell, by run id, those that were finished before included.
        errors: of the failed ones.
        warnings: what the toolkit warned of, by run id.
        preparation_errors: what went wrong before the runs; not fatal, each run then prepares for itself.
        interrupted: stopped by Ctrl-C or SIGTERM; the same command resumes it.
    """

    states: dict[str, str]
    errors: dict[str, str]
    seconds: float
    warnings: dict[str, list[str]] = field(default_factory=dict)
    preparation_errors: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Runs in each state."""
        return dict(Counter(self.states.values()))


def run_sweep(
    plan: SweepPlan,
    *,
    engine: str | Engine = "local",
    workers: int | None = None,
    console: Console | None = None,
    train: str = TRAIN,
    prepare: str = PREPARE,
) -> SweepResult:
    """Run the pending cells of a plan.

    Args:
        plan: from `plan_sweep`, made a moment ago; its finished cells are left alone.
        engine: a name, or an engine of the caller, left open.
        workers: as `make_engine`.
        console: where progress is shown; default: nowhere.
        train: ``module:function`` that runs one cell, given ``config`` and ``store``.
        prepare: likewise, given the ``configs`` that share a model and data, one a data order.

    Raises:
        StoreError: too little disk, or a folder that is no store.
    """
    from landscape.store import Store

    if isinstance(engine, str):
        with contextlib.closing(make_engine(engine, workers, num_jobs=len(plan.pending))) as made:
            return run_sweep(plan, engine=made, console=console, train=train, prepare=prepare)
    check_disk(plan)
    store = Store.create(plan.store)
    runs = {cell.run_id: store.add(cell.config, cell.run_id, cell.digests) for cell in plan.cells}
    for cell in plan.pending:
        runs[cell.run_id].set_status(state="queued", error=None)
    execution = _Execution(store.path, runs, engine, SweepDisplay(console or Console(quiet=True)))
    began = time.monotonic()
    with execution.display, terminate_as_interrupt():
        try:
            execution.prepare(plan.pending, prepare)
            execution.train(plan.pending, train)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
            execution.settle_interrupted()
    statuses = {run_id: run.status for run_id, run in runs.items()}
    return SweepResult(
        {run_id: status.state for run_id, status in statuses.items()},
        {run_id: status.error or "" for run_id, status in statuses.items() if status.state == "failed"},
        time.monotonic() - began,
        execution.warnings,
        execution.preparation_errors,
        interrupted,
    )


class _Execution:
    """One execution of a plan: feeds the engine and watches the run folders."""

    def __init__(self, store: Path, runs: Mapping[str, Run], engine: Engine, display: SweepDisplay) -> None:
        self.display = display
        self.preparation_errors: list[str] = []
        self.warnings: dict[str, list[str]] = {}
        self._store = str(store.absolute())
        self._runs = runs
        self._engine = engine
        self._started: dict[str, float] = {}

    def prepare(self, cells: Sequence[Cell], function: str) -> None:
        """Base losses, once for each model and data; the runs would each compute them otherwise."""
        groups = _groups_of_shared_data(cells).values()
        jobs = [
            Job(
                f"base loss {number}",
                function,
                {"configs": [_plain(config) for config in configs], "store": self._store},
            )
            for number, configs in enumerate(groups, 1)
        ]
        self.display.begin("preparing", {job.key: 0 for job in jobs})
        with contextlib.closing(self._events(jobs)) as events:
            for event in events:
                if event.kind == "finished":
                    if event.error:
                        self.preparation_errors.append(event.error)
                    state = "failed" if event.error else "done"
                    self.display.ended(event.key, state, 0, self._seconds(event.key), event.error)

    def train(self, cells: Sequence[Cell], function: str) -> None:
        """Every cell; the verdict on each is what its status file says in the end."""
        self.display.begin("training", {cell.run_id: cell.config.max_steps for cell in cells})
        jobs = [Job(cell.run_id, function, {"config": _plain(cell.config), "store": self._store}) for cell in cells]
        with contextlib.closing(self._events(jobs)) as events:
            for event in events:
                if event.kind == "finished":
                    seconds = self._seconds(event.key)
                    status = self._settle(event.key, "failed", event.error or "the run ended without saying how")
                    self.display.ended(event.key, status.state, status.step, seconds, status.error)
                    if warnings := (event.result or {}).get("warnings"):
                        self.warnings[event.key] = warnings
                elif self.display.due():
                    self.display.running({key: self._runs[key].status.step for key in self._started})

    def settle_interrupted(self) -> None:
        """Mark the runs that were under way and could not do so themselves; the others stay queued."""
        for key in self._started:
            if key in self._runs:
                self._settle(key, "interrupted", None)

    def _events(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        self._started.clear()
        # Closed explicitly, here and by the callers: an interrupt's traceback would keep the generators, and with
        # them the workers, alive while the folders are being put in order.
        with contextlib.closing(self._engine.run(jobs)) as events:
            for event in events:
                if event.kind == "started":
                    self._started[event.key] = time.monotonic()
                yield event

    def _seconds(self, key: str) -> float:
        return time.monotonic() - self._started.pop(key)

    def _settle(self, run_id: str, state: str, error: str | None) -> RunStatus:
        """The run's status, put right where its process died before it could write a final one."""
        status = self._runs[run_id].status
        return status if status.state in FINAL_STATES else self._runs[run_id].set_status(state=state, error=error)


def _groups_of_shared_data(cells: Sequence[Cell]) -> dict[str, list[RunConfig]]:
    """For each table of base losses, one config a data order: the one that sees most of it.

    The orders of one table go to one worker, because two that fill it at a time would undo each other's work.
    """
    longest: dict[tuple[str, int | None], RunConfig] = {}
    for cell in cells:
        config = cell.config
        if config.base_loss:
            table = {**cell.digests, **config.model_dump(include=_TABLE_KEYS)}
            key = (json.dumps(table, sort_keys=True), config.data_seed)
            if key not in longest or _examples_seen(config) > _examples_seen(longest[key]):
                longest[key] = config
    groups: dict[str, list[RunConfig]] = {}
    for (table_key, _), config in longest.items():
        groups.setdefault(table_key, []).append(config)
    return groups


def _examples_seen(config: RunConfig) -> int:
    return config.max_steps * config.per_device_train_batch_size * config.gradient_accumulation_steps


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM (a scheduler's, a container's) stops what is under way as Ctrl-C does, if this is the main thread.

    Once: `timeout` and schedulers signal the process and then its group, which is no second, impatient order.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
