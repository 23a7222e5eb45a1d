"""Trace, density and layers along a run, and what all analyses share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landscape.analysis import analyze_density, analyze_layers, analyze_sharpness, analyze_trace, restore
from landscape.analysis.questions import QUESTIONS
from landscape.analysis.series import unanswered
from landscape.curvature import NonFiniteLossError, layer_eigenvalues, spectral_density, trace
from landscape.errors import UsageError
from landscape.store import Run
from tests.analysis.trained_runs import Stores, only_run

PLACE: dict[str, Any] = {"num_examples": 2, "device": "cpu"}


def restored(run: Run, step: int) -> tuple[Any, list[Any]]:
    model, data = restore(run, step, device="cpu")
    return model, list(data.probe.batches(2, range(2)))


def test_trace(run: Run) -> None:
    frame = analyze_trace(run, [4, 2], num_probes=5, seed=3, **PLACE)
    assert frame["step"].tolist() == [2, 4]
    for step in (2, 4):
        expected = trace(*restored(run, step), num_probes=5, seed=3)
        row = frame[frame["step"] == step].iloc[0]
        assert row["value"] == pytest.approx(expected.value, rel=1e-5)
        assert row["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)
        assert row["loss"] == pytest.approx(expected.loss, rel=1e-6)
        assert (row["num_matvecs"], row["num_parameters"], row["split"]) == (5, expected.num_parameters, "probe")
    pd.testing.assert_frame_equal(pd.read_parquet(run.analysis_dir / "trace.parquet"), frame)


def test_density(run: Run) -> None:
    frame = analyze_density(run, [3], num_steps=6, num_probes=2, seed=1, **PLACE)
    expected = spectral_density(*restored(run, 3), num_steps=6, num_probes=2, seed=1)
    stored = pd.read_parquet(run.analysis_dir / "density.parquet").iloc[0]
    for key in ("grid", "density", "standard_error"):
        np.testing.assert_allclose(stored[key], getattr(expected, key), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stored["nodes"].reshape(2, 6), expected.quadrature.nodes, rtol=1e-3, atol=1e-6)
    assert np.trapezoid(stored["density"], stored["grid"]) == pytest.approx(1, abs=1e-3)
    assert stored["weights"].reshape(2, 6).sum(axis=1) == pytest.approx(1)
    assert stored["largest"] == pytest.approx(expected.quadrature.largest, rel=1e-4)
    assert frame["num_matvecs"].tolist() == [12]


def test_layers(run: Run) -> None:
    frame = analyze_layers(run, [4], group="block", tol=0.05, **PLACE)
    expected = layer_eigenvalues(*restored(run, 4), group="block", tol=0.05)
    assert frame["layer"].tolist() == list(expected.names)
    assert frame["index"].tolist() == list(range(len(expected.names)))
    np.testing.assert_allclose(frame["value"], expected.values, rtol=1e-4)
    assert frame["layer_parameters"].sum() == frame["num_parameters"].iloc[0]
    assert frame["num_matvecs"].tolist() == expected.num_matvecs.tolist()


CHEAP: dict[str, tuple[Callable[..., pd.DataFrame], dict[str, Any], str]] = {
    "sharpness": (analyze_sharpness, {"tol": 0.1, "max_matvecs": 3}, "landscape.curvature.SharpnessTracker.measure"),
    "trace": (analyze_trace, {"num_probes": 2}, "landscape.curvature.trace"),
    "density": (analyze_density, {"num_steps": 2, "num_probes": 1}, "landscape.curvature.spectral_density"),
    "layers": (analyze_layers, {"group": "block", "max_matvecs": 1}, "landscape.curvature.layer_eigenvalues"),
}
"""Each analysis at its cheapest, and what it measures with."""


def failing(*arguments: Any, **options: Any) -> Any:
    raise NonFiniteLossError("the loss is nan")


@pytest.mark.parametrize("name", CHEAP)
def test_what_is_known_is_not_measured_again(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    analyze, options, _ = CHEAP[name]
    question = QUESTIONS[name](**options, num_examples=2)
    assert unanswered(run, question, [0, 1, 2]) == [0, 1, 2]
    first = analyze(run, [1], **options, **PLACE)
    assert unanswered(run, question, [0, 1, 2]) == [0, 2]
    assert unanswered(run, QUESTIONS[name](**options), [1]) == [1]  # on another number of examples
    monkeypatch.setattr("landscape.analysis.series.open_run", None)  # nothing is loaded
    pd.testing.assert_frame_equal(analyze(run, [1], **options, **PLACE), first)


@pytest.mark.parametrize("name", CHEAP)
def test_a_diverged_snapshot_has_a_row_without_values(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    analyze, options, measured = CHEAP[name]
    monkeypatch.setattr(measured, failing)
    frame = analyze(run, [0, 1], **options, **PLACE)
    assert frame["step"].tolist() == [0, 1]
    assert frame["reason"].tolist() == ["the loss is nan"] * 2
    assert all(math.isnan(loss) for loss in frame["loss"])
    assert all(count > 0 for count in frame["num_labels"])
    monkeypatch.setattr("landscape.analysis.series.open_run", None)
    assert len(analyze(run, [0, 1], **options, **PLACE)) == 2


@pytest.mark.parametrize("name", ["trace", "density"])
def test_pyhessian_has_tables_of_its_own(run: Run, name: str) -> None:
    pytest.importorskip("pyhessian", reason="pip install 'lora-landscape[pyhessian]'")
    analyze, options, _ = CHEAP[name]
    frame = analyze(run, [4], backend="pyhessian", **options, **PLACE)
    assert set(frame["backend"]) == {"pyhessian"}
    assert [path.name for path in run.analysis_dir.iterdir()] == [f"{name}-pyhessian.parquet"]
    assert math.isfinite(frame["loss"].iloc[0])


def test_tables_from_before_a_column_was_added(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    analyze, options, _ = CHEAP["sharpness"]
    first = analyze(run, [1], **options, **PLACE)
    path = run.analysis_dir / "sharpness.parquet"
    added = ["matrix", "backend", "which", "cold", "product", "threshold", "threshold_ratio", "reason"]
    pd.read_parquet(path).drop(columns=added).to_parquet(path, index=False)
    monkeypatch.setattr("landscape.analysis.series.open_run", None)
    again = analyze(run, [1], **options, **PLACE)
    assert again["value"].tolist() == first["value"].tolist()
    assert again[["matrix", "backend", "which"]].to_numpy().tolist() == [["hessian", "landscape", "largest"]]


REFUSED: list[tuple[Callable[..., pd.DataFrame], dict[str, Any], str]] = [
    (analyze_trace, {"num_probes": 1}, "num_probes: 1; allowed with hutchinson: at least 2"),
    (analyze_trace, {"num_probes": 3, "method": "hutch++"}, r"num_probes: 3; allowed with hutch\+\+: at least 4"),
    (analyze_trace, {"method": "hutch"}, "method: 'hutch' is not known"),
    (analyze_trace, {"method": "hutch++", "backend": "pyhessian"}, "with backend='pyhessian'; allowed: hutchinson"),
    (analyze_trace, {"space": "preconditioned"}, "'preconditioned' is for sharpness; allowed for trace: adapter, mer"),
    (analyze_density, {"num_steps": 0}, "num_steps: 0; allowed: at least 1"),
    (analyze_density, {"num_examples": 0}, "num_examples: 0; allowed: at least 1"),
    (analyze_density, {"space": "merge"}, "space: 'merge' is not known.*Did you mean 'merged'?"),
    (analyze_layers, {"group": "layer"}, "group: 'layer' is not known; allowed: block, module"),
    (analyze_layers, {"tol": 0.0}, "tol: 0.0; allowed: greater than 0"),
    (analyze_layers, {"max_matvecs": 0}, "max_matvecs: 0; allowed: at least 1"),
]


@pytest.mark.parametrize(("analyze", "arguments", "message"), REFUSED)
def test_arguments_are_checked_before_anything_is_loaded(
    stores: Stores,
    monkeypatch: pytest.MonkeyPatch,
    analyze: Callable[..., pd.DataFrame],
    arguments: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("landscape.analysis.series.open_run", None)
    with pytest.raises(UsageError, match=message):
        analyze(only_run(stores("lora")), **arguments)
