"""Runs that are trained once for all tests of the analyses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from landscape.config import RunConfig
from landscape.store import Run, Store
from landscape.training import train
from tests.analysis.trained_runs import RUNS, SETTINGS, Stores, only_run


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """The store of a run of `RUNS`, trained once and not to be written to."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "store"
            train(RunConfig.parse({**SETTINGS, **RUNS[name]}), made[name])
        return made[name]

    return make


@pytest.fixture
def run(stores: Stores, tmp_path: Path) -> Run:
    """A LoRA run of 4 steps in a store of one's own."""
    shutil.copytree(stores("lora"), tmp_path / "store")
    return only_run(tmp_path / "store")


@pytest.fixture
def moments_run(stores: Stores, tmp_path: Path) -> Run:
    """As `run`, with Adam's second moments captured."""
    shutil.copytree(stores("moments"), tmp_path / "store")
    return only_run(tmp_path / "store")


@pytest.fixture
def three_methods(stores: Stores, tmp_path: Path) -> Store:
    """Runs in float64 by LoRA, GGPO and MGPO from one initial state, in a store of one's own."""
    path = tmp_path / "store"
    shutil.copytree(stores("double lora"), path)
    for method in ("ggpo", "mgpo"):
        other = only_run(stores(f"double {method}"))
        shutil.copytree(other.path, path / "runs" / other.id)
    return Store.open(path)
