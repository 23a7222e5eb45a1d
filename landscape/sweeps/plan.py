"""What a sweep would do: its cells, which of them are finished, how many steps and how much disk are left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.config import RunConfig
from landscape.errors import StoreError

if TYPE_CHECKING:
    from landscape.store import Store

_METRIC_BYTES = 600
"""Of one optimizer step's line, rounded up; next to a snapshot it hardly counts."""
_SHAPE_KEYS = (
    *("model", "model_kwargs", "dtype", "task", "method", "method_args", "adapter", "adapter_args"),
    *("rank", "target_modules"),
)
_BATCH_KEYS = ("per_device_train_batch_size", "max_length", "bf16", "gradient_checkpointing")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        config: resolved: every rule and default replaced by its value.
        state: in the store, or ``"new"``.
        step: optimizer steps done so far.
        held: another process is at work on it, as far as can be told without watching its lease.
        disk: bytes that its snapshots and metrics will take, estimated; 0 for one that is finished.
        memory: bytes that training it takes of its device, estimated; 0 likewise.
    """

    run_id: str
    config: RunConfig
    digests: dict[str, str]
    state: str
    step: int
    held: bool
    disk: int = 0
    memory: int = 0

    @property
    def finished(self) -> bool:
        """A diverged run is a result; a done one may have been asked to go on for longer."""
        return self.state == "diverged" or (self.state == "done" and self.step >= self.config.max_steps)


@dataclass(frozen=True)
class SweepPlan:
    """The cells of a sweep, each run once.

    Attributes:
        duplicates: cells that came out as a run already in the list (method full at several ranks, say).
        snapshot_bytes: what the pending cells' snapshots and metrics will take, estimated.
        free_bytes: free disk where the store lies.
    """

    store: Path
    cells: tuple[Cell, ...]
    duplicates: int
    snapshot_bytes: int
    free_bytes: int

    @property
    def pending(self) -> tuple[Cell, ...]:
        """Cells still to be run, and not being run by somebody else."""
        return tuple(cell for cell in self.cells if not cell.finished and not cell.held)

    @property
    def unfinished(self) -> tuple[Cell, ...]:
        """Cells still to be run, by whomever."""
        return tuple(cell for cell in self.cells if not cell.finished)

    @property
    def steps(self) -> int:
        """Optimizer steps of the pending cells; those already taken by interrupted runs are not subtracted."""
        return sum(cell.config.max_steps for cell in self.pending)


def plan_sweep(configs: Iterable[RunConfig], store: str | Path) -> SweepPlan:
    """Resolve every cell and compare it with the store, which need not exist and is not written to.

    Raises:
        UsageError: an unknown method, model or task, or a value that does not go with them, in any cell.
        StoreError: a store of a newer schema.
    """
    from landscape.training.resolve import check, identify, resolve

    path = Path(store)
    existing = _open_store(path)
    cells: dict[str, Cell] = {}
    count = 0
    for given in configs:
        count += 1
        check(given)
        config = resolve(given)
        run_id, digests = identify(config)
        earlier = cells.get(run_id)
        # Equal ids can still differ in length: a run's identity does not include max_steps.
        if earlier is None or config.max_steps > earlier.config.max_steps:
            cells[run_id] = Cell(run_id, config, digests, *_progress(existing, run_id))
    return _sized(path, list(cells.values()), count - len(cells))


def plan_store(store: str | Path, *, failed_only: bool = False) -> SweepPlan:
    """What is left of everything that was ever begun in a store: its own runs, and the recorded cells of its sweeps.

    Args:
        failed_only: only the runs that failed.

    Raises:
        StoreError: no store there, or a damaged run or record.
    """
    from landscape.store import Store
    from landscape.sweeps.cells import is_ours
    from landscape.sweeps.record import read_records

    opened = Store.open(store)
    recorded = {}
    for cell in read_records(opened.path):
        other = recorded.get(cell.run_id)
        if other is None or cell.config.max_steps > other.config.max_steps:
            recorded[cell.run_id] = cell
    cells: dict[str, Cell] = {}
    for run in opened.runs():
        if failed_only and run.status.state != "failed":
            continue
        if not is_ours(run):
            continue
        config, wanted = run.config, recorded.get(run.id)
        if wanted is not None and wanted.config.max_steps > config.max_steps:
            config = wanted.config
        cells[run.id] = Cell(run.id, config, run.digests, *_progress(opened, run.id))
    if not failed_only:
        for run_id, cell in recorded.items():
            cells.setdefault(run_id, Cell(run_id, cell.config, cell.digests, "new", 0, held=False))
    return _sized(opened.path, list(cells.values()), 0)


def _sized(path: Path, cells: list[Cell], duplicates: int) -> SweepPlan:
    """The plan with what its pending cells will take of disk and memory."""
    pending = [cell for cell in cells if not cell.finished and not cell.held]
    sizes = dict(zip([cell.run_id for cell in pending], _sizes(pending), strict=True))
    told = [
        replace(cell, disk=sizes[cell.run_id][0], memory=sizes[cell.run_id][1]) if cell.run_id in sizes else cell
        for cell in cells
    ]
    return SweepPlan(path, tuple(told), duplicates, sum(disk for disk, _ in sizes.values()), free_disk(path))


def free_disk(path: Path) -> int:
    """Free bytes at the path, or at its nearest parent that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_disk(plan: SweepPlan) -> None:
    """Refuse to start what cannot end.

    Raises:
        StoreError: the snapshots are estimated to need more than the disk has free.
    """
    if plan.snapshot_bytes > plan.free_bytes:
        raise StoreError(
            f"{plan.store}: the sweep needs about {gigabytes(plan.snapshot_bytes)} of snapshots and "
            f"{gigabytes(plan.free_bytes)} are free; lower capture.budget_gb, or set capture to log or none"
        )


def gigabytes(size: int) -> str:
    """``1.24 GB``, or MB below a tenth of that."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _open_store(path: Path) -> Store | None:
    from landscape.store import Store

    return Store.open(path) if (path / "store.json").exists() else None


def _progress(store: Store | None, run_id: str) -> tuple[str, int, bool]:
    """State, step, and whether some process may have the run."""
    run = store.find(run_id) if store is not None else None
    if run is None:
        return "new", 0, False
    return run.status.state, run.status.step, run.is_leased


def _sizes(cells: Iterable[Cell]) -> list[tuple[int, int]]:
    """Bytes of disk and of memory for each cell; refuses what does not fit the architecture."""
    from landscape.store import plan_capture
    from landscape.training.footprint import estimate_memory
    from landscape.training.resolve import check_shapes, estimate_record_bytes

    sizes: dict[str, int] = {}
    memory: dict[str, int] = {}
    found = []
    for cell in cells:
        values = cell.config.model_dump(mode="json", include=set(_SHAPE_KEYS))
        shape = json.dumps(values | {"moments": cell.config.capture.moments}, sort_keys=True)
        if shape not in sizes:
            check_shapes(cell.config)
            sizes[shape] = estimate_record_bytes(cell.config) * (2 if cell.config.capture.moments else 1)
        batch = cell.config.model_dump(mode="json", include=set(_BATCH_KEYS))
        kind = json.dumps([shape, batch], sort_keys=True)
        if kind not in memory:
            memory[kind] = estimate_memory(cell.config)
        steps = cell.config.max_steps
        snapshots = plan_capture(cell.config.capture, steps, sizes[shape]).estimated_bytes
        found.append((snapshots + _METRIC_BYTES * steps, memory[kind]))
    return found
