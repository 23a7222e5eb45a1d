"""A run that is trained once, and the benchmarks' stand-ins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from landscape.config import RunConfig
from landscape.store import Run, Store
from landscape.training import train
from tests.analysis.trained_runs import SETTINGS
from tests.evaluation.benchmarks import write_benchmarks


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRA runs of `tiny`, one without snapshots; not to be written to."""
    store = tmp_path_factory.mktemp("evaluation") / "store"
    train(RunConfig.parse({**SETTINGS, "max_steps": 2}), store)
    train(RunConfig.parse({**SETTINGS, "max_steps": 1, "rank": 4, "capture": "none"}), store)
    return store


@pytest.fixture
def store(trained_store: Path, tmp_path: Path) -> Path:
    """The same in a folder of one's own."""
    return Path(shutil.copytree(trained_store, tmp_path / "store"))


@pytest.fixture
def run(store: Path) -> Run:
    """The run with snapshots of steps 0, 1 and 2."""
    return next(run for run in Store.open(store).runs() if run.config.rank == 2)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder of benchmarks."""
    return write_benchmarks(tmp_path / "sets")
