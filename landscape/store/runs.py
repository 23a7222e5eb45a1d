"""One run of a store: its config, its status, its attempts, and what they measured."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from landscape.config import RunConfig, parse_model
from landscape.config.identity import NOT_HASHED
from landscape.config.imported import ImportedConfig
from landscape.errors import StoreError, UsageError, nearest
from landscape.store.atomic import read_json, write_checked_json
from landscape.store.attempts import (
    CHECKPOINT_FOLDER,
    METRICS_FILE,
    Attempt,
    current_attempt,
    highest_folder,
    prepare_attempt,
)
from landscape.store.config_file import read_config_values, write_config
from landscape.store.files import refuse_outside
from landscape.store.leases import Claim, Lease, Mark, claim_lease, latest_claim
from landscape.store.metrics import Kind, read_parquet, read_records, to_frame, to_table, write_parquet
from landscape.store.snapshots import SnapshotReader, read_layouts

if TYPE_CHECKING:
    import pandas as pd

State = Literal["queued", "running", "done", "failed", "diverged", "interrupted"]

CONFIG_FILE = "config.yaml"
IDENTITY_FILE = "identity.json"
STATUS_FILE = "status.json"
PARQUET_FILE = "metrics.parquet"
_MOST = 1 << 62


class RunStatus(BaseModel):
    """Where a run stands. Times are ISO 8601, UTC."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    state: State = "queued"
    attempt: int = Field(0, ge=0, lt=_MOST, description="the current attempt; 0: none yet")
    step: int = Field(0, ge=0, lt=_MOST, description="optimizer steps done, as last reported")
    max_steps: int = Field(ge=1, lt=_MOST)
    host: str | None = None
    pid: int | None = None
    created: str
    started: str | None = Field(None, description="when it was first running")
    updated: str
    finished: str | None = Field(None, description="when it last stopped running")
    error: str | None = Field(None, description="tail of what went wrong")
    environment: dict[str, Any] = Field({}, description="package versions, threads, device")
    overrides: dict[str, Any] = Field({}, description="config keys in which its attempts depart from the config")
    peak_memory: dict[str, int] = Field({}, description="most bytes while training: rss of the process, cuda tensors")

    @property
    def is_held(self) -> bool:
        """Whether another live process of this machine is training the run; those of other machines are not seen."""
        here = self.state == "running" and self.host == socket.gethostname()
        return here and self.pid != os.getpid() and _is_alive(self.pid)


