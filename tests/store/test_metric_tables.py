import math

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import torch

from landscape.errors import StoreError
from landscape.store.metrics import EVALUATION_COLUMNS, STEP_COLUMNS, checked_record

STEPS = [
    {"step": 1, "epoch": 0.5, "tokens": 512, "loss_clean": 2.5, "loss_base": None, "mgpo_scale": 1, "skipped": True},
    {"step": 2, "epoch": 1.0, "tokens": 1024, "loss_clean": math.nan, "grad_norm": math.inf, "mgpo_scale": -math.inf},
]
EVALUATIONS = [
    {"step": 0, "split": "eval", "loss": 3.0, "standard_error": 0.1, "num_examples": 8, "exact_match": 0.25},
    {"step": 0, "split": "probe", "loss": 3.5, "standard_error": math.nan, "num_examples": 4, "exact_match": None},
    {"step": 2, "split": "eval", "loss": 1.0, "standard_error": 0.2, "num_examples": 8, "exact_match": 0.75},
]


@pytest.fixture
def attempt(run):
    with run.begin_attempt() as attempt:
        for record in [*EVALUATIONS[:2], *STEPS, *EVALUATIONS[2:]]:
            attempt.log(record)
        yield attempt


@pytest.fixture(params=["jsonl", "parquet"])
def source(request, run, attempt):
    if request.param == "parquet":
        run.compact()
        run.set_status(state="done")
        (attempt.path / "metrics.jsonl").unlink()
    return run


def test_steps_come_back_as_float_columns(source):
    frame = source.metrics()
    assert tuple(frame.columns) == (*STEP_COLUMNS, "mgpo_scale", "skipped")
    assert frame["step"].dtype == np.int64
    assert all(frame[name].dtype == np.float64 for name in frame.columns if name != "step")
    assert frame["step"].tolist() == [1, 2]
    assert frame["tokens"].tolist() == [512.0, 1024.0]
    assert frame["loss_clean"].iloc[0] == 2.5
    assert frame["mgpo_scale"].tolist() == [1.0, -math.inf]
    assert frame["grad_norm"].iloc[1] == math.inf
    assert frame["skipped"].iloc[0] == 1.0
    assert frame[["loss_base", "loss_perturbed", "seconds"]].isna().all().all()
    assert math.isnan(frame["loss_clean"].iloc[1])


def test_evaluations_come_back_as_one_row_a_split(source):
    frame = source.evaluations()
    assert tuple(frame.columns) == (*EVALUATION_COLUMNS, "exact_match")
    assert list(zip(frame["step"], frame["split"], strict=True)) == [(0, "eval"), (0, "probe"), (2, "eval")]
    assert frame["loss"].tolist() == [3.0, 3.5, 1.0]
    assert frame["num_examples"].dtype == np.float64
    assert frame["num_labels"].isna().all()


