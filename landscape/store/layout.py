"""Where each tensor lies in a flat snapshot record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from landscape.errors import StoreError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ALIGNMENT = 16
"""Bytes; every tensor and every record starts at a multiple of it, so that views of any dtype are aligned."""

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


_MOST_BYTES, _MOST_DIMS = 1 << 62, 32
"""What a file that somebody else wrote may declare."""


@dataclass(frozen=True)
class SnapshotLayout:
    """Names, shapes and dtypes of a record's tensors, in order; offsets (bytes) and size follow from them.

    Each tensor keeps its own dtype. Tied tensors (same memory, shape and strides) are stored once, under the first
    name; ``aliases`` leads from the other names to it.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names:
            raise StoreError("snapshot layout: no tensors to capture")
        for name, dtype in zip(self.names, self.dtypes, strict=True):
            if dtype not in ITEM_BYTES:
                allowed = ", ".join(ITEM_BYTES)
                raise StoreError(f"snapshot layout: {name} has dtype {dtype!r}; allowed: {allowed}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The layout of named tensors, in the mapping's order.

        Raises:
            StoreError: no tensors, a dtype other than `ITEM_BYTES`, or a tensor without memory (meta device).
        """
        first_names: dict[tuple[Any, ...], str] = {}
        stored: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        for name, tensor in tensors.items():
            if tensor.device.type == "meta":
                raise StoreError(f"snapshot layout: {name} is on the meta device and has no values")
            memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            first = first_names.setdefault(memory, name) if tensor.numel() else name
            if first == name:
                stored[name] = tensor
            else:
                aliases[name] = first
        return cls(
            names=tuple(stored),
            shapes=tuple(tuple(tensor.shape) for tensor in stored.values()),
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()),
            aliases=aliases,
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each tensor, without padding."""
        pairs = zip(self.shapes, self.dtypes, strict=True)
        return tuple(math.prod(shape) * ITEM_BYTES[dtype] for shape, dtype in pairs)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Bytes from the start of the record."""
        return self._offsets_and_end[0]

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of a whole record, padding included."""
        return max(self._offsets_and_end[1], ALIGNMENT)

    @cached_property
    def _offsets_and_end(self) -> tuple[tuple[int, ...], int]:
        offsets, position = [], 0
        for size in self.sizes:
            offsets.append(position)
            position += math.ceil(size / ALIGNMENT) * ALIGNMENT
        return tuple(offsets), position

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which other programs, too, can find each tensor in a record."""
        columns = zip(self.names, self.shapes, self.dtypes, self.offsets, strict=True)
        return {
            "record_bytes": self.record_bytes,
            "tensors": [
                {"name": name, "shape": list(shape), "dtype": dtype, "offset": offset}
                for name, shape, dtype, offset in columns
            ],
            "aliases": dict(self.aliases),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The layout that `to_json` described.

        Raises:
            StoreError: the object is malformed, or its offsets are not those that follow from shapes and dtypes.
        """
        try:
            entries = value["tensors"]
            layout = cls(
                names=tuple(str(entry["name"]) for entry in entries),
                shapes=tuple(tuple(int(size) for size in entry["shape"]) for entry in entries),
                dtypes=tuple(str(entry["dtype"]) for entry in entries),
                aliases={str(alias): str(name) for alias, name in value["aliases"].items()},
            )
            offsets = tuple(int(entry["offset"]) for entry in entries)
            record_bytes = int(value["record_bytes"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreError(f"snapshot layout: malformed ({str(error)[:200]!r})") from error
        negative = any(not 0 <= size < _MOST_BYTES for shape in layout.shapes for size in shape)
        if any(len(shape) > _MOST_DIMS for shape in layout.shapes) or not 0 < record_bytes < _MOST_BYTES:
            raise StoreError("snapshot layout: a shape or record_bytes is too large for any tensor")
        repeated = len(set(layout.names)) < len(layout.names)
        dangling = set(layout.aliases.values()) - set(layout.names)
        if negative or repeated or dangling or (offsets, record_bytes) != (layout.offsets, layout.record_bytes):
            raise StoreError("snapshot layout: names, shapes, offsets and record_bytes contradict each other")
        return layout

    def stored_views(self, buffer: Tensor) -> list[Tensor]:
        """One view of ``buffer`` (at least record_bytes, uint8) for each stored tensor, in the order of `names`."""
        columns = zip(self.shapes, self._torch_dtypes, self.offsets, self.sizes, strict=True)
        return [buffer[offset : offset + size].view(dtype).view(shape) for shape, dtype, offset, size in columns]

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Views of ``buffer`` by name; an alias shows the very tensor it is tied to."""
        stored = dict(zip(self.names, self.stored_views(buffer), strict=True))
        return stored | {alias: stored[name] for alias, name in self.aliases.items()}

    def copy_into(self, tensors: Sequence[Tensor] | Mapping[str, Tensor], buffer: Tensor) -> None:
        """Copy tensors (see `select`) into a flat uint8 buffer in one fused call."""
        import torch

        with torch.no_grad():
            torch._foreach_copy_(self.stored_views(buffer), self.select(tensors))

    def select(self, tensors: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """The stored tensors in order, from a mapping by name or from a sequence in the order of `names`.

        Raises:
            StoreError: a tensor is missing, or has another shape or dtype: copying would broadcast or round silently.
        """
        if isinstance(tensors, Mapping):
            if missing := [name for name in self.names if name not in tensors]:
                raise StoreError(f"snapshot: no tensor {missing[0]!r} ({len(missing)} of the layout's are missing)")
            tensors = [tensors[name] for name in self.names]
        if len(tensors) != len(self.names):
            raise StoreError(f"snapshot: {len(tensors)} tensors, but the layout has {len(self.names)} (tied: one)")
        for name, shape, dtype, tensor in zip(self.names, self.shapes, self._torch_dtypes, tensors, strict=True):
            if tensor.shape != shape or tensor.dtype != dtype:
                found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
                expected = f"{str(dtype).removeprefix('torch.')} {shape}"
                raise StoreError(f"snapshot: {name} is {found}, but the layout has {expected}")
        return list(tensors)

    @cached_property
    def _torch_dtypes(self) -> tuple[torch.dtype, ...]:
        import torch

        return tuple(getattr(torch, dtype) for dtype in self.dtypes)
