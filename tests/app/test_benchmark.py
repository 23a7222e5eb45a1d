"""The documentation's table of the dashboard's speed is the committed measurement, of the size that is promised."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmark_scripts import load_benchmark


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_benchmark("app")


def test_the_document_shows_the_committed_measurement(benchmark: ModuleType) -> None:
    result = json.loads(benchmark.RESULT.read_text())
    assert (result["runs"], result["steps"]) == (1000, 10_000)
    assert set(result["bounds"]) <= set(result["found"])
    shown = benchmark.DOCUMENT.read_text().split(benchmark.MARKS[0])[1].split(benchmark.MARKS[1])[0]
    assert shown.strip() == benchmark.table(result)


def test_what_misses_its_bound_says_so(benchmark: ModuleType) -> None:
    machine = {"processor": "p", "cores": 2, "load before": 0.1, "load after": 1.0, "date": "2026-01-02T00:00:00"}
    found = {"first page, s": 2.5, "points in a figure": 42_000}
    lines = benchmark.table(
        {"runs": 1000, "steps": 10_000, "found": found, "bounds": benchmark.BOUNDS, "machine": machine}
    )
    assert "1,000 runs of 10,000 steps" in lines
    assert "| first page, s | 2.50 (missed) | 2 |" in lines
    assert "| points in a figure | 42,000 | 50,000 |" in lines


def test_the_store_that_is_measured(benchmark: ModuleType, tmp_path: Path) -> None:
    store = benchmark.make_store(tmp_path / "store", 7, 200)
    runs = store.runs()
    assert len(runs) == 7
    assert {len(run.metrics()) for run in runs} == {200}
    assert all((run.analysis_dir / "episodes.parquet").is_file() for run in runs)
