"""Run a sweep: prepare what its runs share, hand its cells to an engine, and leave every run folder in order."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from landscape.config import RunConfig
from landscape.store import LeaseWatch
from landscape.store.leases import MOST_DEATHS
from landscape.sweeps.engines import Engine, Event, Job, Resources, make_engine
from landscape.sweeps.plan import Cell, SweepPlan, check_disk, free_disk, gigabytes
from landscape.sweeps.progress import SweepDisplay
from landscape.sweeps.record import RecordedCell, write_record

if TYPE_CHECKING:
    from landscape.store import Run, RunStatus, Store

FINAL_STATES = ("done", "diverged", "failed", "interrupted")
TRAIN = "landscape.sweeps.cells:train_cell"
PREPARE = "landscape.sweeps.cells:prepare_cells"
_LOOK_SECONDS = 1.0

_TABLE_KEYS = {"dtype", "bf16", "max_length", "label_noise", "train_examples", "per_device_eval_batch_size"}
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
        stopped: why no further runs were begun, where the sweep stopped by itself: the disk is full.
    """

    states: dict[str, str]
    errors: dict[str, str]
    seconds: float
    warnings: dict[str, list[str]] = field(default_factory=dict)
    preparation_errors: list[str] = field(default_factory=list)
    interrupted: bool = False
    stopped: str | None = None

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
    address: str | None = None,
    resources: Resources | None = None,
) -> SweepResult:
    """Run the unfinished cells of a plan.

    Cells that another process is at work on are waited for, and taken over if it dies; a cell whose own worker is
    killed is begun again from its checkpoint.

    Args:
        plan: from `plan_sweep`, made a moment ago; its finished cells are left alone.
        engine: a name, or an engine of the caller, left open.
        workers: as `make_engine`.
        console: where progress is shown; default: nowhere.
        train: ``module:function`` that runs one cell, given ``config`` and ``store``.
        prepare: likewise, given the ``configs`` that share a model and data, one a data order.
        address, resources: as `make_engine`.

    Raises:
        StoreError: too little disk, or a folder that is no store.
    """
    if isinstance(engine, str):
        memory = max((cell.memory for cell in plan.pending), default=0)
        jobs = len(plan.unfinished)
        made = make_engine(engine, workers, num_jobs=jobs, memory=memory, address=address, resources=resources)
        with contextlib.closing(made):
            return run_sweep(plan, engine=made, console=console, train=train, prepare=prepare)
    store, runs = enqueue(plan)
    execution = _Execution(store.path, runs, engine, SweepDisplay(console or Console(quiet=True)))
    began = time.monotonic()
    with execution.display, terminate_as_interrupt():
        try:
            execution.prepare(plan.pending, prepare)
            execution.train(plan.unfinished, train)
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
        execution.stopped,
    )


def enqueue(plan: SweepPlan) -> tuple[Store, dict[str, Run]]:
    """Make every run of a plan, and mark those that are to be run as queued, for whoever takes them.

    Returns:
        The store, and its runs by id.

    Raises:
        StoreError: too little disk, or a folder that is no store.
    """
    from landscape.store import Store

    check_disk(plan)
    store = Store.create(plan.store)
    write_record(store.path, [RecordedCell(cell.run_id, cell.config, cell.digests) for cell in plan.cells])
    runs = {cell.run_id: store.add(cell.config, cell.run_id, cell.digests) for cell in plan.cells}
    for cell in plan.pending:
        run = runs[cell.run_id]
        if not run.is_leased:  # which it may have been in the meantime
            run.update_config(cell.config)
            run.set_status(state="queued", error=None)
    return store, runs


