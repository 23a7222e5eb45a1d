"""JSON lines that carry their own checksum: the format of ``metrics.jsonl`` and of snapshot indexes.

A line is canonical JSON (keys sorted, no spaces, ASCII) whose last member is ``crc``: the CRC-32 of the same object
without that member. As ``crc`` comes last, the object without it is the text before ``,"crc":`` and a closing brace, so
checking a line needs no parsing::

    {"loss_clean":2.5,"step":7,"crc":2339572664}        # crc = CRC-32 of {"loss_clean":2.5,"step":7}

Lines are strict JSON: ``NaN``, ``Infinity`` and ``-Infinity`` are written as strings of that name, since JSON has no
literal for them, and ``null`` stays what it says: not measured.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from landscape.errors import StoreError
from landscape.store.files import open_plain

NON_FINITE = ("NaN", "Infinity", "-Infinity")
_MARK = b',"crc":'

MOST_LINE = 1 << 20
"""Bytes after which a line should have ended; those that are written have a thousandth."""


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One line, newline included, from a flat record that has at least one member and none called ``crc``."""
    plain = {key: _strict(value) for key, value in record.items()}
    body = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"%b%b%d}\n" % (body[:-1], _MARK, zlib.crc32(body))


def _strict(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def is_intact(line: bytes) -> bool:
    """Whether a line (without its newline) carries the checksum of its content."""
    head, _, tail = line.rpartition(_MARK)
    return bool(head) and tail == b"%d}" % zlib.crc32(b"}", zlib.crc32(head))


class Lines(NamedTuple):
    """Decoded records with the file offset where the next line will start."""

    records: list[dict[str, Any]]
    end: int


def read_lines(path: Path, start: int = 0, first_number: int = 1) -> Lines:
    """All complete lines from offset ``start`` on.

    Whatever follows the last newline is a line being written or a torn one, and is ignored.

    Args:
        path: a missing file has no lines.
        start: where a previous call ended, to read only what is new.
        first_number: the number of the line at ``start``, for messages.

    Raises:
        StoreError: a complete line is damaged; names file and line.
    """
    data = _read_from(path, start)
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")[:-1]
    for number, line in enumerate(lines, first_number):
        if not is_intact(line):
            raise damaged_line(path, number)
    return Lines(_parse(path, lines, first_number), start + end)


def scan_lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """(number, line with its newline, record) of every complete line; the record of a damaged line is None."""
    data = _read_from(path, 0)
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        yield number, line + b"\n", _parse(path, [line], number)[0] if is_intact(line) else None


def damaged_line(path: Path, number: int) -> StoreError:
    """The error for a complete line whose checksum is wrong."""
    return StoreError(f"{path}, line {number}: damaged (its checksum does not match its content)")


def _parse(path: Path, lines: list[bytes], first_number: int) -> list[dict[str, Any]]:
    """Records of lines whose checksums match."""
    try:
        # One call for all lines is a fifth faster than one for each.
        records = json.loads(b"[" + b",".join(lines) + b"]")
        if len(records) != len(lines):
            raise ValueError("a line is more than one object")
        for record in records:
            del record["crc"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if len(lines) == 1:
            raise StoreError(f"{path}, line {first_number}: damaged (not a JSON object: {error})") from error
        for number, line in enumerate(lines, first_number):
            _parse(path, [line], number)
        raise StoreError(f"{path} is damaged: a line is not a JSON object ({error})") from error
    return records


def _read_from(path: Path, start: int) -> bytes:
    """The file from an offset on; what has no end of a line for so long is no file of lines."""
    pieces: list[bytes] = []
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            file.seek(start)
            while piece := file.read(MOST_LINE):
                if len(piece) == MOST_LINE and b"\n" not in piece:
                    number = sum(earlier.count(b"\n") for earlier in pieces) + 1
                    place = f"line {number}" if not start else f"at byte {start}"
                    raise StoreError(f"{path}, {place}: damaged (more than {MOST_LINE} bytes without an end)")
                pieces.append(piece)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return b"".join(pieces)
