"""Tables are read once and again when their files change; memory is bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app import reader as module
from app.reader import StoreReader, newest, problem_lines
from landscape.errors import StoreError
from landscape.store import Store
from tests.synthetic_runs import run, write


@pytest.fixture
def reader(tmp_path: Path) -> StoreReader:
    write([run(seed=seed, max_steps=60, sharp=True) for seed in range(3)], tmp_path / "store")
    return StoreReader(tmp_path / "store")


def test_data_is_what_the_store_holds(reader: StoreReader) -> None:
    row, source = reader.rows()[0], reader.store.runs()[0]
    data = reader.data(row)
    pd.testing.assert_frame_equal(data.metrics, source.metrics())
    pd.testing.assert_frame_equal(data.evaluations, source.evaluations())
    assert data.sharpness is not None
    assert len(data.sharpness) == 8
    assert data.config == source.config.model_dump(mode="json")
    assert (data.state, data.step, data.gap, data.problems) == ("done", 60, None, ())


def test_data_is_kept_until_a_file_changes(reader: StoreReader) -> None:
    row, source = reader.rows()[0], reader.store.runs()[0]
    first = reader.data(row).metrics
    assert reader.data(row).metrics is first
    source.set_status(state="running", step=60)
    with source.begin_attempt(60) as attempt:
        attempt.log({"step": 61, "loss_clean": 1.0})
    assert reader.data(reader.rows()[0]).metrics["step"].max() == 61


def test_a_new_analysis_is_seen(reader: StoreReader) -> None:
    row, source = reader.rows()[0], reader.store.runs()[0]
    assert reader.data(row).gap is None
    pd.DataFrame({"step": [1], "gap": [0.5], "standard_error": [0.1]}).to_parquet(source.analysis_dir / "gap.parquet")
    gap = reader.data(row).gap
    assert gap is not None
    assert gap["gap"].tolist() == [0.5]


def test_damage_is_named_and_the_rest_is_there(reader: StoreReader) -> None:
    row, source = reader.rows()[0], reader.store.runs()[0]
    (source.analysis_dir / "sharpness.parquet").write_bytes(b"damage")
    data = reader.data(row)
    assert data.sharpness is None
    assert len(data.metrics) == 60
    assert ["sharpness.parquet is damaged" in line for line in problem_lines([data])] == [True]
    with pytest.raises(StoreError, match=r"sharpness\.parquet is damaged"):
        reader.analysis(row, "sharpness")


def test_memory_is_bounded(reader: StoreReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 1000)
    made = []

    def make(number: int) -> np.ndarray:
        made.append(number)
        return np.zeros(100)

    for number in (0, 1, 0, 1):
        reader.remember(number, None, lambda number=number: make(number))
    assert made == [0, 1, 0, 1]
    assert reader._size <= 1000
    reader.remember(1, None, lambda: make(1))
    assert len(made) == 4


def test_runs_without_snapshots_have_no_steps(reader: StoreReader) -> None:
    assert reader.snapshot_steps(reader.rows()[0]) == []


def test_snapshot_steps(tmp_path: Path) -> None:
    import torch

    from landscape.store import SnapshotLayout

    write([run(max_steps=60)], tmp_path / "store")
    source = Store.open(tmp_path / "store").runs()[0]
    tensors = {"a": torch.zeros(2)}
    with source.begin_attempt() as attempt:
        writer = attempt.snapshot_writer("params", SnapshotLayout.from_tensors(tensors))
        for step in (0, 20, 40):
            writer.put(step, tensors)
    reader = StoreReader(tmp_path / "store")
    assert reader.snapshot_steps(reader.rows()[0]) == [0, 20, 40]


def test_the_newest_runs_are_chosen(reader: StoreReader) -> None:
    rows = reader.rows()
    assert newest(rows, 3) == (list(rows), "")
    chosen, left_out = newest(rows, 2)
    assert len(chosen) == 2
    assert "2 newest of 3 runs" in left_out


@pytest.mark.parametrize("packed", [True, False])
def test_light_data_keeps_the_last_numbers_and_those_at_steps_with_a_sharpness(tmp_path: Path, packed: bool) -> None:
    store = write([run(max_steps=200, sharp=True)], tmp_path / "store")
    source = store.runs()[0]
    if not packed:
        (source.path / "metrics.parquet").unlink()
    reader = StoreReader(tmp_path / "store")
    row = reader.rows()[0]
    whole, light = reader.data(row), reader.data(row, steps=False)
    assert light.sharpness is not None
    measured = set(light.sharpness["step"])
    expected = whole.evaluations[whole.evaluations["step"].isin([*measured, 200])]
    assert light.evaluations[["step", "split", "loss"]].to_numpy().tolist() == (
        expected[["step", "split", "loss"]].to_numpy().tolist()
    )
    assert light.metrics["loss_clean"].tolist() == whole.metrics["loss_clean"].tolist()[-20:]
    assert (light.problems, light.seconds) == ((), None)
    (source.path / "metrics.parquet").write_bytes(b"PAR1 damaged PAR1")
    reader = StoreReader(tmp_path / "store")
    assert ["metrics.parquet is damaged" in line for line in reader.data(row, steps=False).problems] == [True]
