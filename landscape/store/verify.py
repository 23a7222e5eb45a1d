"""Is everything in a store what was written? Each file is read, each checksum compared; torn ends are cut off."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from landscape.errors import StoreError
from landscape.store.arrays import read_arrays, read_order
from landscape.store.atomic import read_json
from landscape.store.config_file import has_checksum
from landscape.store.files import refuse_outside
from landscape.store.findings import Finding, Ledger, Verification
from landscape.store.leases import LeaseHeldError
from landscape.store.names import is_run_id
from landscape.store.runs import CONFIG_FILE, IDENTITY_FILE, STATUS_FILE, Run, RunStatus
from landscape.store.slices import read_slice
from landscape.store.store import STORE_FILE, Store
from landscape.store.tables import read_table
from landscape.store.verify_attempt import check_attempt, check_compacted

__all__ = ["Finding", "Verification", "verify"]

LEFTOVER_SECONDS = 3600
"""Age from which a temporary file is nobody's any more."""


def verify(
    store: Store,
    *,
    repair: bool = False,
    runs: list[Run] | None = None,
    progress: Callable[[str], object] | None = None,
) -> Verification:
    """Read everything in a store and compare every checksum.

    With ``repair`` torn ends are cut off, copies that can be made again are, and temporary files of processes that
    died are removed. What is damaged is left as it is, whatever is asked for.

    Args:
        runs: check these and what they share; default: all.
        progress: told the id of each run before it is read.

    Raises:
        StoreError: a repair failed, for instance because the disk is full.
    """
    ledger = Ledger(store.path, repair)
    _check_shared(store, ledger)
    busy = []
    chosen = store.runs() if runs is None else runs
    if runs is None:
        _check_strangers(store, ledger, {run.id for run in chosen})
    for run in chosen:
        if progress is not None:
            progress(run.id)
        ledger.run = run.id
        if not check_run(run, ledger):
            busy.append(run.id)
    return Verification(
        runs=len(chosen),
        files=ledger.files,
        records=ledger.records,
        bytes=ledger.bytes,
        unchecked=ledger.unchecked,
        findings=tuple(ledger.findings),
        busy=tuple(busy),
    )


def check_run(run: Run, ledger: Ledger) -> bool:
    """Check one run; False where somebody is at work on it, so that its end may be torn and nothing is repaired."""
    seen = replace(ledger, repair=False, findings=[])
    busy = _is_busy(run)
    _check_run(run, seen, busy)
    if ledger.repair and not busy and any(item.repairable for item in seen.findings):
        # Nobody else can begin to write while the lease is held; it is claimed only where there is something to do.
        try:
            with run.claim():
                seen = replace(ledger, findings=[])
                _check_run(run, seen, busy=False)
        except LeaseHeldError:
            busy = True
    ledger.findings += seen.findings
    ledger.files, ledger.records, ledger.bytes = seen.files, seen.records, seen.bytes
    ledger.unchecked = seen.unchecked
    return not busy


def _check_run(run: Run, ledger: Ledger, busy: bool) -> None:
    _check_links(run.path, ledger)
    _check_config(run, ledger)
    _check_json(run.path / IDENTITY_FILE, ledger, lambda: _check_identity(run))
    status = _check_status(run, ledger)
    _check_json(run.path / "adapter_config.json", ledger)
    _check_analyses(run.path / "analysis", ledger)
    if status is not None and status.attempt:
        records = check_attempt(run, status, ledger, busy=busy)
        check_compacted(run, status, ledger, records)
    for folder in (run.path, run.path / "analysis"):
        _check_leftovers(folder, ledger)


def _is_busy(run: Run) -> bool:
    """Whether somebody may be writing to the run."""
    try:
        return run.is_leased or run.status.is_held
    except StoreError:
        return False


