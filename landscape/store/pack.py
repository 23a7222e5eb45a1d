"""A store without snapshots, or with a few: small enough to send, and read by everything that reads a store."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import StoreError, UsageError
from landscape.store.arrays import read_arrays, read_order
from landscape.store.atomic import replacing, sync_directory, write_error
from landscape.store.copying import copy_run
from landscape.store.keeping import Policy, folder_bytes
from landscape.store.runs import Run
from landscape.store.slices import joint_slices_dir, read_slice, slice_files
from landscape.store.store import Store


@dataclass(frozen=True)
class Packing:
    """What was packed; ``left_out`` gives a reason for each run that was not."""

    path: Path
    runs: int
    snapshots: int
    bytes_before: int
    bytes_after: int
    left_out: dict[str, str]


def pack(
    store: Store,
    target: Path,
    *,
    runs: Sequence[Run] | None = None,
    policy: Policy | None = None,
    checkpoints: bool = False,
    progress: Callable[[str], object] | None = None,
) -> Packing:
    """Copy a store without its snapshots; ``target`` appears whole or not at all.

    Args:
        runs: which; default: all. What several runs share is copied where all of them are.
        policy: of snapshots to keep; default: none.
        checkpoints: keep the newest resumable states, so that runs can be continued from the copy.
        progress: told the id of each run before it is copied.

    Raises:
        UsageError: ``target`` exists already.
        StoreError: the disk is full or refuses. A damaged run is left out and named.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already; name a folder that does not")
    chosen = list(store.runs() if runs is None else runs)
    partial = target.with_name(f".pack-{target.name}-{secrets.token_hex(4)}")
    left_out: dict[str, str] = {}
    copied, snapshots = [], 0
    try:
        packed = Store.create(partial)
        for run in chosen:
            if progress is not None:
                progress(run.id)
            try:
                steps = _kept(run, policy)
                copy_run(run, packed.run_path(run.id), steps=steps, checkpoint=checkpoints)
            except StoreError as error:
                if is_write_error(error):
                    raise
                left_out[run.id] = str(error)
                continue
            copied.append(run.id)
            snapshots += sum(map(len, steps.values()))
        copy_shared(store, packed, set(copied))
        after = folder_bytes(partial)
        sync_directory(partial)
        os.replace(partial, target)
        sync_directory(target.parent)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    before = sum(folder_bytes(run.path) for run in chosen)
    return Packing(target, len(copied), snapshots, before, after, left_out)


def copy_shared(source: Store, target: Store, runs: set[str]) -> list[str]:
    """What runs share: data orders, base losses, slices of several runs. Returns what the two contradict each other in.

    Args:
        runs: ids of those that the target has; slices of others are left behind.
    """
    import numpy as np

    conflicts = []
    for folder in ("orders", "base_loss"):
        for path in _plain(source.path / folder):
            there = target.path / folder / path.name
            read: Any = read_order if path.suffix == ".npy" else read_arrays
            try:
                new, old = read(path), read(there) if there.exists() else None
            except StoreError as error:
                conflicts.append(str(error))
                continue
            if isinstance(new, np.ndarray):
                common = len(new) if old is None else min(len(new), len(old))
                if old is not None and not np.array_equal(new[:common], old[:common]):
                    conflicts.append(f"{folder}/{path.name}: another order of the data than {there} has")
                elif old is None or len(new) > len(old):
                    _copy(path, there)
            elif old is None:
                _copy(path, there)
            else:
                conflicts += _fill_in(new, old, there)
    for path in slice_files(joint_slices_dir(source.path)):
        there = joint_slices_dir(target.path) / path.name
        if not path.is_symlink() and not there.exists() and _slice_runs(path) <= runs:
            there.parent.mkdir(exist_ok=True)
            _copy(path, there)
    return conflicts


def _fill_in(new: dict, old: dict, there: Path) -> list[str]:
    """Base losses of examples that the other store has not measured."""
    import numpy as np

    if new.keys() != old.keys() or any(new[name].shape != old[name].shape for name in new):
        return [f"base_loss/{there.name}: of another set of examples than {there} has"]
    both = ~np.isnan(new["nll"]) & ~np.isnan(old["nll"])
    if not np.allclose(new["nll"][both], old["nll"][both], rtol=1e-3):
        return [f"base_loss/{there.name}: other losses than {there} has"]
    if np.isnan(old["nll"])[~np.isnan(new["nll"])].any():
        with replacing(there) as temporary:
            np.savez(temporary, **{name: np.where(np.isnan(old[name]), new[name], old[name]) for name in old})
    return []


def _kept(run: Run, policy: Policy | None) -> dict[str, list[int]]:
    if policy is None or not run.status.attempt:
        return {}
    kept = {stream: policy.keeps(run, run.snapshots(stream).steps.tolist()) for stream in run.streams()}
    return {stream: steps for stream, steps in kept.items() if steps}


def _slice_runs(path: Path) -> set[str]:
    try:
        return set(read_slice(path).runs)
    except StoreError:
        return {""}  # damaged: no store has a run of this name, so it stays behind


def _plain(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.suffix in (".npy", ".npz") and not path.name.startswith(".")]
    return sorted(path for path in named if path.is_file() and not path.is_symlink())


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def is_write_error(error: StoreError) -> bool:
    """Whether the disk refused, so that going on to the next run helps nobody."""
    return isinstance(error.__cause__, OSError) and str(error).startswith("cannot write")
