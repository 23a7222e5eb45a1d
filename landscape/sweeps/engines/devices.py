"""The devices of this machine and what still fits on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits")
_SHARE = 0.9
"""Of the free memory that estimates may add up to; they are estimates."""


@dataclass
class Device:
    """Where worker processes run.

    Attributes:
        name: its entry in ``CUDA_VISIBLE_DEVICES``; None for the CPU, which hides nothing.
        free: bytes that can be given away; 0: not known, so that only places count.
        places: processes at a time.
        taken: bytes by the key of the job that holds them.
    """

    name: str | None
    free: int = 0
    places: int = 1
    taken: dict[str, int] = field(default_factory=dict)

    def fits(self, memory: int) -> bool:
        """Whether a job may join those that are here; the first one may always try."""
        if not self.taken:
            return True
        return len(self.taken) < self.places and (not self.free or sum(self.taken.values()) + memory <= self.free)


def find_devices() -> list[Device]:
    """The GPUs that this process may use, or the CPU where there are none."""
    gpus = _nvidia()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
        known = {key: free for index, uuid, free in gpus for key in (index, uuid)}
        return [Device(name, known.get(name, 0)) for name in wanted] if gpus and wanted else [cpu()]
    return [Device(index, free) for index, _, free in gpus] or [cpu()]


def cpu() -> Device:
    """The machine's own cores and memory."""
    return Device(None, int(_SHARE * psutil.virtual_memory().available))


def place_workers(devices: Sequence[Device], workers: int) -> None:
    """Share the places out among the devices, the first ones getting what is left over."""
    for number, device in enumerate(devices):
        device.places = workers // len(devices) + (number < workers % len(devices))


def most_workers(devices: Sequence[Device], memory: int, cores: int) -> int:
    """Places if nobody says how many: a core each without GPUs; with them as many a device as fit, at most four.

    Args:
        memory: bytes that the largest job will take; 0: not known.
    """
    if all(device.name is None for device in devices):
        free = sum(device.free for device in devices)
        return max(1, min(cores, free // memory if memory and free else cores))
    fitting = [max(1, min(4, device.free // memory)) if memory and device.free else 1 for device in devices]
    return max(len(devices), min(sum(fitting), max(cores, len(devices))))


def _nvidia() -> list[tuple[str, str, int]]:
    """Index, UUID and free bytes of each GPU; none where NVIDIA's tool is missing or fails."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=True)
        rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        return [(index, uuid, int(_SHARE * int(free)) << 20) for index, uuid, free in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
