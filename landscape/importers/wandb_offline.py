"""Run folders that W&B writes: ``wandb/offline-run-<time>-<id>/run-<id>.wandb``, read without the wandb package.

The file is a log of Protocol Buffers in the framing of LevelDB's log, described in W&B's public client
(wandb/sdk/internal/datastore.py and wandb/proto/wandb_internal.proto, MIT): a header ``:W&B``, then blocks of 32 KiB
that hold pieces of records, each piece with a checksum, a length and whether it is whole, first, middle or last.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from landscape.errors import UsageError
from landscape.importers.curves import LogCurves
from landscape.importers.files import inside, read_bytes
from landscape.importers.protobuf import fields, last, signed
from landscape.importers.tables import Record, flattened, numbers_of_records

_IDENT = b":W&B"
_HEADER = struct.Struct("<4sHB")
_PIECE = struct.Struct("<IHB")
_BLOCK = 1 << 15
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# Numbers of fields: Record, HistoryRecord, HistoryItem, RunRecord, ConfigRecord, ConfigItem.
_HISTORY, _CONFIG, _RUN = 2, 5, 17
_ITEM, _STEP = 1, 2
_KEY, _NESTED_KEY, _VALUE_JSON = 1, 2, 16
_RUN_ID, _RUN_CONFIG, _DISPLAY_NAME = 1, 4, 8
_UPDATE = 1
_BOOKKEEPING = ("_runtime", "_timestamp", "_wandb")


def run_files(folder: Path, notes: list[str]) -> list[Path]:
    """The logs in a run's folder, or in the folders of a ``wandb`` folder; links such as ``latest-run`` add nothing."""
    own = sorted(folder.glob("run-*.wandb"))
    below = [path for path in sorted(folder.glob("*run-*/run-*.wandb")) if not path.parent.is_symlink()]
    return [path for path in inside(folder, own or below, notes) if path.is_file()]


def is_run_file(head: bytes) -> bool:
    """Whether a file begins as W&B's logs do."""
    return head.startswith(_IDENT)


def read_runs(files: list[Path]) -> tuple[list[LogCurves], list[str]]:
    """A run from each log, by its display name, else its id.

    Raises:
        UsageError: a file is damaged or of another version, or none of them holds history.
    """
    runs: list[LogCurves] = []
    notes: list[str] = []
    for path in files:
        run = _read_run(path, notes)
        if run is None:
            notes.append(f"{path.name} holds no history")
        else:
            taken = run.name in [other.name for other in runs]
            runs.append(replace(run, name=f"{run.name} ({_id(path)})") if taken else run)
    if not runs:
        raise UsageError(f"{files[0]}: no history in {'it' if len(files) == 1 else 'any of its runs'}.")
    return runs, notes


def _read_run(path: Path, notes: list[str]) -> LogCurves | None:
    config: dict[str, Any] = {}
    records: list[Record] = []
    name = _id(path)
    cut: list[str] = []
    for number, record in enumerate(_records(path, cut), 1):
        try:
            for kind, value in fields(record):
                if kind == _HISTORY and isinstance(value, bytes):
                    records.append((number, _history(value)))
                elif kind == _CONFIG and isinstance(value, bytes):
                    config |= _items(value, _UPDATE)
                elif kind == _RUN and isinstance(value, bytes):
                    name = _text(last(value, _DISPLAY_NAME)) or _text(last(value, _RUN_ID)) or name
                    settings = last(value, _RUN_CONFIG)
                    config |= _items(settings, _UPDATE) if isinstance(settings, bytes) else {}
        except (ValueError, RecursionError):
            raise UsageError(f"{path}: damaged; record {number} is no record of W&B's.") from None
    notes += cut
    if not records:
        return None
    runs, more = numbers_of_records(_with_one_step(records), "record", name)
    notes += more
    return LogCurves(name, runs[0].steps, runs[0].places, runs[0].columns, "record", config)


def _id(path: Path) -> str:
    return path.stem.removeprefix("run-")


def _with_one_step(records: list[Record]) -> list[Record]:
    """Keeps the trainer's own step where every entry has it, else W&B's, which counts the calls of ``wandb.log``."""
    own = next((key for key in ("train/global_step", "global_step") if all(key in cells for _, cells in records)), None)
    dropped = {*_BOOKKEEPING, *(("_step",) if own else ("train/global_step", "global_step"))}
    return [(place, {key: value for key, value in cells.items() if key not in dropped}) for place, cells in records]


def _history(message: bytes) -> dict[str, Any]:
    cells = flattened(_items(message, _ITEM))
    # Images, tables and histograms are no numbers.
    media = tuple(key.removesuffix("_type") for key in cells if key.endswith("/_type"))
    cells = {key: value for key, value in cells.items() if not key.startswith(media)} if media else cells
    if "_step" not in cells:
        step = last(message, _STEP)
        number = last(step, 1) if isinstance(step, bytes) else None
        cells["_step"] = signed(number) if isinstance(number, int) else 0
    return cells


def _items(message: bytes, number: int) -> dict[str, Any]:
    """Keys, the parts of nested ones joined by ``/``, and JSON values."""
    result: dict[str, Any] = {}
    for kind, item in fields(message):
        if kind != number or not isinstance(item, bytes):
            continue
        parts = [_text(value) for part, value in fields(item) if part in (_KEY, _NESTED_KEY)]
        result["/".join(part for part in parts if part)] = json.loads(_text(last(item, _VALUE_JSON)) or "null")
    return result


def _text(value: int | bytes | None) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else ""


def _records(path: Path, notes: list[str]) -> Iterator[bytes]:
    """The records of a log, put together from their pieces; one that the end of the file cuts off is left out.

    Raises:
        UsageError: another version, or a piece whose checksum is wrong.
    """
    data = read_bytes(path)
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[1:] != (0xBEE1, 0):
        raise UsageError(f"{path}: a W&B log of a version that is not known here.")
    at, parts = _HEADER.size, []
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < _PIECE.size:
            at += left
            continue
        if at + _PIECE.size > len(data):
            break
        crc, length, kind = _PIECE.unpack_from(data, at)
        piece = data[at + _PIECE.size : at + _PIECE.size + length]
        if len(piece) < length:
            break
        if zlib.crc32(piece, zlib.crc32(bytes([kind]))) != crc or kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST):
            raise UsageError(f"{path}: damaged at byte {at} (its checksum does not match its content).")
        at += _PIECE.size + length
        parts = [piece] if kind in (_WHOLE, _FIRST) else [*parts, piece]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []
    if at < len(data) or parts:
        notes.append(f"{path.name} is cut off: its last record was left out")