def test_a_parquet_file_changes_nothing(run, attempt):
    before = run.metrics(), run.evaluations()
    run.compact()
    run.set_status(state="done")
    (attempt.path / "metrics.jsonl").write_bytes(b"nobody reads this\n")
    for one, other in zip(before, (run.metrics(), run.evaluations()), strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_parquet_of_another_attempt_or_an_unfinished_run_is_not_read(run, attempt):
    run.compact()
    attempt.log({"step": 3, "loss_clean": 1.0})
    assert run.metrics()["step"].tolist() == [1, 2, 3], "the run is not done"
    run.set_status(state="done")
    assert run.metrics()["step"].tolist() == [1, 2]
    with run.begin_attempt() as second:
        second.log({"step": 1, "loss_clean": 9.0})
    assert run.status.state == "done"
    assert run.metrics()["loss_clean"].tolist() == [9.0], "the file was made from attempt 1"


def test_many_runs_are_read_at_once_with_null_apart_from_nan(run, attempt, store):
    run.compact()
    files = sorted(str(path) for path in store.path.glob("runs/*/metrics.parquet"))
    table = pyarrow.dataset.dataset(files).to_table()
    assert table["run_id"].to_pylist() == [run.id] * 5
    assert table["split"].to_pylist() == ["eval", "probe", None, None, "eval"]
    losses = table["loss_clean"].to_pylist()
    assert losses[:3] == [None, None, 2.5]
    assert math.isnan(losses[3]), "measured, and not a number"


def test_duckdb_reads_across_runs(run, attempt, store):
    import duckdb

    run.compact()
    query = f"select step, loss_clean from read_parquet('{store.path}/runs/*/metrics.parquet', union_by_name = true)"
    assert duckdb.sql(f"{query} where split is null and not isnan(loss_clean)").fetchall() == [(1, 2.5)]


def test_a_run_without_metrics_has_empty_frames(run):
    assert tuple(run.metrics().columns) == STEP_COLUMNS
    assert tuple(run.evaluations().columns) == EVALUATION_COLUMNS
    assert len(run.metrics()) == len(run.evaluations()) == 0
    run.begin_attempt().close()
    assert len(run.metrics()) == 0
    assert run.metrics()["step"].dtype == np.int64


def test_a_column_with_text_is_text(run):
    with run.begin_attempt() as attempt:
        attempt.log({"step": 1, "phase": "warmup", "digits": "NaN"})
        attempt.log({"step": 2, "phase": "NaN", "digits": 7})
    frame = run.metrics()
    assert frame["phase"].tolist() == ["warmup", "NaN"]
    assert frame["digits"].iloc[1] == 7.0
    assert math.isnan(frame["digits"].iloc[0])


def test_tensors_and_numpy_scalars_are_numbers():
    record = checked_record({"step": np.int64(3), "a": torch.tensor(1.5), "b": np.float32(0.5), "c": torch.ones(1, 1)})
    assert record == {"step": 3, "a": 1.5, "b": 0.5, "c": 1.0}
    assert all(type(value) in (int, float) for value in record.values())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"loss": 1.0}, "step must be an integer of at least 0, not None"),
        ({"step": -1}, "at least 0, not -1"),
        ({"step": True}, "at least 0, not True"),
        ({"step": 1.0}, "not 1.0"),
        ({"step": 1, "crc": 0}, "'crc' is reserved"),
        ({"step": 1, "run_id": "x"}, "'run_id' is reserved"),
        ({"step": 1, "split": 3}, "split must be a name"),
        ({"step": 1, "norms": [1.0, 2.0]}, "norms must be one number, a string or null, not a list"),
        ({"step": 1, "norms": torch.ones(2)}, "norms must be one number, a string or null, not a Tensor"),
    ],
)
def test_malformed_records_are_refused(run, record, message):
    with run.begin_attempt() as attempt, pytest.raises(StoreError, match=message):
        attempt.log(record)
    assert (attempt.path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"step": 2}, "metrics of step 2 cannot follow step 2"),
        ({"step": 1}, "metrics of step 1 cannot follow step 2"),
        ({"step": 2, "split": "eval"}, "evaluation 'eval' of step 2 cannot follow step 2"),
    ],
)
def test_a_step_is_logged_once_and_in_order(attempt, record, message):
    with pytest.raises(StoreError, match=message):
        attempt.log(record)
    attempt.log({"step": 2, "split": "probe", "loss": 1.0})


def test_a_torn_last_line_is_ignored_and_a_damaged_inner_one_is_named(run, attempt):
    path = attempt.path / "metrics.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    assert len(run.evaluations()) == 2
    path.write_bytes(data.replace(b'"loss":3.5', b'"loss":2.5'))
    with pytest.raises(StoreError, match=r"attempts/1/metrics\.jsonl, line 2: damaged"):
        run.metrics()


def test_a_missing_file_is_not_an_empty_run(run, attempt):
    (attempt.path / "metrics.jsonl").unlink()
    with pytest.raises(StoreError, match=r"metrics\.jsonl is missing"):
        run.metrics()


def test_a_record_without_a_step_is_named(run, attempt):
    from landscape.store.lines import encode_line

    with (attempt.path / "metrics.jsonl").open("ab") as file:
        file.write(encode_line({"loss": 1.0}))
    with pytest.raises(StoreError, match="line 6: not a record of metrics"):
        run.metrics()


def test_a_damaged_parquet_file_is_named(run, attempt):
    path = run.compact()
    run.set_status(state="done")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"metrics\.parquet is damaged"):
        run.metrics()
    path.unlink()
    assert len(run.metrics()) == 2


def test_compacting_a_run_that_never_started_says_so(run):
    with pytest.raises(StoreError, match="has not been started"):
        run.compact()
