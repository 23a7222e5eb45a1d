"""From trained runs to results in their folders."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from landscape.analysis import analyze_gap, analyze_sharpness, open_run, restore
from landscape.config import RunConfig
from landscape.curvature import EigenResult, NonFiniteLossError, top_eigenvalues
from landscape.errors import StoreError, UsageError
from landscape.generalization import generalization_gap
from landscape.loss import forward_losses, mean_loss
from landscape.store import Run, Store
from landscape.store.snapshots import write_base_tensors
from landscape.training import train

SETTINGS: dict[str, Any] = {
    "model": "tiny", "task": "arithmetic", "rank": 2, "learning_rate": 5e-3, "max_steps": 4,
    "per_device_train_batch_size": 4, "train_examples": 32, "eval_examples": 6, "probe_examples": 6, "eval_steps": 2,
    "save_steps": 0, "base_loss": False, "capture": {"every": 1},
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "mgpo": {"method": "mgpo", "rank": 4, "alpha": "r"},
    "full": {"method": "full", "model": "tiny-t5", "learning_rate": 1e-3},
}
FAST: dict[str, Any] = {"tol": 1e-2, "num_examples": 3, "device": "cpu"}


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The store of a run of `RUNS`, trained once and not to be written to."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "store"
            train(RunConfig.parse({**SETTINGS, **RUNS[name]}), made[name])
        return made[name]

    return make


@pytest.fixture
def run(stores: Callable[[str], Path], tmp_path: Path) -> Run:
    """A LoRA run of 4 steps in a store of one's own."""
    shutil.copytree(stores("lora"), tmp_path / "store")
    return only_run(tmp_path / "store")


def only_run(store: Path) -> Run:
    return Store.open(store).runs()[0]


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# --- restore ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_restored_model_has_the_losses_that_were_measured_in_training(
    stores: Callable[[str], Path], name: str
) -> None:
    run = only_run(stores(name))
    measured = run.evaluations().set_index(["split", "step"])["loss"]
    restored = open_run(run, device="cpu")
    for step in (4, 0, 2):
        restored.load(step)
        for split in ("eval", "probe"):
            batches = getattr(restored.data, split).batches(4)
            with torch.no_grad():
                loss = mean_loss(forward_losses(restored.model, batch) for batch in batches)
            assert loss.value == pytest.approx(measured[split, step], rel=1e-5)


def test_restore_gives_the_captured_parameters(run: Run) -> None:
    model, data = restore(run, 3, device="cpu")
    captured = run.snapshots().tensors(3)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == captured.keys()
    assert all(torch.equal(trainable[name], captured[name]) for name in captured)
    assert not any(module.training for module in model.modules())
    assert len(data.probe) == 6


def test_base_tensors_that_the_method_rewrote_are_loaded(run: Run) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    write_base_tensors(run.path / "attempts" / "1", {name: torch.full((96, 96), 0.5)})
    model, _ = restore(run, 4, device="cpu")
    assert torch.equal(model.get_parameter(name), torch.full((96, 96), 0.5))


def rename_first_tensor(run: Run) -> None:
    def change(values: dict[str, Any]) -> None:
        values["streams"]["params"]["tensors"][0]["name"] = "somewhere.else"

    edit_json(run.path / "attempts" / "1" / "snapshots.json", change)


def rewrite_unknown_base(run: Run) -> None:
    write_base_tensors(run.path / "attempts" / "1", {"somewhere.else": torch.zeros(2)})


def forget_digest(what: str) -> Callable[[Run], None]:
    return lambda run: edit_json(run.path / "identity.json", lambda values: values["digests"].update({what: "other"}))


def set_rank(run: Run) -> None:
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("rank: 2", "rank: 3"))


