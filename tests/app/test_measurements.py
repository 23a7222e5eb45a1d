"""What a page can ask for is what the command line takes, and what is known of a snapshot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from app.index import RunIndex
from app.measurements import MEASUREMENTS, measured_at, nearest_step, neighbors, numbers_at, steps_for
from landscape.analysis.tables import write_table
from tests.command_line import invoke
from tests.synthetic_runs import run, write


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_command_line_takes_every_measurement(name: str, tmp_path: Path) -> None:
    """Every flag is known: the command gets as far as the run, which has no snapshots."""
    store = write([run(max_steps=60)], tmp_path / "store")
    run_id = store.runs()[0].id
    result = invoke(*MEASUREMENTS[name].arguments(store.path, run_id, [10]))
    assert result.exit_code == 2
    assert "no snapshots" in result.output or "nothing to" in result.output, result.output


def test_progress_counts_new_answers_of_the_steps_asked_for(tmp_path: Path) -> None:
    own = write([run(max_steps=60)], tmp_path / "store").runs()[0]
    table = own.analysis_dir / "sharpness.parquet"
    old = [{"step": step, "space": "adapter", "seconds": 1.0} for step in (0, 10)]
    write_table(table, pd.DataFrame(old))
    count = MEASUREMENTS["sharpness"].progress(own, [10, 20, 30])
    assert count is not None
    assert count() == (0, 3)
    new = [{"step": 10, "space": "adapter", "seconds": 2.0}, {"step": 40, "space": "adapter", "seconds": 1.0}]
    write_table(table, pd.DataFrame([old[0], *new, {"step": 20, "space": "merged", "seconds": 3.0}]))
    assert count() == (2, 3)
    table.write_bytes(b"damaged")
    assert count() == (0, 3)
    assert MEASUREMENTS["slice1d"].progress(own, [10]) is None


def test_asking_how_far_a_job_is_loads_no_framework() -> None:
    code = "import sys, app.measurements; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


def test_steps() -> None:
    captured = list(range(0, 101, 5))
    assert steps_for(MEASUREMENTS["sharpness"], captured, 40, whole=False) == [40]
    along = steps_for(MEASUREMENTS["sharpness"], captured, 40, whole=True)
    assert (len(along), along[0], along[-1]) == (8, 0, 100)
    assert steps_for(MEASUREMENTS["slice2d"], captured, 40, whole=True) == [40]
    assert (nearest_step(captured, 43), nearest_step([], 3)) == (45, None)
    assert neighbors(captured, 40) == (35, 45)
    assert neighbors(captured, 0) == (None, 5)


def test_logged_numbers(tmp_path: Path) -> None:
    data = run(max_steps=60)
    row = RunIndex(write([data], tmp_path / "store")).rows()[0]
    found = {number.name: number.value for number in numbers_at(row, 15, data.metrics, data.evaluations)}
    loss = data.metrics.loc[data.metrics["step"] == 15, "loss_clean"].iloc[0]
    assert found["training loss, clean, nats/token"] == f"{loss:.5g}"
    assert found["eval loss after step 10 (± se), nats/token"].endswith("± 0.03")
    assert numbers_at(row, 999, data.metrics, data.evaluations.iloc[:0]) == []


def test_measured_numbers() -> None:
    tables = {
        "sharpness": pd.DataFrame([
            {"step": 5, "index": 0, "value": 12.345678, "space": "preconditioned", "split": "probe",
             "num_examples": 64, "converged": False, "threshold": 38.0},
            {"step": 5, "index": 1, "value": 3.0, "space": "preconditioned", "split": "probe", "num_examples": 64,
             "converged": True, "threshold": 38.0},
            {"step": 6, "index": 0, "value": float("nan"), "space": "adapter", "split": "probe", "num_examples": 64,
             "converged": False, "threshold": None},
        ]),
        "gap": pd.DataFrame([{"step": 5, "gap": 0.25, "standard_error": 0.02}]),
    }  # fmt: skip
    found = measured_at(5, tables.get)
    assert [number.value for number in found] == ["12.35", "0.25 ± 0.02"]
    assert "stable below 38; " in found[0].about.replace(",", ";")
    assert "did not converge" in found[0].about
    assert measured_at(6, tables.get) == []
