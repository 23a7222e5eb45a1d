"""The checks of an attempt: its metrics line by line, its snapshots record by record, and what was made from them."""

from __future__ import annotations

import os
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.store.atomic import AppendFile, read_json, write_bytes
from landscape.store.attempts import CHECKPOINT_FOLDER, METRICS_FILE
from landscape.store.files import open_plain, refuse_outside
from landscape.store.findings import Ledger
from landscape.store.lines import scan_lines
from landscape.store.manifest import MANIFEST_FILE, check_sealed
from landscape.store.metrics import check_records, read_parquet, to_table, write_parquet
from landscape.store.records import IndexEntry, StreamFiles, StreamIndex, index_line
from landscape.store.runs import PARQUET_FILE, Run, RunStatus
from landscape.store.snapshots import BASE_TENSORS_FILE, LAYOUTS_FILE, check_base_tensors, read_layouts
from landscape.store.tables import table_checksum

_CHUNK = 1 << 24


def check_attempt(run: Run, status: RunStatus, ledger: Ledger, *, busy: bool) -> list[dict[str, Any]] | None:
    """Check the current attempt; its metrics' records where all of them are whole.

    Args:
        busy: somebody may be writing, so that what follows the last whole record is no finding.
    """
    try:
        folder = run.attempt_dir()
    except StoreError as error:
        ledger.found("damaged", run.path / "attempts" / str(status.attempt), str(error))
        return None
    for path in sorted(folder.glob("*.json")):
        if path.is_file() and not path.is_symlink() and path.name != LAYOUTS_FILE:
            _guarded(path, ledger, partial(read_json, path))
    ended = status.state in ("done", "diverged")
    records = _check_metrics(folder / METRICS_FILE, ledger, busy, ended)
    try:
        layouts = read_layouts(folder)
    except StoreError as error:
        ledger.found("damaged", folder / LAYOUTS_FILE, str(error))
        return records
    for stream, layout in layouts.items():
        files = StreamFiles.of(folder, stream, layout.record_bytes)
        try:
            _check_stream(files, ledger, busy, ended)
        except StoreError as error:
            ledger.found("damaged", files.index, str(error))
    base = folder / BASE_TENSORS_FILE
    if base.is_file() and not base.is_symlink():
        _guarded(base, ledger, partial(check_base_tensors, base))
    for checkpoints in (folder / CHECKPOINT_FOLDER, run.path / CHECKPOINT_FOLDER):
        for state in sorted(checkpoints.glob("step-*")) if not checkpoints.is_symlink() else ():
            _guarded(state / MANIFEST_FILE, ledger, partial(check_sealed, state))
    return records


def check_compacted(run: Run, status: RunStatus, ledger: Ledger, records: list[dict[str, Any]] | None) -> None:
    """``metrics.parquet`` is a copy of the lines: where it is not, and they are whole, it is made again."""
    path = run.path / PARQUET_FILE
    if not path.is_file() or path.is_symlink():
        return
    again = partial(write_parquet, path, records, run.id, status.attempt) if records is not None else None
    try:
        table = read_parquet(path, status.attempt)
        ledger.saw(path)
    except StoreError as error:
        ledger.found("damaged", path, str(error), mend=again)
        return
    if table is None:
        ledger.found("stale", path, f"made from another attempt than {status.attempt}, or by nobody", mend=again)
    elif records is not None and table_checksum(table.drop_columns(["run_id"])) != table_checksum(to_table(records)):
        ledger.found("stale", path, "does not hold what the metrics' lines hold", mend=again)


def _check_metrics(path: Path, ledger: Ledger, busy: bool, ended: bool) -> list[dict[str, Any]] | None:
    if not path.is_file() or path.is_symlink():
        ledger.found("damaged", path, "missing, or no plain file")
        return None
    try:
        lines = list(scan_lines(path))
    except StoreError as error:
        ledger.found("damaged", path, str(error))
        return None
    ledger.saw(path, len(lines))
    # Of a run that had not ended, damage behind the last whole line is what a power failure makes of an end.
    whole = max((number for number, _, record in lines if record is not None), default=0)
    last = len(lines) if ended else whole
    damaged = [number for number, _, record in lines[:last] if record is None]
    for number in damaged:
        ledger.found("damaged", path, "the line's checksum does not match its content", f"line {number}")
    end, size = sum(len(line) for _, line, _ in lines[:last]), path.stat().st_size
    if size > end and not busy:
        spoiled = len(lines) - last
        problem = f"{size - end} bytes of a line that was being written"
        if spoiled:
            problem = f"{spoiled} lines at the end ({size - end} bytes) that never reached the disk whole"
        ledger.found(
            "lost" if spoiled else "torn", path, problem, f"line {last + 1}", mend=partial(_cut, path, end),
            records_lost=max(spoiled, 1), bytes_lost=size - end,
        )  # fmt: skip
    if damaged:
        return None
    records = [record for _, _, record in lines[:last] if record is not None]
    try:
        check_records(path, records)
        to_table(records)
    except StoreError as error:
        ledger.found("damaged", path, str(error))
        return None
    return records


