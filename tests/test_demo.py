"""The demo in miniature: trains, measures, reports, and does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from landscape import demo
from landscape.analysis import SHARPNESS_FILE
from landscape.config.run import read_yaml
from landscape.config.sweep import SweepConfig
from landscape.resources import experiment
from landscape.store import Store

SWEEP = {
    "model": "tiny", "task": "arithmetic", "alpha": "r", "max_steps": 4, "eval_steps": 2, "train_examples": 32,
    "eval_examples": 8, "probe_examples": 8, "per_device_train_batch_size": 4, "capture": {"every": 1},
    "sweep": {"grid": {"method": ["lora", "mgpo"], "rank": [2]}},
}  # fmt: skip


def test_the_demo_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SNAPSHOTS", 3)
    sweep_file = tmp_path / "sweep.yaml"
    sweep_file.write_text(json.dumps(SWEEP))
    store, report = tmp_path / "store", tmp_path / "out" / "report.html"
    result = demo.run_demo(store, report, workers=0, sweep_file=sweep_file)
    assert result.sweep.counts == {"done": 2}
    assert result.analysis_errors == {}
    assert result.report == report
    assert "mgpo" in report.read_text(encoding="utf-8")
    runs = Store.open(store).runs()
    for run in runs:
        assert list(pd.read_parquet(run.analysis_dir / SHARPNESS_FILE)["step"]) == [0, 2, 4]
    attempts = [run.status.attempt for run in runs]
    again = demo.run_demo(store, report, workers=0, sweep_file=sweep_file)
    assert again.sweep.counts == {"done": 2}
    assert [run.status.attempt for run in runs] == attempts


def test_an_analysis_that_fails_does_not_cost_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep_file = tmp_path / "sweep.yaml"
    values = {**SWEEP, "eval_steps": 4, "sweep": {"grid": {"method": ["lora"]}}}
    sweep_file.write_text(json.dumps(values))

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no curvature today")

    monkeypatch.setattr("landscape.analysis.analyze_sharpness", fail)
    result = demo.run_demo(tmp_path / "store", tmp_path / "report.html", workers=0, sweep_file=sweep_file)
    (error,) = result.analysis_errors.values()
    assert error.endswith("RuntimeError: no curvature today")
    assert (tmp_path / "report.html").is_file()


def test_the_shipped_demo_compares_methods_at_equal_configs() -> None:
    configs = SweepConfig.parse(read_yaml(experiment("demo"))).expand()
    by_method: dict[str, set[tuple[object, ...]]] = {}
    for config in configs:
        by_method.setdefault(config.method, set()).add((config.rank, config.learning_rate, config.seed))
    assert {"lora", "ggpo", "mgpo"} <= set(by_method)
    assert len({frozenset(cells) for cells in by_method.values()}) == 1