class _Execution:
    """One execution of a plan: feeds the engine and watches the run folders."""

    stopped: str | None = None

    def __init__(self, store: Path, runs: Mapping[str, Run], engine: Engine, display: SweepDisplay) -> None:
        self.display = display
        self.preparation_errors: list[str] = []
        self.warnings: dict[str, list[str]] = {}
        self._store = str(store.absolute())
        self._runs = runs
        self._engine = engine
        self._started: dict[str, float] = {}
        self._watch = LeaseWatch()
        self._looked = 0.0
        self._jobs: dict[str, Job] = {}
        self._losses: dict[str, tuple[int, int]] = {}
        """By run id: at which step its worker was lost, and how often in a row."""

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
        queue: deque[Job] = deque()
        # All are looked at once more: what the plan saw may have changed.
        self._jobs = {cell.run_id: self._job(cell, function) for cell in cells}
        waiting = dict(self._jobs)
        self._take_free(waiting, queue)
        while (queue or waiting) and self.stopped is None:
            with contextlib.closing(self._events(queue)) as events:
                for event in events:
                    if event.kind == "finished":
                        self._finished(event, waiting, {cell.run_id: cell for cell in cells})
                    elif self.display.due():
                        self.display.running({key: self._runs[key].status.step for key in self._started})
                    if self.stopped is not None:
                        break
                    self._take_free(waiting, queue)
            if waiting and not queue and self.stopped is None:
                time.sleep(_LOOK_SECONDS)
                self._take_free(waiting, queue)
        if self.stopped is not None:
            self.settle_interrupted()

    def _job(self, cell: Cell, function: str) -> Job:
        arguments = {"config": _plain(cell.config), "store": self._store}
        return Job(cell.run_id, function, arguments, Resources(memory=cell.memory))

    def _take_free(self, waiting: dict[str, Job], queue: deque[Job]) -> None:
        """Queue those of the waiting cells that nobody is at work on any more, and drop those that others ended."""
        if not waiting or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        for key, job in list(waiting.items()):
            status = self._runs[key].status
            wanted = job.arguments["config"]["max_steps"]
            if status.state == "diverged" or (status.state == "done" and status.step >= wanted):
                del waiting[key]
                self.display.ended(key, status.state, status.step, 0.0, None)
                continue
            free, mark = self._watch.look(self._runs[key].path)
            if free:
                del waiting[key]
                evidence = {"expired": mark} if mark else {}
                queue.append(replace(job, arguments={**job.arguments, **evidence}))
        self._looked = time.monotonic() if waiting else 0.0

    def _finished(self, event: Event, waiting: dict[str, Job], cells: Mapping[str, Cell]) -> None:
        """Settle what became of a cell, or let it wait for its turn again."""
        key, seconds = event.key, self._seconds(event.key)
        result = event.result or {}
        if result.get("state") == "held" or (event.lost and self._may_go_on(key)):
            waiting[key] = self._jobs[key]
            return
        status = self._settle(key, "failed", event.error or result.get("error") or "the run ended without saying how")
        self.display.ended(key, status.state, status.step, seconds, status.error)
        if warnings := result.get("warnings"):
            self.warnings[key] = warnings
        if result.get("disk_full"):
            left = sum(
                cells[other].disk for other in cells if self._runs[other].status.state not in ("done", "diverged")
            )
            free = free_disk(Path(self._store))
            self.stopped = (
                f"the disk is full: the runs that are left need about {gigabytes(left)}, {gigabytes(free)} are free"
            )

    def _may_go_on(self, key: str) -> bool:
        """Whether a run whose worker was lost is begun again: not for ever at the same step."""
        status = self._runs[key].status
        if status.state in ("done", "diverged", "failed"):
            return False
        step, count = self._losses.get(key, (-1, 0))
        self._losses[key] = (status.step, count + 1 if step == status.step else 1)
        return self._losses[key][1] < MOST_DEATHS

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
        run = self._runs[run_id]
        return status if status.state in FINAL_STATES or run.is_leased else run.set_status(state=state, error=error)


def _groups_of_shared_data(cells: Sequence[Cell]) -> dict[str, list[RunConfig]]:
    """For each table of base losses, one config a data order: the one that sees most of it.

    All orders of one model and its data go to one worker, which then loads them once.
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
