"""Copying a run, whole or with a part of its snapshots, so that the copy is there at once or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from landscape.errors import StoreError
from landscape.store.atomic import replacing, sync_directory, write_checked_json, write_error
from landscape.store.attempts import ATTEMPT_FILE, CHECKPOINT_FOLDER, METRICS_FILE
from landscape.store.files import refuse_outside
from landscape.store.metrics import read_records
from landscape.store.records import RecordWriter, StreamFiles, StreamIndex
from landscape.store.runs import CONFIG_FILE, STATUS_FILE, Run
from landscape.store.snapshots import BASE_TENSORS_FILE, LAYOUTS_FILE, read_layouts, write_layouts

MOST_SPARSE = 1 << 28
"""Bytes from which a file that is mostly holes is taken for what it is."""
_OWN = ("attempts", "leases", CHECKPOINT_FOLDER)
"""Folders of a run that are not copied as they are."""


def copy_run(
    run: Run, target: Path, *, steps: Mapping[str, Sequence[int]] | None = None, checkpoint: bool = True
) -> None:
    """Copy a run with its current attempt to the folder ``target``, which appears whole or not at all.

    Somebody may be writing to the run: the copy then says ``interrupted``, and ends where the run was.

    Args:
        steps: snapshots to keep, by stream; None: all of them.
        checkpoint: copy the newest resumable state too.

    Raises:
        StoreError: something is damaged, a link leads out of the store, or the disk is full.
    """
    partial = target.with_name(f".copy-{target.name}-{secrets.token_hex(4)}")
    # Before a byte is copied: a file that cannot be read may be of any length.
    _, status = run.config, run.status
    try:
        partial.mkdir(parents=True)
        _copy_plain(run, partial)
        if status.attempt:
            (partial / "attempts").mkdir()
            source, own = run.attempt_dir(), partial / "attempts" / str(status.attempt)
            copy_attempt(run, source, own, steps=steps, checkpoint=checkpoint)
            if (source / ATTEMPT_FILE).is_file():
                _copy_file(source / ATTEMPT_FILE, own / ATTEMPT_FILE)
        if status.state == "running" or run.is_leased:
            status = status.model_copy(update={"state": "interrupted"})
        write_checked_json(partial / STATUS_FILE, status.model_dump(mode="json"))
        sync_directory(partial)
        os.replace(partial, target)
        sync_directory(target.parent)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_attempt(
    run: Run,
    source: Path,
    target: Path,
    *,
    steps: Mapping[str, Sequence[int]] | None = None,
    checkpoint: bool = True,
    link: bool = False,
) -> None:
    """Copy an attempt, but not the file that says that it has begun.

    Args:
        steps: snapshots to keep, by stream; None: all of them.
        link: give files that are never changed a second name instead, where the file system can.
    """
    read_records(source / METRICS_FILE)  # a damaged run is not copied, and not pruned
    target.mkdir()
    layouts = read_layouts(source)
    kept = {stream: layout for stream, layout in layouts.items() if steps is None or steps.get(stream)}
    left_out = {ATTEMPT_FILE, LAYOUTS_FILE, *(() if kept or not layouts else (BASE_TENSORS_FILE,))}
    for path in _plain_files(run, source):
        if path.name not in left_out and not path.name.startswith("snapshots-"):
            _copy_file(path, target / path.name, link=link and path.name == BASE_TENSORS_FILE)
    for stream, layout in kept.items():
        files = StreamFiles.of(source, stream, layout.record_bytes)
        for path in (files.data, files.index):
            refuse_outside(path, run.root)
        wanted = None if steps is None else set(steps[stream])
        copy_stream(files, StreamFiles.of(target, stream, layout.record_bytes), wanted)
    if kept:
        write_layouts(target, kept)
    if checkpoint:
        _copy_checkpoints(run, target / CHECKPOINT_FOLDER, link)
    sync_directory(target)


def copy_stream(source: StreamFiles, target: StreamFiles, steps: set[int] | None) -> None:
    """Copy records, in order; each is compared with its checksum on the way.

    Raises:
        StoreError: one of them is damaged (names its step), there is too little room, or the disk refuses.
    """
    index = StreamIndex(source)
    index.refresh()
    entries = [entry for entry in index.entries.values() if steps is None or entry.step in steps]
    needed, free = source.record_bytes * len(entries), shutil.disk_usage(target.data.parent).free
    if needed > free:
        raise StoreError(f"{target.data.parent}: {needed} bytes of snapshots are to be copied, {free} bytes are free")
    record = memoryview(bytearray(source.record_bytes if entries else 0))
    with contextlib.closing(RecordWriter(target)) as writer:
        for entry in entries:
            if not source.read_into(entry, record):
                raise StoreError(f"{source.data}: the snapshot of step {entry.step} is damaged (checksum)")
            writer.append(entry.step, record)
        writer.sync()


def _copy_plain(run: Run, target: Path) -> None:
    """Config, identity, tables and analyses: small files, and folders of them."""
    for path in _plain_files(run, run.path):
        if path.name != STATUS_FILE:
            _copy_file(path, target / path.name)
    if not (target / CONFIG_FILE).is_file():
        raise StoreError(f"{run.path / CONFIG_FILE} is missing, or no plain file")
    for folder in run.path.iterdir():
        if folder.is_dir() and not folder.is_symlink() and folder.name not in _OWN and not folder.name.startswith("."):
            (target / folder.name).mkdir()
            for path in _plain_files(run, folder):
                if not path.name.startswith("partial-"):
                    _copy_file(path, target / folder.name / path.name)


def _copy_checkpoints(run: Run, target: Path, link: bool) -> None:
    folder = run.checkpoint_dir
    if not folder.is_dir():
        return
    refuse_outside(folder, run.root)
    for state in sorted(folder.glob("step-*")):
        if state.is_dir() and not state.is_symlink():
            (target / state.name).mkdir(parents=True)
            for path in _plain_files(run, state):
                _copy_file(path, target / state.name / path.name, link=link)
            sync_directory(target / state.name)


def _plain_files(run: Run, folder: Path) -> list[Path]:
    """But for what somebody is just writing; `StoreError` where there are links or pipes: the copy would lack them."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in found:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StoreError(f"{path} is a link, or neither a file nor a folder: run {run.id} is not copied")
    return [path for path in found if path.is_file()]


def _copy_file(source: Path, target: Path, link: bool = False) -> None:
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    status = source.stat()
    held = getattr(status, "st_blocks", status.st_size) * 512
    if status.st_size > MOST_SPARSE and held < status.st_size // 2:
        raise StoreError(f"{source} says {status.st_size} bytes and holds {held}: it is not copied")
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary, follow_symlinks=False)
