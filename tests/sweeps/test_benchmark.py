"""The sweep benchmark's committed numbers are those of the page, and each engine of its table exists."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from tests.benchmark_scripts import BENCHMARKS, load_benchmark


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_benchmark("sweep")


def test_the_committed_costs_are_those_of_the_page(benchmark: ModuleType) -> None:
    rows = json.loads((BENCHMARKS / "results" / "sweep-cpu.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == list(benchmark.ENGINES)
    assert f"\n{benchmark.table(rows)}\n" in (BENCHMARKS.parents[1] / "docs" / "sweeps.md").read_text()


@pytest.mark.slow
def test_a_kill_is_paid_for_and_its_steps_are_counted(benchmark: ModuleType) -> None:
    row = benchmark.measure("inline", 1, 1)
    assert row["overhead_a_run"] > 0
    # Killed after half of the 60 steps, ten after the last checkpoint at most.
    assert 0 <= row["steps_again_a_kill"] <= 10
    assert "a kill costs" in benchmark.row_text(row)