def _check_stream(files: StreamFiles, ledger: Ledger, busy: bool, ended: bool) -> None:
    for path in (files.data, files.index):
        refuse_outside(path, ledger.root)
    index = StreamIndex(files)
    index.refresh()
    entries = list(index.entries.values())
    for path, count in ((files.index, 0), (files.data, len(entries))):
        if path.exists():
            ledger.saw(path, count)
    spoiled = [position for position, entry in enumerate(entries) if _checksum(files, entry) != entry.crc32]
    kept = len(entries)
    while not ended and not busy and spoiled and spoiled[-1] == kept - 1:
        kept = spoiled.pop()
    for entry in (entries[position] for position in spoiled):
        problem = f"{files.record_bytes} bytes do not match their checksum"
        ledger.found("damaged", files.data, problem, f"step {entry.step} at byte {entry.offset}")
    if not busy:
        _check_ends(files, ledger, entries[:kept], entries[kept:] + index.pending, index.end)


def _check_ends(
    files: StreamFiles, ledger: Ledger, kept: list[IndexEntry], lost: list[IndexEntry], index_end: int
) -> None:
    size = files.data.stat().st_size if files.data.exists() else 0
    end = max((entry.offset + files.record_bytes for entry in kept), default=0)
    if lost:
        lines = b"".join(index_line(entry, files) for entry in kept)
        steps = ", ".join(str(entry.step) for entry in lost[:10]) + (", ..." if len(lost) > 10 else "")
        problem = f"{len(lost)} indexed records never reached the disk whole: the snapshots of steps {steps}"
        ledger.found(
            "lost", files.data, problem, f"step {lost[0].step}", mend=partial(_drop, files, lines, end),
            records_lost=len(lost), bytes_lost=size - end,
        )  # fmt: skip
    elif size > end:
        problem = f"{size - end} bytes of a record that was being written"
        ledger.found(
            "torn", files.data, problem, f"byte {end}", mend=partial(_cut, files.data, end),
            records_lost=1, bytes_lost=size - end,
        )  # fmt: skip
    torn = (files.index.stat().st_size if files.index.exists() else 0) - index_end
    if torn > 0:
        problem = f"{torn} bytes of a line that was being written"
        line = f"line {len(kept) + len(lost) + 1}"
        ledger.found("torn", files.index, problem, line, mend=partial(_cut, files.index, index_end), bytes_lost=torn)


def _cut(path: Path, size: int) -> None:
    with AppendFile(path, size) as file:
        file.sync()


def _drop(files: StreamFiles, lines: bytes, end: int) -> None:
    """The index first: a reader between the two sees a torn tail, never a line without its record."""
    write_bytes(files.index, lines)
    if files.data.exists():
        _cut(files.data, end)


def _checksum(files: StreamFiles, entry: IndexEntry) -> int | None:
    """Of a record as it lies in the file, piece by piece: a record may be larger than the memory."""
    left, result = files.record_bytes, 0
    try:
        with os.fdopen(open_plain(files.data), "rb") as file:
            file.seek(entry.offset)
            while left and (piece := file.read(min(left, _CHUNK))):
                result, left = zlib.crc32(piece, result), left - len(piece)
    except OSError as error:
        raise StoreError(f"cannot read {files.data}: {error.strerror}") from error
    return None if left else result


def _guarded(path: Path, ledger: Ledger, check: partial[Any]) -> None:
    try:
        check()
        if path.exists():
            ledger.saw(path)
    except (StoreError, OSError) as error:
        ledger.found("damaged", path, str(error))
