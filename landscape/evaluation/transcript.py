"""What one evaluation has found so far, on disk after every reply and verdict, so that it can go on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from landscape.errors import StoreError
from landscape.evaluation.base import Reply, Verdict
from landscape.store.atomic import AppendFile
from landscape.store.lines import encode_line, read_lines

Place = tuple[str, int]
"""A problem's key and the part of it: which sample, or which turn."""


class Transcript:
    """Replies and verdicts of one snapshot on one benchmark, in lines with checksums.

    The first line says what was asked, and the file's name ends in its hash: other settings, another snapshot or other
    data are another file. A later line about the same place replaces an earlier one.

    Args:
        folder: of the run's analyses; made when the first line is written.
        identity: all that decides what the replies and verdicts are, as plain values.

    Raises:
        StoreError: a damaged line.
    """

    def __init__(self, folder: Path, metric: str, step: int, identity: Mapping[str, Any]) -> None:
        described = json.dumps(identity, sort_keys=True)
        self.id = hashlib.sha256(described.encode()).hexdigest()[:10]
        self.path = folder / f"evaluation-{metric}-step{step}-{self.id}.jsonl"
        self.replies: dict[Place, Reply] = {}
        self.verdicts: dict[Place, Verdict] = {}
        self._identity = described
        self._file: AppendFile | None = None
        try:
            lines = read_lines(self.path)
            self._end, records = lines.end, lines.records
            for record in records[1:]:
                self._take(record)
        except KeyError as error:
            raise StoreError(f"{self.path} is damaged: a line has no {error}; delete it to evaluate again") from error

    def add_reply(self, place: Place, reply: Reply) -> None:
        """`StoreError` when the disk is full or refuses."""
        self._add({"key": place[0], "part": place[1], "reply": reply.text, "truncated": reply.truncated})

    def add_verdict(self, place: Place, verdict: Verdict) -> None:
        """`StoreError` when the disk is full or refuses."""
        self._add({"key": place[0], "part": place[1], "verdict": verdict})

    def _add(self, record: dict[str, Any]) -> None:
        if self._file is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot create {self.path.parent}: {error.strerror}") from error
            self._file = AppendFile(self.path, self._end)
            if not self._end:
                self._file.append(encode_line({"evaluation": json.loads(self._identity)}))
        self._file.append(encode_line(record))
        self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        place = (record["key"], record["part"])
        if "verdict" in record:
            self.verdicts[place] = record["verdict"]
        else:
            self.replies[place] = Reply(record["reply"], record["truncated"])
            self.verdicts.pop(place, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
