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
    from landscape.store import RunStatus, Store

_METRIC_BYTES = 600
"""Of one optimizer step's line, rounded up; next to a snapshot it hardly counts."""
_SHAPE_KEYS = ("model", "model_kwargs", "dtype", "task", "method", "method_args", "rank", "target_modules")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        config: resolved: every rule and default replaced by its value.
        state: in the store, or ``"new"``.
        step: optimizer steps done so far.
        held: another process on this machine is training it right now.
    """

    run_id: str
    config: RunConfig
    digests: dict[str, str]
    state: str
    step: int
    held: bool

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
    statuses = {} if existing is None else {run.id: run.status for run in existing.runs()}
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
            cells[run_id] = Cell(run_id, config, digests, *_progress(statuses.get(run_id)))
    plan = SweepPlan(path, tuple(cells.values()), count - len(cells), 0, free_disk(path))
    return replace(plan, snapshot_bytes=_check_shapes_and_disk(plan.pending))


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


def _progress(status: RunStatus | None) -> tuple[str, int, bool]:
    """State, step, and whether a live process of this machine has the run."""
    if status is None:
        return "new", 0, False
    return status.state, status.step, status.is_held


def _check_shapes_and_disk(cells: Iterable[Cell]) -> int:
    """Bytes of snapshots and metrics; refuses what does not fit the architecture, with which the sizes come."""
    from landscape.store import plan_capture
    from landscape.training.resolve import check_shapes, estimate_record_bytes

    sizes: dict[str, int] = {}
    total = 0
    for cell in cells:
        values = cell.config.model_dump(mode="json", include=set(_SHAPE_KEYS))
        shape = json.dumps(values | {"moments": cell.config.capture.moments}, sort_keys=True)
        if shape not in sizes:
            check_shapes(cell.config)
            sizes[shape] = estimate_record_bytes(cell.config) * (2 if cell.config.capture.moments else 1)
        steps = cell.config.max_steps
        total += plan_capture(cell.config.capture, steps, sizes[shape]).estimated_bytes + _METRIC_BYTES * steps
    return total
