"""One attempt at a run: the folder that one process writes, and how the next attempt takes over from it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from landscape.errors import StoreError
from landscape.store.atomic import AppendFile, replacing, sync_directory, write_error, write_json
from landscape.store.layout import SnapshotLayout
from landscape.store.lines import damaged_line, encode_line, scan_lines
from landscape.store.manifest import check_sealed
from landscape.store.metrics import checked_record, read_records
from landscape.store.names import check_stream
from landscape.store.records import IndexEntry, RecordWriter, StreamFiles, StreamIndex
from landscape.store.snapshots import BASE_TENSORS_FILE, read_layouts, write_base_tensors, write_layouts
from landscape.store.writer import SnapshotWriter

if TYPE_CHECKING:
    from torch import Tensor

METRICS_FILE = "metrics.jsonl"
ATTEMPT_FILE = "attempt.json"
CHECKPOINT_FOLDER = "checkpoint"


class Attempt:
    """The writing side of ``attempts/<n>/``; made by `Run.begin_attempt`, used by one process.

    Metrics are seen by readers as soon as `log` returns, snapshots as soon as the background thread has written them.
    `sync` before each checkpoint, so that a store never lags behind the state that a run is resumed from.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        metrics = path / METRICS_FILE
        records, end = read_records(metrics)
        self._metrics = AppendFile(metrics, end)
        self._last_steps: dict[str | None, int] = {record.get("split"): record["step"] for record in records}
        self._writers: dict[str, SnapshotWriter] = {}

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one optimizer step's metrics, or an evaluation's when the record has a ``split``.

        Values are numbers (one-element tensors and NumPy scalars too), strings or None; NaN and infinities survive.

        Raises:
            StoreError: a malformed record, a step not after the last one of its kind, or a full disk, in which case
                nothing of the record is written.
        """
        plain = checked_record(record)
        split, step = plain.get("split"), plain["step"]
        last = self._last_steps.get(split)
        if last is not None and step <= last:
            kind = "metrics" if split is None else f"evaluation {split!r}"
            raise StoreError(f"{kind} of step {step} cannot follow step {last}: steps are logged once, in order")
        self._metrics.append(encode_line(plain))
        self._last_steps[split] = step

    def snapshot_writer(self, stream: str, layout: SnapshotLayout, queue_size: int = 4) -> SnapshotWriter:
        """Open a snapshot stream, new or continued from the attempt before.

        Raises:
            UsageError: a stream name that is no plain name.
            StoreError: the stream is open already, or holds records of another layout.
        """
        check_stream(stream)
        if stream in self._writers:
            raise StoreError(f"{self.path}: snapshot stream {stream!r} is open already")
        layouts = read_layouts(self.path)
        if layouts.get(stream, layout) != layout:
            raise StoreError(f"{self.path}: snapshot stream {stream!r} holds other tensors than the model has now")
        if stream not in layouts:
            write_layouts(self.path, {**layouts, stream: layout})
        writer = SnapshotWriter(self.path, stream, layout, queue_size)
        self._writers[stream] = writer
        return writer

    def write_base_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep, once, the base-model tensors that the method rewrote; snapshots alone could not restore the model.

        Raises:
            StoreError: they are kept already, or the disk is full or refuses.
        """
        write_base_tensors(self.path, tensors)

    def sync(self) -> None:
        """Wait until everything logged and put so far is on disk.

        Raises:
            StoreError: something could not be written.
        """
        self._metrics.sync()
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the metrics and every snapshot writer; harmless when repeated.

        Raises:
            StoreError: something could not be written and no call has said so yet; everything is closed all the same.
        """
        failures = []
        for close in (self._close_metrics, *(writer.close for writer in self._writers.values())):
            try:
                close()
            except StoreError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _close_metrics(self) -> None:
        if not self._metrics.closed:
            try:
                self._metrics.sync()
            finally:
                self._metrics.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def current_attempt(attempts: Path, told: int) -> int:
    """The highest attempt that was begun: ``told`` by the run's status, or a later one that says so itself."""
    for number in sorted(_folders(attempts), reverse=True):
        if number <= told:
            break
        if (attempts / str(number) / ATTEMPT_FILE).is_file():
            return number
    return told


def highest_folder(attempts: Path) -> int:
    """The highest number given to an attempt, begun or not; 0 where there is none."""
    return max(_folders(attempts), default=0)


def _folders(attempts: Path) -> list[int]:
    try:
        names = os.listdir(attempts)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"cannot read {attempts}: {error.strerror}") from error
    return [int(name) for name in names if name.isdecimal() and len(name) < 10]


