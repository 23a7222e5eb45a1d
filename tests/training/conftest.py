"""Runs of a second or two on the packaged preset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from landscape.config import RunConfig
from landscape.store import Run, Store
from landscape.training import train

QUICK: dict[str, Any] = {
    "model": "tiny",
    "task": "arithmetic",
    "rank": 4,
    "alpha": "2r",
    "lora_dropout": 0.1,
    "learning_rate": 5e-3,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "train_examples": 64,
    "eval_examples": 8,
    "probe_examples": 8,
    "eval_steps": 3,
    "save_steps": 2,
    "base_loss": False,
    "capture": {"every": 1},
}


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Run]:
    """Train one quick run in a store of its own and return it."""
    count = iter(range(1000))

    def run(**changes: Any) -> Run:
        store = tmp_path / f"store{next(count)}"
        result = train(RunConfig.parse({**QUICK, **changes}), store)
        return Store.open(store).get(result.run_id)

    return run


def curve(run: Run, drop: tuple[str, ...] = ("seconds",)) -> pd.DataFrame:
    """A run's metrics without what may differ between equal runs."""
    frame = run.metrics()
    return frame.drop(columns=[key for key in drop if key in frame])


def final_weights(run: Run) -> dict[str, torch.Tensor]:
    """The last captured parameters."""
    snapshots = run.snapshots()
    return snapshots.tensors(int(snapshots.steps[-1]))


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
