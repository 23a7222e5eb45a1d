"""Saying in time, and in one line, that something does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.measurement import free_bytes


def require_memory(needed: int, device: torch.device, what: str) -> None:
    """Refuse to begin what does not fit.

    Raises:
        LandscapeError: says how much is needed and how much is free.
    """
    if needed > (free := free_bytes(device)):
        raise LandscapeError(f"{what} need {_gigabytes(needed)} of memory on {device}; {_gigabytes(free)} are free")


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn an allocator's failure into advice.

    Raises:
        LandscapeError: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        # CUDA's has a type, the CPU's only a message.
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        raise LandscapeError(
            "out of memory during a forward pass; use smaller batches or evaluation='in_place'"
        ) from error


class Scratch:
    """Memory that is written anew again and again: what it held before is gone.

    A fresh allocation for every displaced weight costs the CPU page faults that a short forward pass notices.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of the shape, device and precision of ``tensor``, with any content."""
        key = tensor.device, tensor.dtype
        if key not in self._buffers or self._buffers[key].numel() < tensor.numel():
            self._buffers[key] = torch.empty(tensor.numel(), device=tensor.device, dtype=tensor.dtype)
        return self._buffers[key][: tensor.numel()].view(tensor.shape)


def _gigabytes(number: int) -> str:
    return f"{number / 2**30:.3g} GiB"