def prepare_attempt(
    attempts: Path,
    current: int,
    resume_step: int,
    *,
    number: int | None = None,
    checkpoint: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Make the folder of the next attempt, with what the current one holds up to ``resume_step``, synced to disk.

    It has begun once ``attempt.json``, written last, is there. Without a number whoever asks first gets the next one;
    folders left by a crash are never reused. With ``resume_step`` 0 the run starts over and nothing is copied.

    Args:
        attempts: the run's folder of attempts.
        current: number of the current attempt, 0 for none.
        resume_step: optimizer steps done at the checkpoint.
        number: of the lease under which it is made; its holder alone may use it.
        checkpoint: folder of the state at ``resume_step``, to be copied too.
        overrides: config keys in which this attempt departs from the run's config.

    Raises:
        StoreError: there is nothing to resume, a metrics line within the prefix is damaged, the checkpoint is gone, or
            the disk is too full; the new folder is then removed again.
    """
    if resume_step < 0 or (resume_step and not current):
        raise StoreError(f"{attempts.parent}: cannot resume at step {resume_step}, there is no attempt to resume")
    folder = _make_next(attempts, current, number)
    origin = {"resumed_from": current if resume_step else None, "resume_step": resume_step}
    try:
        (folder / METRICS_FILE).touch()
        if resume_step:
            _copy_prefix(attempts / str(current), folder, resume_step)
        if checkpoint is not None:
            _copy_checkpoint(checkpoint, folder / CHECKPOINT_FOLDER)
        sync_directory(folder)
        sync_directory(attempts)
        write_json(folder / ATTEMPT_FILE, {**origin, "overrides": dict(overrides or {})})
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise write_error(folder, error) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _make_next(attempts: Path, current: int, given: int | None) -> Path:
    try:
        attempts.mkdir(exist_ok=True)
        if given is not None:
            (attempts / str(given)).mkdir()
            return attempts / str(given)
        number = max(current, highest_folder(attempts)) + 1
        while True:
            folder = attempts / str(number)
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except OSError as error:
        raise write_error(attempts, error) from error


def _copy_prefix(source: Path, target: Path, resume_step: int) -> None:
    if not (source / METRICS_FILE).is_file():
        raise StoreError(f"{source / METRICS_FILE} is missing: there is nothing to resume")
    layouts = read_layouts(source)
    streams: list[tuple[str, StreamFiles, list[IndexEntry]]] = []
    for stream, layout in layouts.items():
        files = StreamFiles.of(source, stream, layout.record_bytes)
        index = StreamIndex(files)
        index.refresh()
        streams.append((stream, files, [entry for entry in index.entries.values() if entry.step <= resume_step]))
    needed = sum(files.record_bytes * len(entries) for _, files, entries in streams)
    if needed > (free := shutil.disk_usage(target).free):
        raise StoreError(f"{target}: resuming copies {needed} bytes of snapshots, but only {free} bytes are free")
    _copy_metrics(source / METRICS_FILE, target / METRICS_FILE, resume_step)
    for stream, files, entries in streams:
        _copy_stream(files, entries, StreamFiles.of(target, stream, files.record_bytes))
    if layouts:
        write_layouts(target, layouts)
    if (base := source / BASE_TENSORS_FILE).exists():
        _link_or_copy(base, target / BASE_TENSORS_FILE)


def _copy_checkpoint(source: Path, target: Path) -> None:
    """So that an attempt needs no other one, and what a superseded process does to its own checkpoints is no matter."""
    check_sealed(source)
    partial = target / f".{source.name}.partial"
    partial.mkdir(parents=True)
    for file in source.iterdir():
        _link_or_copy(file, partial / file.name)
    sync_directory(partial)
    os.replace(partial, target / source.name)
    sync_directory(target)


def _copy_metrics(source: Path, target: Path, resume_step: int) -> None:
    """Lines up to ``resume_step``; damage behind the last of them (a power failure's) does not matter."""
    kept: list[bytes] = []
    damaged: int | None = None
    for number, line, record in scan_lines(source):
        if record is None or not isinstance(record.get("step"), int):
            damaged = damaged or number
        elif record["step"] <= resume_step:
            if damaged:
                raise damaged_line(source, damaged)
            kept.append(line)
    with AppendFile(target) as file:
        file.append(b"".join(kept))
        file.sync()


def _copy_stream(source: StreamFiles, entries: list[IndexEntry], target: StreamFiles) -> None:
    """Records that match their checksum; one that a power failure spoiled is left out, as nobody could read it."""
    record = memoryview(bytearray(source.record_bytes))
    with contextlib.closing(RecordWriter(target)) as writer:
        for entry in entries:
            if source.read_into(entry, record):
                writer.append(entry.step, record)
        writer.sync()


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that is never changed in place, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
