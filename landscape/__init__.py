"""Loss landscapes and double descent in LoRA fine-tuning.

Public names are imported on first use, so that ``landscape --help`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "RunConfig": "landscape.config",
    "Store": "landscape.store",
    "train": "landscape.training",
    "top_eigenvalues": "landscape.curvature",
    "METHODS": "landscape.methods",
    "GGPOCallback": "landscape.methods",
    "MGPOCallback": "landscape.methods",
    "SnapshotCallback": "landscape.training",
}

__all__ = [
    "METHODS",
    "GGPOCallback",
    "MGPOCallback",
    "RunConfig",
    "SnapshotCallback",
    "Store",
    "__version__",
    "top_eigenvalues",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