class Run:
    """A run folder. Made by `Store.add`, `Store.get` and `Store.runs`; holds no open files and caches nothing."""

    def __init__(self, path: Path, root: Path, lease: Lease | None = None) -> None:
        self.path = path
        self.id = path.name
        self._root = root
        self._lease = lease

    def __repr__(self) -> str:
        return f"Run({self.id!r} in {str(self._root)!r})"

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self._root

    def claim(self, *, expired: Mark | None = None, step: int = 0) -> Lease:
        """The lease on this run (`landscape.store.leases`); who trains it holds one.

        Args:
            expired: of a lease that a `landscape.store.leases.LeaseWatch` has seen expire.
            step: of the checkpoint to go on from.

        Raises:
            LeaseHeldError: another process has it.
            StoreError: the disk is full or refuses.
        """
        above = max(self.status.attempt, highest_folder(self.path / "attempts"))
        return claim_lease(self.path, expired=expired, above=above, step=step)

    def under(self, lease: Lease) -> Run:
        """This run for the holder of its lease: its attempt has the lease's number, and its status is fenced."""
        return Run(self.path, self._root, lease)

    @property
    def last_claim(self) -> Claim | None:
        """The newest lease on this run, whatever became of it; None where nobody ever claimed it."""
        return latest_claim(self.path)

    @property
    def is_leased(self) -> bool:
        """Whether somebody may be at work on it; only a `landscape.store.leases.LeaseWatch` knows what has expired."""
        claim = self.last_claim
        return claim is not None and claim.is_open

    @property
    def config(self) -> RunConfig:
        """The complete config, with nulls where the run was imported; `StoreError` when ``config.yaml`` is damaged."""
        try:
            values = self.config_values()
            return (ImportedConfig if "imported" in values else RunConfig).parse(values)
        except UsageError as error:
            raise StoreError(f"run {self.id}: {error}") from error

    def config_values(self) -> dict[str, Any]:
        """The mapping in ``config.yaml``, not validated: what lists of thousands of runs read."""
        return read_config_values(self._inside(CONFIG_FILE))

    @property
    def digests(self) -> dict[str, str]:
        """Of the data and the model that the run's id was made from."""
        digests = read_json(self._inside(IDENTITY_FILE)).get("digests")
        if not isinstance(digests, dict):
            raise StoreError(f"{self.path / IDENTITY_FILE} is damaged: it has no digests")
        return digests

    @property
    def checkpoint_dir(self) -> Path:
        """Where the current attempt's resumable states lie; made by whoever writes them."""
        own = self.path / "attempts" / str(self.status.attempt) / CHECKPOINT_FOLDER
        # Runs of before there were leases kept theirs beside the attempts.
        return own if own.is_dir() else self.path / CHECKPOINT_FOLDER

    @property
    def analysis_dir(self) -> Path:
        """One file a result; made by whoever writes it."""
        return self._inside("analysis")

    @property
    def status(self) -> RunStatus:
        """Read anew each time; `StoreError` when ``status.json`` is damaged.

        Its attempt is the highest that was begun. A file that names an earlier one was written by a process that died
        just after, or that had lost its lease; what such a process says of the end is not believed.
        """
        path = self._inside(STATUS_FILE)
        try:
            status = parse_model(RunStatus, read_json(path))
        except UsageError as error:
            raise StoreError(f"{path} is damaged: {error}") from error
        attempt = current_attempt(self.path / "attempts", status.attempt)
        if attempt == status.attempt:
            return status
        state = "running" if status.state == "running" else "interrupted"
        return status.model_copy(update={"attempt": attempt, "state": state})

    def set_status(self, **changes: Any) -> RunStatus:
        """Replace parts of the status atomically and durably (one fsync: report progress each second, not each step).

        ``updated`` is always set; ``started`` and ``finished`` follow from the state unless given.

        Raises:
            UsageError: an unknown field or a value out of range.
            LeaseLostError: this is a holder's view of the run, and somebody has taken over.
            StoreError: the disk is full or refuses; the status is then as it was.
        """
        confirm = self._lease.check if self._lease else lambda: None
        confirm()
        if self._lease is not None:
            changes = {"state": "running", "attempt": self._own_attempt(), **changes}
        for key in changes:
            if key not in RunStatus.model_fields:
                raise UsageError(f"unknown status field {key!r}.{nearest(key, RunStatus.model_fields)}")
        before, now = self.status, _now()
        values = {**before.model_dump(), "updated": now, **_times(before, changes.get("state"), now), **changes}
        status = parse_model(RunStatus, values)
        # Once more: writing takes long enough for a process to be suspended in it, and a successor may have finished.
        write_checked_json(self._inside(STATUS_FILE), status.model_dump(mode="json"), confirm)
        return status

    def update_config(self, config: RunConfig) -> None:
        """Take over a config that differs only in what does not change the result, such as a larger ``max_steps``.

        Raises:
            StoreError: it differs in a key that is part of the run's identity.
        """
        before = self.config
        if config == before:
            return
        old, new = (item.model_dump(mode="json", exclude={*NOT_HASHED, "model"}) for item in (before, config))
        if changed := [key for key in new if new[key] != old[key]]:
            key = changed[0]
            raise StoreError(f"run {self.id}: {key} is {old[key]!r}; with {new[key]!r} it would be another run")
        write_config(self._inside(CONFIG_FILE), config)
        self.set_status(max_steps=config.max_steps)

    def begin_attempt(
        self, resume_step: int = 0, *, checkpoint: Path | None = None, overrides: Mapping[str, Any] | None = None
    ) -> Attempt:
        """Start writing to a new attempt, and then make it the current one.

        Metrics and snapshots up to ``resume_step`` are copied from the current attempt; with 0 the run starts over and
        nothing is. A crash before the end leaves the current attempt current.

        Args:
            checkpoint: folder of the state at ``resume_step``, to be copied too.
            overrides: config keys in which this attempt departs from the run's config.

        Raises:
            StoreError: there is nothing to resume, what should be copied is damaged, or the disk is too full.
        """
        attempts, before = self.path / "attempts", self.status
        if self._lease is not None and (attempts / str(self._lease.number)).exists():
            self._lease.advance()
        folder = prepare_attempt(
            attempts,
            before.attempt,
            resume_step,
            number=self._lease.number if self._lease else None,
            checkpoint=checkpoint,
            overrides=overrides or {},
        )
        attempt = Attempt(folder)
        try:
            self.set_status(state=before.state, attempt=attempt.number, step=resume_step)
        except BaseException:
            attempt.close()
            raise
        return attempt

    def remove_old_attempts(self) -> int:
        """Delete every attempt but the current one; returns the bytes freed. Not while another process may write."""
        current, freed = self.status.attempt, 0
        try:
            for folder in (self.path / "attempts").glob("[0-9]*"):
                if folder.name != str(current) and folder.is_dir():
                    freed += sum(file.st_size for file in map(Path.stat, folder.rglob("*")) if file.st_nlink == 1)
                    shutil.rmtree(folder)
        except OSError as error:
            raise StoreError(f"cannot remove old attempts of run {self.id}: {error.strerror}") from error
        return freed

    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step, ascending; ``step`` int64, numbers float64, NaN where not measured.

        The columns of `landscape.store.metrics.STEP_COLUMNS` are always there, then the method's own by name. Step s
        (from 1) holds what was measured in optimizer step s, before its update.

        Raises:
            StoreError: a damaged line (names file and number) or a damaged ``metrics.parquet``.
        """
        return self._frame("step")

    def evaluations(self) -> pd.DataFrame:
        """One row per evaluation, ascending in ``step``: the loss on ``split`` after so many optimizer steps.

        The columns of `landscape.store.metrics.EVALUATION_COLUMNS` are always there, then the task's own by name.

        Raises:
            StoreError: as `metrics`.
        """
        return self._frame("evaluation")

    def compact(self) -> Path:
        """Write ``metrics.parquet`` from the current attempt; returns its path.

        Raises:
            StoreError: there is no attempt, a line is damaged, or the disk is full.
        """
        folder, path = self.attempt_dir(), self.path / PARQUET_FILE
        if self._lease is not None:
            self._lease.check()
            folder = self.path / "attempts" / str(self._own_attempt())
        write_parquet(path, read_records(folder / METRICS_FILE).records, self.id, int(folder.name))
        return path

    def streams(self) -> list[str]:
        """Names of the current attempt's snapshot streams, sorted; empty before there are any."""
        return sorted(read_layouts(self.attempt_dir())) if self.status.attempt else []

    def snapshots(self, stream: str = "params") -> SnapshotReader:
        """The current attempt's snapshots, also while they are being written.

        Raises:
            StoreError: there is no attempt or no such stream (the nearest is named), or its index is damaged.
        """
        return SnapshotReader(self.attempt_dir(), stream, self._root)

    def _own_attempt(self) -> int:
        """The attempt of this lease; the one to be taken over while that has not begun."""
        attempt = self.status.attempt
        return min(attempt, self._lease.number) if self._lease else attempt

    def attempt_dir(self) -> Path:
        """The current attempt's folder.

        Raises:
            StoreError: there is no attempt yet, it is missing, or a link leads out of the store.
        """
        if not (number := self.status.attempt):
            raise StoreError(f"run {self.id} has not been started: it has no attempt yet")
        folder = self._inside(f"attempts/{number}")
        if not folder.is_dir():
            raise StoreError(f"run {self.id}: its current attempt {folder} is missing")
        return folder

    def _inside(self, name: str) -> Path:
        """A path below the run's folder; `StoreError` where a link leads out of the store."""
        path = self.path / name
        refuse_outside(path, self._root)
        return path

    def _frame(self, kind: Kind) -> pd.DataFrame:
        status, table = self.status, None
        if status.state == "done":
            table = read_parquet(self._inside(PARQUET_FILE), status.attempt)
        if table is None:
            path = self._inside(f"attempts/{status.attempt}/{METRICS_FILE}")
            table = to_table(read_records(path).records if self.status.attempt else [])
        return to_frame(table, kind)


def create_run(path: Path, root: Path, config: RunConfig, digests: Mapping[str, str]) -> Run:
    """Make a run folder; it counts as a run once ``config.yaml``, written last, is there."""
    now = _now()
    status = RunStatus.model_validate({"max_steps": config.max_steps, "created": now, "updated": now})
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create {path}: {error.strerror}") from error
    write_checked_json(path / IDENTITY_FILE, {"run_id": path.name, "digests": dict(digests)})
    write_checked_json(path / STATUS_FILE, status.model_dump())
    write_config(path / CONFIG_FILE, config)
    return Run(path, root)


def _times(before: RunStatus, state: str | None, now: str) -> dict[str, str | None]:
    if state is None or state == before.state or state not in get_args(State):
        return {}
    if state == "running":
        return {"started": before.started or now, "finished": None}
    return {"finished": None if state == "queued" else now}


def _is_alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(pid)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
