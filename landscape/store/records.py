"""The two files of a snapshot stream: records (``.bin``) and their index (``.idx``).

A record is appended first and its index line second, so an index line vouches for a record that is entirely in the
file. Whatever lies behind the last such record is a torn tail: readers ignore it, the next writer cuts it off.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from landscape.errors import StoreError
from landscape.store.atomic import AppendFile, sync_directory, write_bytes
from landscape.store.files import open_plain
from landscape.store.lines import encode_line, read_lines

SYNC_RECORDS = 64
SYNC_SECONDS = 5.0
"""Records are synced to disk when so many wait for it, or when the oldest has waited so long."""


_MOST_STEP = 1 << 62
"""Of what fits 64 bits, for steps and offsets in files that somebody else wrote."""


class IndexEntry(NamedTuple):
    """One indexed record: optimizer step, place in the ``.bin`` file, CRC-32 of its bytes."""

    step: int
    offset: int
    crc32: int


class StreamFiles(NamedTuple):
    """Where a stream of an attempt lies, and the size of its records."""

    data: Path
    index: Path
    record_bytes: int

    @classmethod
    def of(cls, folder: Path, stream: str, record_bytes: int) -> StreamFiles:
        """The paths of a stream in an attempt's folder."""
        return cls(folder / f"snapshots-{stream}.bin", folder / f"snapshots-{stream}.idx", record_bytes)

    def read_into(self, entry: IndexEntry, buffer: memoryview) -> bool:
        """Fill ``buffer`` with a record; False when its bytes do not match the index.

        Read rather than memory-mapped: the bytes are copied anyway, and a mapping of a failing disk kills the process
        where a read raises an error.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            with os.fdopen(open_plain(self.data), "rb") as file:
                file.seek(entry.offset)
                complete = file.readinto(buffer) == self.record_bytes
        except OSError as error:
            raise StoreError(f"cannot read {self.data}: {error.strerror}") from error
        return complete and zlib.crc32(buffer) == entry.crc32


class StreamIndex:
    """The index of a stream, read as it grows: `refresh` reads only what was added since."""

    def __init__(self, files: StreamFiles) -> None:
        self._files = files
        self._sizes: tuple[int, int] | None = None
        self.entries: dict[int, IndexEntry] = {}
        """By step, in the order of writing."""
        self.pending: list[IndexEntry] = []
        """Indexed, but not (yet) in the data: a power failure can lose the data and keep the line."""
        self.end = 0
        """Bytes of complete index lines."""

    def refresh(self) -> None:
        """Take in the index lines whose records are present.

        Raises:
            StoreError: a damaged line, a record of another size, or a step that was written twice.
        """
        sizes = _size(self._files.index), _size(self._files.data)
        if sizes == self._sizes:
            return
        number = len(self.entries) + len(self.pending) + 1
        lines, end = read_lines(self._files.index, self.end, number)
        entries, pending = dict(self.entries), []
        for entry in (*self.pending, *(self._entry(line, number + i) for i, line in enumerate(lines))):
            if pending or entry.offset + self._files.record_bytes > sizes[1]:
                pending.append(entry)
            elif entry.step in entries:
                raise StoreError(f"{self._files.index}: step {entry.step} is there twice")
            else:
                entries[entry.step] = entry
        # Only now: after an error the next call finds the same error again.
        self.entries, self.pending, self.end, self._sizes = entries, pending, end, sizes

    def _entry(self, line: dict[str, Any], number: int) -> IndexEntry:
        try:
            step, offset, size, crc32 = (int(line[key]) for key in ("step", "offset", "bytes", "crc32"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"{self._files.index}, line {number}: not an index line ({error!r})") from error
        if size != self._files.record_bytes or not (0 <= step < _MOST_STEP and 0 <= offset < _MOST_STEP):
            expected = self._files.record_bytes
            raise StoreError(f"{self._files.index}, line {number}: {size} bytes at {offset}, expected {expected} bytes")
        return IndexEntry(step, offset, crc32)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class RecordWriter:
    """Appends records to a stream; continues after the last whole one that is already there.

    Raises:
        StoreError: from every method, when the disk is full or refuses.
    """

    def __init__(self, files: StreamFiles) -> None:
        index = StreamIndex(files)
        index.refresh()
        self.steps = set(index.entries)
        self._files = files
        if index.pending:
            write_bytes(files.index, b"".join(index_line(entry, files) for entry in index.entries.values()))
        self._index = AppendFile(files.index, None if index.pending else index.end)
        ends = (entry.offset + files.record_bytes for entry in index.entries.values())
        self._data = AppendFile(files.data, max(ends, default=0))
        sync_directory(files.data.parent)
        self._unsynced = 0
        self._unsynced_since = 0.0

    @property
    def size(self) -> int:
        """Bytes of records in the file."""
        return self._data.size

    @property
    def unsynced(self) -> int:
        """Records that a power failure could still take."""
        return self._unsynced

    def append(self, step: int, record: memoryview) -> None:
        """Append a record and then its index line; both or neither."""
        crc32 = zlib.crc32(record)
        offset = self._data.append(record)
        try:
            self._index.append(index_line(IndexEntry(step, offset, crc32), self._files))
        except BaseException:
            self._data.truncate(offset)
            raise
        self.steps.add(step)
        if not self._unsynced:
            self._unsynced_since = time.monotonic()
        self._unsynced += 1

    def sync_when_due(self) -> None:
        """Sync when `SYNC_RECORDS` or `SYNC_SECONDS` say so."""
        waited = time.monotonic() - self._unsynced_since
        if self._unsynced >= SYNC_RECORDS or (self._unsynced and waited >= SYNC_SECONDS):
            self.sync()

    def sync(self) -> None:
        """Wait until every record, and after it every index line, has reached the disk."""
        self._data.sync()
        self._index.sync()
        self._unsynced = 0

    def close(self) -> None:
        """Close both files without waiting for the disk."""
        self._data.close()
        self._index.close()


def index_line(entry: IndexEntry, files: StreamFiles) -> bytes:
    """The line that vouches for a record."""
    return encode_line({**entry._asdict(), "bytes": files.record_bytes})
