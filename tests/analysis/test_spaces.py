"""Which coordinates curvature is measured in, and what that takes from the run's folder."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from landscape.analysis import analyze_sharpness, captured_steps, restore
from landscape.analysis.spaces import CapturedSpace, is_balanceable
from landscape.config import RunConfig
from landscape.curvature import top_eigenvalues
from landscape.errors import StoreError, UsageError
from landscape.store import Run
from tests.analysis.trained_runs import FAST


def by_hand(run: Run, step: int) -> torch.Tensor:
    """Adam's step sizes (n,) from the captured moments and the logged learning rate, in the order of the stream."""
    moments = torch.cat([moment.reshape(-1) for moment in run.snapshots("adam_v").tensors(step).values()]).double()
    rate = run.metrics().set_index("step")["learning_rate"][step]
    denominator = moments.sqrt() / (1 - 0.999**step) ** 0.5 + 1e-8
    return torch.where(moments > 0, rate / (1 - 0.9**step) / denominator, 0.0)


def test_the_first_step_of_the_run_was_that_of_its_preconditioner(moments_run: Run) -> None:
    """m is a tenth of the first gradient and v a thousandth of its square, so ‖θ₁ - θ₀‖ follows from D and v alone."""
    model, _ = restore(moments_run, 1, device="cpu")
    scale = CapturedSpace(moments_run, "preconditioned").preconditioner(model, 1)
    assert scale is not None
    streams = [moments_run.snapshots().tensors(0), moments_run.snapshots().tensors(1)]
    moved = torch.cat([(streams[1][name] - before).reshape(-1) for name, before in streams[0].items()]).double()
    second = torch.cat([m.reshape(-1) for m in moments_run.snapshots("adam_v").tensors(1).values()]).double()
    assert bool(moved.any())
    torch.testing.assert_close(moved.abs(), scale * 0.1 * (second / 1e-3).sqrt(), rtol=1e-4, atol=1e-8)


def test_preconditioned_sharpness_is_that_of_adams_step_sizes(moments_run: Run) -> None:
    assert captured_steps(moments_run, "preconditioned") == [1, 2, 3, 4]
    frame = analyze_sharpness(moments_run, [2, 4], space="preconditioned", **FAST)
    for step in (2, 4):
        model, data = restore(moments_run, step, device="cpu")
        batches = list(data.probe.batches(3, range(3)))
        expected = top_eigenvalues(model, batches, preconditioner=by_hand(moments_run, step), tol=1e-3, seed=5)
        row = frame[frame["step"] == step].iloc[0]
        assert row["value"] == pytest.approx(expected.values[0], rel=1e-3)
        assert row["threshold"] == pytest.approx(38)
        assert row["threshold_ratio"] == pytest.approx(row["value"] / 38)
    assert set(frame["space"]) == {"preconditioned"}


def test_other_spaces_have_no_threshold(run: Run) -> None:
    frame = analyze_sharpness(run, [1], **FAST)
    assert frame[["threshold", "threshold_ratio"]].isna().to_numpy().all()


def test_new_moments_of_the_same_step_are_measured_anew(moments_run: Run) -> None:
    space = CapturedSpace(moments_run, "preconditioned")
    assert space.checksum(2) != CapturedSpace(moments_run, "adapter").checksum(2)
    assert space.checksum(2) == CapturedSpace(moments_run, "preconditioned").checksum(2) != space.checksum(3)


def test_there_are_no_moments_before_the_first_step(moments_run: Run) -> None:
    with pytest.raises(StoreError, match="no second moments of step 0; Adam has none before step 1"):
        analyze_sharpness(moments_run, [0], space="preconditioned", **FAST)


def test_a_run_without_moments_says_how_to_capture_them(run: Run) -> None:
    with pytest.raises(StoreError, match=r"not captured.*train with capture: \{moments: true\} \(--set capture.mom"):
        captured_steps(run, "preconditioned")


def test_a_learning_rate_that_was_not_logged(moments_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = moments_run.metrics()
    monkeypatch.setattr(Run, "metrics", lambda self: metrics.assign(learning_rate=math.nan))
    with pytest.raises(StoreError, match="the learning rate of step 2 was not logged"):
        analyze_sharpness(moments_run, [2], space="preconditioned", **FAST)


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "merged": ({"space": "merged"}, {"space": "merged"}),
    "balanced": ({"space": "balanced"}, {"balance": True}),
    "ggn": ({"matrix": "ggn"}, {"matrix": "ggn"}),
    "smallest": ({"which": "smallest"}, {"which": "smallest"}),
}


@pytest.mark.parametrize("name", SAME)
def test_options_reach_the_search(run: Run, name: str) -> None:
    """On another search: other start, one batch, tighter."""
    ours, theirs = SAME[name]
    frame = analyze_sharpness(run, [3], **ours, **FAST)
    model, data = restore(run, 3, device="cpu")
    expected = top_eigenvalues(model, list(data.probe.batches(3, range(3))), tol=1e-3, seed=7, **theirs)
    np.testing.assert_allclose(frame["value"], expected.values, rtol=1e-3)
    assert frame["num_parameters"].tolist() == [expected.num_parameters]


def test_other_matrices_have_tables_of_their_own(run: Run) -> None:
    analyze_sharpness(run, [1], matrix="ggn", **FAST)
    analyze_sharpness(run, [1], which="smallest", **FAST)
    assert sorted(path.name for path in run.analysis_dir.iterdir()) == [
        "sharpness-ggn.parquet", "sharpness-smallest.parquet",
    ]  # fmt: skip
    assert set(pd.read_parquet(run.analysis_dir / "sharpness-ggn.parquet")["matrix"]) == {"ggn"}


def test_a_space_that_is_undefined_at_a_step_is_a_row_without_a_value(run: Run) -> None:
    for _ in range(2):
        frame = analyze_sharpness(run, [0, 4], space="balanced", **FAST)
        assert [math.isnan(value) for value in frame["value"]] == [True, False]
        assert "at initialization B is 0" in frame["reason"].iloc[0]
        assert len(set(frame["num_labels"])) == 1
    with pytest.raises(UsageError, match="at initialization B is 0, so measure after the first step"):
        analyze_sharpness(run, [0], space="balanced", **FAST)


def test_pyhessian_cross_checks(run: Run) -> None:
    pytest.importorskip("pyhessian", reason="pip install 'lora-landscape[pyhessian]'")
    ours = analyze_sharpness(run, [4], **FAST)
    # PyHessian stops at a change of tol between two iterations, so its error is many times that.
    theirs = analyze_sharpness(run, [4], backend="pyhessian", **{**FAST, "tol": 1e-5})
    assert theirs["value"].iloc[0] == pytest.approx(ours["value"].iloc[0], rel=1e-2)
    assert theirs[["backend", "which"]].to_numpy().tolist() == [["pyhessian", "magnitude"]]
    assert (run.analysis_dir / "sharpness-pyhessian.parquet").is_file()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "lora"}, True),
        ({"method": "pissa"}, True),
        ({"method": "ggpo"}, True),
        ({"method": "dora"}, False),
        ({"method": "adalora"}, False),
        ({"method": "sam", "adapter": "dora"}, False),
        ({"method": "full"}, False),
    ],
)
def test_which_adapters_have_balanced_coordinates(settings: dict[str, str], expected: bool) -> None:
    assert is_balanceable(RunConfig.parse(settings)) is expected