UNFIT: dict[str, tuple[Callable[[Run], None], str]] = {
    "renamed": (rename_first_tensor, "the snapshot of step 1 lacks 1 trainable tensors, such as base_model"),
    "foreign base": (rewrite_unknown_base, "the stored base model holds somewhere.else, which the model does not have"),
    "other rank": (
        set_rank,
        r"the snapshot of step 1: base_model\S* is \(2, 96\) torch.float32, the model's \(3, 96\)",
    ),
    "other data": (forget_digest("data"), "the data is no longer what it was trained on"),
    "other model": (forget_digest("model"), "the model is no longer what it was trained on"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(run: Run, name: str) -> None:
    damage, message = UNFIT[name]
    damage(run)
    with pytest.raises(StoreError, match=message):
        restore(run, 1, device="cpu")


def test_a_step_that_was_not_captured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.analysis.restored.open_run", None)  # nothing is loaded
    with pytest.raises(StoreError, match="no snapshot of step 9; the nearest is 4"):
        restore(run, 9)


# --- sharpness --------------------------------------------------------------------------------------------------------


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keyword arguments of every search for eigenvalues."""
    calls: list[dict[str, Any]] = []

    def recorded(*arguments: Any, **options: Any) -> EigenResult:
        calls.append(options)
        return top_eigenvalues(*arguments, **options)

    monkeypatch.setattr("landscape.curvature.top_eigenvalues", recorded)
    return calls


def stored(run: Run) -> pd.DataFrame:
    return pd.read_parquet(run.analysis_dir / "sharpness.parquet")


def test_sharpness_is_that_of_the_restored_model_on_the_probe(run: Run) -> None:
    frame = analyze_sharpness(run, [4, 0], device="cpu")
    assert frame[["step", "index"]].to_numpy().tolist() == [[0, 0], [4, 0]]
    assert frame["converged"].all()
    assert (frame["residual"] <= 1e-3).all()
    assert set(frame["space"]) == {"adapter"}
    assert set(frame["split"]) == {"probe"}
    for step in (0, 4):
        model, data = restore(run, step, device="cpu")
        expected = top_eigenvalues(model, data.probe.batches(4), seed=9)  # other batches, another start
        rows = frame[frame["step"] == step]
        np.testing.assert_allclose(rows["value"], expected.values, rtol=1e-4)
        assert set(rows["num_labels"]) == {expected.num_labels}
        assert set(rows["num_examples"]) == {6}
        assert rows["loss"].iloc[0] == pytest.approx(expected.loss, rel=1e-6)
        measured = run.evaluations().set_index(["split", "step"])["loss"]
        assert rows["loss"].iloc[0] == pytest.approx(measured["probe", step], rel=1e-5)
    pd.testing.assert_frame_equal(stored(run), frame)


def test_searches_start_from_the_step_before_and_are_not_repeated(run: Run, searches: list[dict[str, Any]]) -> None:
    first = analyze_sharpness(run, every=2, **FAST)
    assert first["step"].tolist() == [0, 2, 4]
    assert [call["start"] is None for call in searches] == [True, False, False]
    again = analyze_sharpness(run, every=2, **FAST)
    assert len(searches) == 3
    pd.testing.assert_frame_equal(first, again)
    more = analyze_sharpness(run, [4, 3, 3], **FAST)
    assert len(searches) == 4
    assert more["step"].tolist() == [3, 4]
    assert stored(run)["step"].tolist() == [0, 2, 3, 4]


def test_an_interrupted_analysis_goes_on_where_it_stopped(
    run: Run, searches: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> EigenResult:
        if len(searches) == 2:
            raise KeyboardInterrupt
        searches.append(options)
        return top_eigenvalues(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("landscape.curvature.top_eigenvalues", interrupt)
        with pytest.raises(KeyboardInterrupt):
            analyze_sharpness(run, **FAST)
    assert stored(run)["step"].tolist() == [0, 1]
    frame = analyze_sharpness(run, **FAST)
    assert len(searches) == 5
    assert frame["step"].tolist() == [0, 1, 2, 3, 4]


def test_other_settings_replace_the_rows_of_the_space(run: Run, searches: list[dict[str, Any]]) -> None:
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


def test_an_unfinished_search_is_taken_up_with_a_larger_budget_only(run: Run, searches: list[dict[str, Any]]) -> None:
    for max_matvecs, count, converged in ((2, 1, False), (2, 1, False), (200, 2, True), (2, 2, True)):
        frame = analyze_sharpness(run, [2], max_matvecs=max_matvecs, **FAST)
        assert len(searches) == count
        assert frame["converged"].tolist() == [converged]


def test_another_snapshot_of_the_same_step_is_measured_anew(run: Run, searches: list[dict[str, Any]]) -> None:
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
    calls = []

    def diverges(*arguments: Any, **options: Any) -> EigenResult:
        calls.append(options)
        if len(calls) == 2:
            raise NonFiniteLossError("the loss is nan")
        return top_eigenvalues(*arguments, **options)

    monkeypatch.setattr("landscape.curvature.top_eigenvalues", diverges)
    for _ in range(2):
        frame = analyze_sharpness(run, [0, 1, 2], **FAST)
        assert len(calls) == 3
        assert [math.isnan(value) for value in frame["value"]] == [False, True, False]
        assert frame["converged"].tolist() == [True, False, True]
        assert frame["num_labels"].nunique() == 1


ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"space": "mergd"}, UsageError, "space: 'mergd' is not known; allowed: adapter"),
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
    stores: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr("landscape.analysis.sharpness.open_run", None)
    with pytest.raises(error, match=message):
        analyze_sharpness(only_run(stores("lora")), **arguments)


def test_a_damaged_result_file_is_named(run: Run) -> None:
    run.analysis_dir.mkdir()
    path = run.analysis_dir / "sharpness.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(StoreError, match=r"sharpness\.parquet is damaged .* delete it to measure again"):
        analyze_sharpness(run, [0], **FAST)
    pd.DataFrame({"step": [0]}).to_parquet(path)
    with pytest.raises(StoreError, match=r"sharpness\.parquet has no column 'index'"):
        analyze_sharpness(run, [0], **FAST)


# --- gap --------------------------------------------------------------------------------------------------------------


def test_the_gap_comes_from_the_runs_evaluations(run: Run) -> None:
    frame = analyze_gap(run)
    assert frame["step"].tolist() == [0, 2, 4]
    pd.testing.assert_frame_equal(frame, generalization_gap(run.evaluations()))
    pd.testing.assert_frame_equal(pd.read_parquet(run.analysis_dir / "gap.parquet"), frame)


def test_a_run_without_evaluations_has_no_gap(run: Run) -> None:
    run.begin_attempt().close()
    run.set_status(state="running")
    with pytest.raises(StoreError, match="no step at which both the eval and the probe split were evaluated yet"):
        analyze_gap(run)
    assert not run.analysis_dir.exists()


def test_importing_the_analyses_is_light() -> None:
    code = (
        "import sys, landscape.analysis\n"
        "heavy = [name for name in ('torch', 'transformers', 'pandas', 'scipy') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
