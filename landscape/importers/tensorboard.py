"""TensorBoard event folders: every folder with event files is a run, every scalar tag a column.

The files are TFRecords: length (uint64), its checksum, an Event message, its checksum. They are framed here, because
TensorBoard's own readers end silently at a record that is cut off, and sample long series.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import UsageError
from landscape.importers.curves import Column, LogCurves

_MARK = "tfevents"


def event_files(folder: Path) -> list[Path]:
    """All event files in a folder and below it, in the order in which they were begun."""
    return sorted(path for path in folder.rglob(f"*{_MARK}*") if path.is_file())


def is_event_file(head: bytes) -> bool:
    """Whether a file begins as event files do, with their format's version."""
    return b"brain.Event:" in head[:64]


def read_events(files: Sequence[Path], root: Path) -> tuple[list[LogCurves], list[str]]:
    """The runs of event files; a run is named by its folder under ``root``.

    Raises:
        UsageError: TensorBoard is not installed, or a file is damaged or holds no scalar.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
    runs, notes = [], []
    for folder, members in sorted(folders.items()):
        relative = folder.relative_to(root).as_posix()
        run, more = _run(folder.name if relative == "." else relative, members)
        notes += more
        if run.columns:
            runs.append(run)
        else:
            notes.append(f"{run.name} holds no scalars")
    if not runs:
        raise UsageError(f"{root}: its event files hold no scalars.")
    return runs, notes


def _run(name: str, files: Sequence[Path]) -> tuple[LogCurves, list[str]]:
    steps: list[float] = []
    rows: dict[str, list[int]] = defaultdict(list)
    values: dict[str, list[float]] = defaultdict(list)
    notes: list[str] = []
    for path in files:
        for step, tag, value in _scalars(path, notes):
            rows[tag].append(len(steps))
            values[tag].append(value)
            steps.append(step)
    columns = {tag: Column(np.array(rows[tag], np.int64), np.array(values[tag])) for tag in rows}
    return LogCurves(name, np.array(steps), np.arange(1, len(steps) + 1), columns, "scalar"), notes


def _scalars(path: Path, notes: list[str]) -> Iterator[tuple[float, str, float]]:
    """Step, tag and value of each scalar, written as such or as a tensor of one number."""
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore  # made at run time
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise UsageError(
            f"{path}: reading event files needs TensorBoard: pip install 'lora-landscape[tensorboard]'."
        ) from None
    scalar_tags: set[str] = set()
    for record in _records(path, notes):
        try:
            event: Any = Event.FromString(record)
        except DecodeError:
            raise UsageError(f"{path}: damaged; a record is no event.") from None
        for item in event.summary.value:
            if item.HasField("simple_value"):
                yield float(event.step), item.tag, item.simple_value
            elif item.HasField("tensor"):
                if item.metadata.plugin_data.plugin_name == "scalars":  # said with a tag's first value only
                    scalar_tags.add(item.tag)
                if item.tag in scalar_tags:
                    yield float(event.step), item.tag, float(make_ndarray(item.tensor).item())


def _records(path: Path, notes: list[str]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while head := file.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else None
            record = file.read(length) if length is not None and length < 1 << 31 else b""
            if length is None or len(record) < length or len(file.read(4)) < 4:
                notes.append(f"{path.name} is cut off: its last record was left out")
                return
            yield record
