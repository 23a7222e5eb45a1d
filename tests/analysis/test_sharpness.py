"""Eigenvalues along a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from landscape.analysis import analyze_sharpness, restore
from landscape.curvature import EigenResult, NonFiniteLossError, SharpnessTracker, top_eigenvalues
from landscape.errors import StoreError, UsageError
from landscape.store import Run
from tests.analysis.trained_runs import FAST, Stores, only_run


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[EigenResult]:
    """The result of every search for eigenvalues."""
    results: list[EigenResult] = []
    measure = SharpnessTracker.measure

    def recorded(self: SharpnessTracker, **options: Any) -> EigenResult:
        results.append(measure(self, **options))
        return results[-1]

    monkeypatch.setattr(SharpnessTracker, "measure", recorded)
    return results


def stored(run: Run) -> pd.DataFrame:
    return pd.read_parquet(run.analysis_dir / "sharpness.parquet")


def test_sharpness_is_that_of_the_restored_model_on_the_probe(run: Run) -> None:
    frame = analyze_sharpness(run, [4, 0], device="cpu")
    assert frame[["step", "index"]].to_numpy().tolist() == [[0, 0], [4, 0]]
    assert all(frame["converged"])
    assert all(residual <= 1e-3 for residual in frame["residual"])
    assert set(frame["space"]) == {"adapter"}
    assert set(frame["split"]) == {"probe"}
    for step in (0, 4):
        model, data = restore(run, step, device="cpu")
        expected = top_eigenvalues(model, data.probe.batches(4), seed=9)  # other batches, another start
        rows = frame.loc[frame["step"] == step]
        np.testing.assert_allclose(rows["value"], expected.values, rtol=1e-4)
        assert set(rows["num_labels"]) == {expected.num_labels}
        assert set(rows["num_examples"]) == {6}
        assert rows["loss"].iloc[0] == pytest.approx(expected.loss, rel=1e-6)
        measured = run.evaluations().set_index(["split", "step"])["loss"]
        assert rows["loss"].iloc[0] == pytest.approx(measured["probe", step], rel=1e-5)
    pd.testing.assert_frame_equal(stored(run), frame)


def test_searches_start_from_the_step_before_and_are_not_repeated(run: Run, searches: list[EigenResult]) -> None:
    first = analyze_sharpness(run, every=2, **FAST)
    assert first["step"].tolist() == [0, 2, 4]
    assert [result.cold for result in searches] == first["cold"].tolist() == [True, False, False]
    again = analyze_sharpness(run, every=2, **FAST)
    assert len(searches) == 3
    pd.testing.assert_frame_equal(first, again)
    more = analyze_sharpness(run, [4, 3, 3], **FAST)
    assert len(searches) == 4
    assert more["step"].tolist() == [3, 4]
    assert stored(run)["step"].tolist() == [0, 2, 3, 4]


def test_an_interrupted_analysis_goes_on_where_it_stopped(
    run: Run, searches: list[EigenResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = SharpnessTracker.measure

    def interrupt(self: SharpnessTracker, **options: Any) -> EigenResult:
        if len(searches) == 2:
            raise KeyboardInterrupt
        return measure(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SharpnessTracker, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            analyze_sharpness(run, **FAST)
    assert stored(run)["step"].tolist() == [0, 1]
    frame = analyze_sharpness(run, **FAST)
    assert len(searches) == 5
    assert frame["step"].tolist() == [0, 1, 2, 3, 4]


def test_other_settings_replace_the_rows_of_the_space(run: Run, searches: list[EigenResult]) -> None:
    analyze_sharpness(run, [0, 1], **FAST)
    foreign = stored(run).assign(space="merged")
    pd.concat([stored(run), foreign]).to_parquet(run.analysis_dir / "sharpness.parquet", index=False)
    analyze_sharpness(run, [0], **{**FAST, "num_examples": 2})
    assert len(searches) == 3
    rows = stored(run)[["space", "step", "max_examples", "num_examples"]].to_numpy().tolist()
    assert rows == [["adapter", 0, 2, 2], ["merged", 0, 3, 3], ["merged", 1, 3, 3]]
    pair = analyze_sharpness(run, [0], k=2, **{**FAST, "num_examples": 2})
    assert len(searches) == 4
    assert pair["index"].tolist() == [0, 1]
    assert pair["value"].is_monotonic_decreasing
    assert len(analyze_sharpness(run, [0], k=1, **{**FAST, "num_examples": 2})) == 1
    assert len(searches) == 4


def test_an_unfinished_search_is_taken_up_with_a_larger_budget_only(run: Run, searches: list[EigenResult]) -> None:
    for max_matvecs, count, converged in ((2, 1, False), (2, 1, False), (200, 2, True), (2, 2, True)):
        frame = analyze_sharpness(run, [2], max_matvecs=max_matvecs, **FAST)
        assert len(searches) == count
        assert frame["converged"].tolist() == [converged]


def test_another_snapshot_of_the_same_step_is_measured_anew(run: Run, searches: list[EigenResult]) -> None:
    before = analyze_sharpness(run, [2], **FAST)
    tensors = run.snapshots().tensors(2)
    attempt = run.begin_attempt()
    writer = attempt.snapshot_writer("params", run_layout(tensors))
    writer.put(2, [tensor + 0.01 for tensor in tensors.values()])
    writer.close()
    attempt.close()
    after = analyze_sharpness(run, [2], **FAST)
    assert len(searches) == 2
    assert after["value"].iloc[0] != before["value"].iloc[0]
    assert len(stored(run)) == 1


def run_layout(tensors: dict[str, torch.Tensor]) -> Any:
    from landscape.store import SnapshotLayout

    return SnapshotLayout.from_tensors(tensors)


def test_diverged_parameters_are_a_row_without_a_value(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, measure = [], SharpnessTracker.measure

    def diverges(self: SharpnessTracker, **options: Any) -> EigenResult:
        calls.append(options)
        if len(calls) == 2:
            raise NonFiniteLossError("the loss is nan")
        return measure(self, **options)

    monkeypatch.setattr(SharpnessTracker, "measure", diverges)
    for _ in range(2):
        frame = analyze_sharpness(run, [0, 1, 2], **FAST)
        assert len(calls) == 3
        assert [math.isnan(value) for value in frame["value"]] == [False, True, False]
        assert frame["converged"].tolist() == [True, False, True]
        assert frame["reason"].isna().tolist() == [True, False, True]
        assert frame["reason"].iloc[1] == "the loss is nan"
        assert len(set(frame["num_labels"])) == 1


ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"space": "mergd"}, UsageError, "space: 'mergd' is not known; allowed: adapter, .* Did you mean 'merged'?"),
    ({"matrix": "gn"}, UsageError, "matrix: 'gn' is not known; allowed: ggn, hessian"),
    ({"which": "top"}, UsageError, "which: 'top' is not known; allowed: largest, smallest"),
    ({"backend": "cockpit"}, UsageError, "backend: 'cockpit' is not known; allowed: landscape, pyhessian"),
    ({"backend": "pyhessian", "space": "merged"}, UsageError, "'pyhessian' measures the adapter space's whole Hessian"),
    ({"backend": "pyhessian", "which": "smallest"}, UsageError, "which: 'smallest' with backend='pyhessian'"),
    ({"space": "preconditioned"}, StoreError, r"second moments were not captured.*capture: \{moments: true\}"),
    ({"k": 0}, UsageError, "k: 0; allowed: at least 1"),
    ({"every": 0}, UsageError, "every: 0; allowed: at least 1"),
    ({"num_examples": 0}, UsageError, "num_examples: 0; allowed: at least 1"),
    ({"batch_size": -1}, UsageError, "batch_size: -1; allowed: at least 1"),
    ({"tol": 1.0}, UsageError, "tol: 1.0; allowed: greater than 0 and less than 1"),
    ({"k": 3, "max_matvecs": 2}, UsageError, "max_matvecs: 2; allowed: at least k = 3"),
    ({"steps": [0, 7]}, StoreError, "no snapshot of step 7; the nearest is 4"),
    ({"steps": [3], "every": 2}, StoreError, "no snapshot at a multiple of 2 steps"),
    ({"steps": []}, StoreError, "no snapshot to measure"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_are_checked_before_anything_is_loaded(
    stores: Stores,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr("landscape.analysis.series.open_run", None)
    with pytest.raises(error, match=message):
        analyze_sharpness(only_run(stores("lora")), **arguments)


def test_a_damaged_result_file_is_named(run: Run) -> None:
    run.analysis_dir.mkdir()
    path = run.analysis_dir / "sharpness.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(StoreError, match=r"sharpness\.parquet is damaged .* delete it to measure again"):
        analyze_sharpness(run, [0], **FAST)
    pd.DataFrame({"step": [0]}).to_parquet(path)
    with pytest.raises(StoreError, match=r"sharpness\.parquet has no column 'space'"):
        analyze_sharpness(run, [0], **FAST)
