"""Experiment trackers, through transformers' own integrations; the store stays the truth."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence

from landscape.errors import UsageError, nearest

_FINISH = {"wandb": "finish", "mlflow": "end_run", "trackio": "finish"}
"""What ends a run of those that keep one open for the whole process; TensorBoard's writer ends with its Trainer."""
TRACKERS = ("tensorboard", *_FINISH)
"""Those that are tested."""
_PACKAGES = {"mlflow": "mlflow-skinny"}
"""Where they have another name; the whole of MLflow wants an older pandas than ours."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not there, before anything is loaded.

    Raises:
        UsageError: names the tracker, what to install or the nearest name, and those that are installed.
    """
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in names:
        if name not in available:
            there = ", ".join(sorted(available)) or "none"
            hint = nearest(name, {*available, *TRACKERS})
            if name in TRACKERS:
                hint = f" pip install {_PACKAGES.get(name, name)}"
            raise UsageError(f"report_to: {name!r} is not installed; installed: {there}.{hint}")


@contextlib.contextmanager
def tracked(names: Sequence[str]) -> Iterator[None]:
    """End what the trackers have open: a worker goes on with another run, which must not be logged to this one's."""
    try:
        yield
    finally:
        for name in names:
            if name in _FINISH:
                with contextlib.suppress(RuntimeError):  # Trackio's, where the integration has ended its run already
                    getattr(importlib.import_module(name), _FINISH[name])()
