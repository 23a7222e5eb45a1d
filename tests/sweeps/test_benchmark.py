"""The sweep benchmark's committed numbers are those of the page, and each engine of its table exists."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_sweep", BENCHMARKS / "sweep.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_costs_are_those_of_the_page(benchmark: ModuleType) -> None:
    rows = json.loads((BENCHMARKS / "results" / "sweep-cpu.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == list(benchmark.ENGINES)
    assert f"\n{benchmark.table(rows)}\n" in (ROOT / "docs" / "sweeps.md").read_text()


@pytest.mark.slow
def test_a_kill_is_paid_for_and_its_steps_are_counted(benchmark: ModuleType) -> None:
    row = benchmark.measure("inline", 1, 1)
    assert row["overhead_a_run"] > 0
    # Killed after half of the 60 steps, ten after the last checkpoint at most.
    assert 0 <= row["steps_again_a_kill"] <= 10
    assert "a kill costs" in benchmark.row_text(row)