def _check_shared(store: Store, ledger: Ledger) -> None:
    ledger.saw(store.path / STORE_FILE)
    for folder in (store.path, store.orders_dir, store.base_loss_dir, store.path / "analysis"):
        _check_leftovers(folder, ledger)
    for path in _files(store.orders_dir, "*.npy"):
        _try(path, ledger, lambda path=path: read_order(path))
    for path in _files(store.base_loss_dir, "*.npz"):
        _try(path, ledger, lambda path=path: _check_base_loss(path))
    _check_analyses(store.path / "analysis", ledger)
    for folder in (store.orders_dir, store.base_loss_dir, store.path / "analysis"):
        _check_links(folder, ledger)


def _check_strangers(store: Store, ledger: Ledger, known: set[str]) -> None:
    """What lies among the runs and is none."""
    folder = store.path / "runs"
    for entry in sorted(os.scandir(folder), key=lambda item: item.name) if folder.is_dir() else ():
        path = folder / entry.name
        if entry.name in known or entry.name.startswith("."):
            continue
        if entry.is_symlink():
            ledger.found("foreign", path, "a link is not followed, and is no run")
        elif not entry.is_dir() or not is_run_id(entry.name):
            ledger.found("foreign", path, "this is no run")
        else:
            ledger.found("unfinished", path, f"a run that was being made: it has no {CONFIG_FILE}")


def _check_links(folder: Path, ledger: Ledger) -> None:
    """Links that lead out of the store, and what is neither file nor folder; nothing of them is ever read."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                try:
                    refuse_outside(path, ledger.root)
                except StoreError:
                    ledger.found("foreign", path, "a link that leads out of the store; it is not followed")
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                ledger.found("foreign", path, "neither a file nor a folder")


def _check_config(run: Run, ledger: Ledger) -> None:
    path = run.path / CONFIG_FILE
    _try(path, ledger, lambda: run.config)
    with contextlib.suppress(StoreError):
        ledger.unchecked += not has_checksum(path)


def _check_identity(run: Run) -> None:
    _ = run.digests
    named = read_json(run.path / IDENTITY_FILE).get("run_id")
    if named != run.id:
        raise StoreError(f"{run.path / IDENTITY_FILE} names another run: {str(named)[:200]!r}")


def _check_status(run: Run, ledger: Ledger) -> RunStatus | None:
    try:
        status = run.status
        ledger.saw(run.path / STATUS_FILE)
    except (StoreError, OSError) as error:
        ledger.found("damaged", run.path / STATUS_FILE, str(error))
        return None
    if status.attempt and not (run.path / "attempts" / str(status.attempt)).is_dir():
        ledger.found("damaged", run.path / "attempts" / str(status.attempt), "the current attempt is missing")
        return None
    return status


def _check_json(path: Path, ledger: Ledger, check: Callable[[], object] | None = None) -> None:
    if os.path.lexists(path):
        _try(path, ledger, check or (lambda: read_json(path)))


def _check_analyses(folder: Path, ledger: Ledger) -> None:
    for path in _files(folder, "*"):
        if path.name.startswith(".tmp-"):
            continue
        if path.suffix == ".parquet":
            _try(path, ledger, lambda path=path: read_table(path))
        elif path.suffix == ".npz":
            read = read_arrays if path.name.startswith("partial-") else read_slice
            _try(path, ledger, lambda path=path, read=read: read(path))
        elif path.suffix == ".json":
            _try(path, ledger, lambda path=path: read_json(path))


def _check_base_loss(path: Path) -> None:
    arrays = read_arrays(path)
    if not {"nll", "count"} <= arrays.keys() or arrays["nll"].shape != arrays["count"].shape:
        raise StoreError(f"{path} is damaged: nll and count are not there, or do not fit each other")


def _check_leftovers(folder: Path, ledger: Ledger) -> None:
    for path in _files(folder, ".tmp-*"):
        if time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS:
            ledger.found("leftover", path, "a temporary file of a process that died", mend=path.unlink)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Plain files directly in a folder of the store; what links lead to is not looked at."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink())


def _try(path: Path, ledger: Ledger, check: Callable[[], object]) -> None:
    try:
        check()
        ledger.saw(path)
    except StoreError as error:
        ledger.found("damaged", path, str(error))
    except OSError as error:
        ledger.found("damaged", path, f"cannot be read: {error.strerror}")
