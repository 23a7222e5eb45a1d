"""Loss landscapes and double descent in LoRA fine-tuning.

Public names are imported on first use, so that ``landscape --help`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.config import RunConfig
    from landscape.curvature import top_eigenvalues
    from landscape.methods import METHODS, GGPOCallback, MGPOCallback
    from landscape.store import Store
    from landscape.training import SnapshotCallback, train

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
