"""Loss landscapes and double descent in LoRA fine-tuning.

Public names are imported on first use, so that ``landscape --help`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.config import RunConfig
    from landscape.curvature import spectral_density, top_eigenvalues, trace
    from landscape.episodes import Episode, detect_episodes
    from landscape.methods import METHODS, GGPOCallback, MGPOCallback
    from landscape.slices import loss_slice
    from landscape.store import Store
    from landscape.training import EpisodeWatchCallback, SnapshotCallback, train

__version__ = "0.1.0"

_PUBLIC = {
    "RunConfig": "landscape.config",
    "Store": "landscape.store",
    "train": "landscape.training",
    "top_eigenvalues": "landscape.curvature",
    "trace": "landscape.curvature",
    "spectral_density": "landscape.curvature",
    "loss_slice": "landscape.slices",
    "detect_episodes": "landscape.episodes",
    "Episode": "landscape.episodes",
    "METHODS": "landscape.methods",
    "GGPOCallback": "landscape.methods",
    "MGPOCallback": "landscape.methods",
    "SnapshotCallback": "landscape.training",
    "EpisodeWatchCallback": "landscape.training",
}

__all__ = [
    "METHODS",
    "Episode",
    "EpisodeWatchCallback",
    "GGPOCallback",
    "MGPOCallback",
    "RunConfig",
    "SnapshotCallback",
    "Store",
    "__version__",
    "detect_episodes",
    "loss_slice",
    "spectral_density",
    "top_eigenvalues",
    "trace",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
