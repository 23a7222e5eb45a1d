"""What is left of a device's memory."""

from __future__ import annotations

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """What can still be allocated on a device; memory that PyTorch caches counts as free."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
