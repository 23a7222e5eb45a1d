"""Reading snapshots back, also while they are being written."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import StoreError, UsageError, nearest
from landscape.store.atomic import read_json, replacing, write_checked_json
from landscape.store.files import open_plain, refuse_outside
from landscape.store.layout import SnapshotLayout
from landscape.store.names import check_stream
from landscape.store.records import IndexEntry, StreamFiles, StreamIndex

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor

LAYOUTS_FILE = "snapshots.json"
BASE_TENSORS_FILE = "base.safetensors"
_CHECKSUM = "landscape.crc32"


class SnapshotReader:
    """The snapshots of one stream of one attempt.

    Whatever a writer has finished since is seen at the next call; a record being written never is. A reader opens
    files only while it reads, so it can be kept, copied to another process, or dropped; it is not for several threads
    at once.

    Args:
        folder: the attempt.
        stream: e.g. ``params``, ``adam_v``.
        root: the store; files that symbolic links lead out of it are refused.

    Raises:
        StoreError: no such stream, or its layout or index is damaged.
    """

    def __init__(self, folder: Path, stream: str, root: Path) -> None:
        layouts = read_layouts(folder)
        if stream not in layouts:
            held = ", ".join(sorted(layouts)) or "none yet"
            raise StoreError(f"{folder}: no snapshot stream {stream!r}; there are: {held}.{nearest(stream, layouts)}")
        self.stream = stream
        self.layout = layouts[stream]
        self._folder, self._root = folder, root
        self._files = StreamFiles.of(folder, stream, self.layout.record_bytes)
        for path in (self._files.data, self._files.index):
            refuse_outside(path, root)
        self._index = StreamIndex(self._files)
        self._index.refresh()

    @property
    def steps(self) -> np.ndarray:
        """Optimizer steps with a snapshot, (snapshots,) int64, ascending; step s is the state after s steps."""
        import numpy as np

        self._index.refresh()
        return np.array(sorted(self._index.entries), dtype=np.int64)

    def __len__(self) -> int:
        self._index.refresh()
        return len(self._index.entries)

    def tensors(self, step: int) -> dict[str, Tensor]:
        """The tensors of one snapshot by name, on the CPU, in their own dtypes.

        They share one newly read buffer and nothing else; tied names lead to the same tensor.

        Raises:
            StoreError: there is no snapshot of this step (the nearest is named), or its checksum is wrong.
        """
        import torch

        entry = self._entry(step)
        try:
            buffer = torch.empty(self.layout.record_bytes, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            size = self.layout.record_bytes
            raise StoreError(f"{self._files.data}: no memory for a snapshot of {size} bytes") from error
        if not self._files.read_into(entry, buffer.numpy().data):
            raise StoreError(f"{self._files.data}: the snapshot of step {step} is damaged (checksum)")
        return self.layout.views(buffer)

    def checksum(self, step: int) -> str:
        """CRC-32, in hex, of a snapshot's bytes as it was written; nothing is read but the index.

        Raises:
            StoreError: there is no snapshot of this step (the nearest is named).
        """
        return f"{self._entry(step).crc32:08x}"

    def damaged_steps(self) -> list[int]:
        """Steps whose records do not match their checksum; reads every record."""
        self._index.refresh()
        buffer = memoryview(bytearray(self.layout.record_bytes))
        entries = sorted(self._index.entries.values())
        return [entry.step for entry in entries if not self._files.read_into(entry, buffer)]

    def base_tensors(self) -> dict[str, Tensor]:
        """Base-model tensors that the method rewrote before training (PiSSA's residual, for one); empty if none.

        Raises:
            StoreError: the file is damaged.
        """
        return read_base_tensors(self._folder, self._root)

    def _entry(self, step: int) -> IndexEntry:
        if step not in self._index.entries:
            self._index.refresh()
        try:
            return self._index.entries[int(step)]
        except KeyError:
            near = min(self._index.entries, key=lambda other: (abs(other - step), other), default=None)
            hint = "there are none yet" if near is None else f"the nearest is {near}"
            raise StoreError(f"{self._files.data}: no snapshot of step {step}; {hint}") from None


def read_layouts(folder: Path) -> dict[str, SnapshotLayout]:
    """Layouts by stream, from an attempt's ``snapshots.json``; empty where there is none yet."""
    path = folder / LAYOUTS_FILE
    if not path.is_file():
        return {}
    streams = read_json(path).get("streams")
    if not isinstance(streams, dict):
        raise StoreError(f"{path} is damaged: it names no streams")
    try:
        return {check_stream(stream): SnapshotLayout.from_json(layout) for stream, layout in streams.items()}
    except (StoreError, UsageError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def write_layouts(folder: Path, layouts: Mapping[str, SnapshotLayout]) -> None:
    """Write an attempt's ``snapshots.json`` atomically."""
    streams = {stream: layout.to_json() for stream, layout in layouts.items()}
    write_checked_json(folder / LAYOUTS_FILE, {"streams": streams})


def read_base_tensors(folder: Path, root: Path) -> dict[str, Tensor]:
    """The base tensors kept beside an attempt's snapshots; empty where the method rewrote none.

    Raises:
        StoreError: the file is damaged, or a link leads out of the store.
    """
    path = folder / BASE_TENSORS_FILE
    if not path.exists():
        return {}
    refuse_outside(path, root)
    return check_base_tensors(path)


def check_base_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of the store; `StoreError` where it is damaged."""
    import safetensors
    import safetensors.torch

    try:
        os.close(open_plain(path))
        with safetensors.safe_open(path, framework="pt") as file:
            checksum = (file.metadata() or {}).get(_CHECKSUM)
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error})") from error
    if checksum is not None and checksum != _checksum_of(tensors):
        raise StoreError(f"{path} is damaged (its checksum does not match its content)")
    return tensors


def _checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over names, dtypes, shapes and bytes, by name."""
    import torch

    result = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        result = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), result)
        result = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, result)
    return str(result)


def write_base_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write base tensors atomically, once; tied ones under each of their names.

    Raises:
        StoreError: they are there already, or the disk is full or refuses.
    """
    path = folder / BASE_TENSORS_FILE
    if path.exists():
        raise StoreError(f"{path} is there already: base tensors are written once, before training")
    write_safetensors(path, tensors)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically; tensors that share memory are written in full under each name.

    Raises:
        StoreError: the disk is full or refuses.
    """
    import safetensors
    import safetensors.torch

    # Copies, since safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(plain, temporary, metadata={"format": "pt", _CHECKSUM: _checksum_of(plain)})
        except safetensors.SafetensorError as error:
            raise StoreError(f"cannot write {path}: {error}") from error
