"""The most memory that training a run took."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

_PROC = Path("/proc/self")


class PeakMemory:
    """Peaks in bytes from the moment at which this is made.

    ``rss`` is the process's resident memory as the operating system counts it, so with interpreter, libraries, model
    and data. Only Linux can forget what came before; elsewhere it is the peak since the process began, an upper bound.
    ``cuda`` is what PyTorch's tensors took of the device, where there is one.
    """

    def __init__(self) -> None:
        # Not on Linux, or not allowed in this container: an upper bound then.
        with contextlib.suppress(OSError):
            (_PROC / "clear_refs").write_text("5")  # proc(5): resets VmHWM and nothing else
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def read(self, before: Mapping[str, int] | None = None) -> dict[str, int]:
        """The peaks so far, or those of an earlier part of the run where they were higher."""
        found = {"rss": _resident_peak()}
        if torch.cuda.is_available():
            found["cuda"] = torch.cuda.max_memory_allocated()
        earlier = dict(before or {})
        return earlier | {name: max(value, earlier.get(name, 0)) for name, value in found.items()}


def _resident_peak() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = (_PROC / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
