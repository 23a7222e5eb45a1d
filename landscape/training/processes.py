"""The processes and the device of a run, the same whether started plainly, by torchrun or by ``accelerate launch``."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def accelerated() -> bool:
    """Whether transformers will find a device other than the CPU."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def cpu_group() -> bool:
    """Whether this is one of several processes on a machine with nothing but CPUs.

    Accelerate has to be told: it forms a group of CPU processes (gloo) only when asked for the CPU.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not accelerated()


def world() -> PartialState:
    """All processes of this run; the group is made at the first call."""
    return PartialState(cpu=cpu_group())
