"""Saying in time, and in one line, that something does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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


def _gigabytes(number: int) -> str:
    return f"{number / 2**30:.3g} GiB"
