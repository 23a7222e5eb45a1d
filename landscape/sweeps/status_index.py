"""What the statuses of runs said, in one file of a large store, so that ten thousand need not be read each time.

Derived data: ``STORE/.cache/status.json`` may be absent, stale or damaged at any time, and is then made again. A run's
entry counts only while its ``status.json`` is the very file that was read: same inode, time of change (which nobody can
set) and size. So an index that came with somebody else's store says nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.store.atomic import write_bytes
from landscape.store.files import read_plain, refuse_outside

FOLDER, FILE = ".cache", "status.json"
FEWEST = 500
"""Runs from which an index is worth a file."""
LATE_SECONDS = 2.0
"""A file that changed just now may change again within one tick of the clock."""
MOST_ERROR = 300
"""Characters; a run with more to say is read each time."""
_MOST_BYTES = 1 << 26
_VERSION = 1

Stamp = tuple[int, int, int]
Fields = list[Any]
"""State, step, max_steps, attempt, updated, error, overrides."""


def stamp_of(status: os.stat_result) -> Stamp:
    """Inode, time of change and size: what a file cannot change without."""
    return status.st_ino, status.st_ctime_ns, status.st_size


class StatusIndex:
    """The entries of one store; `save` writes them where enough of them are new."""

    def __init__(self, root: Path) -> None:
        self._path = root / FOLDER / FILE
        self._root = root
        self._known: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._new = 0
        with contextlib.suppress(StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            refuse_outside(self._path, root)
            checksum, _, body = read_plain(self._path, _MOST_BYTES).partition(b"\n")
            if int(checksum) == zlib.crc32(body):
                content = json.loads(body)
                self._known = dict(content["runs"]) if content["version"] == _VERSION else {}

    def get(self, run_id: str, stamp: Stamp) -> Fields | None:
        """What the status file with this stamp said; None where that is not known."""
        entry = self._known.get(run_id)
        if entry is None or entry[0] != list(stamp):
            return None
        self._seen[run_id] = entry
        return entry[1]

    def put(self, run_id: str, stamp: Stamp, fields: Fields) -> None:
        """Take in what a status file said that was read after its stamp was taken."""
        error, overrides = fields[5], fields[6]
        if time.time_ns() - stamp[1] > LATE_SECONDS * 1e9 and len(error or "") <= MOST_ERROR and not overrides:
            self._seen[run_id] = [list(stamp), fields]
            self._new += 1

    def save(self) -> None:
        """Write the entries of the runs that were asked for, if a good part of them is new; nobody depends on it."""
        if self._new < FEWEST // 5 or self._new < len(self._seen) // 20:
            return
        body = json.dumps({"version": _VERSION, "runs": self._seen}, separators=(",", ":")).encode()
        with contextlib.suppress(StoreError, OSError):  # a store that one may only read
            refuse_outside(self._path, self._root)
            self._path.parent.mkdir(exist_ok=True)
            write_bytes(self._path, b"%d\n%b" % (zlib.crc32(body), body))
        self._new = 0
