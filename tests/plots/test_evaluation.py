"""Evaluation losses and the gap, against the package's own definition of the gap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.generalization import generalization_gap
from landscape.plots import evaluation_curves, gap_curves, single_evaluation, train_and_eval_curves
from tests.synthetic_runs import run


def test_one_runs_band_is_the_standard_error() -> None:
    data = run()
    eval_curve, probe = evaluation_curves([data]).curves()
    rows = data.evaluations[data.evaluations["split"] == "eval"]
    np.testing.assert_array_equal(eval_curve.y, rows["loss"])
    np.testing.assert_allclose(eval_curve.upper - eval_curve.y, rows["standard_error"])  # type: ignore[operator]
    assert eval_curve.band == probe.band == "±1 standard error"
    assert (eval_curve.label, probe.label) == ("LoRA, eval (held out)", "LoRA, probe (fixed train subset)")
    assert eval_curve.dash != probe.dash


def test_several_runs_band_is_their_spread() -> None:
    runs = [run(seed=seed) for seed in range(3)]
    [curve] = evaluation_curves(runs, splits=["eval"]).curves()
    values = np.stack([data.evaluations.query("split == 'eval'")["loss"] for data in runs])
    np.testing.assert_allclose(curve.y, values.mean(axis=0))
    np.testing.assert_allclose(curve.y - curve.lower, values.std(axis=0, ddof=1))  # type: ignore[operator]
    assert curve.label == "LoRA"


def test_the_gap_is_that_of_the_analyzer() -> None:
    data = run()
    expected = generalization_gap(data.evaluations)
    for source in (data, replace(data, gap=expected)):
        result = gap_curves([source])
        [curve] = result.curves()
        np.testing.assert_array_equal(curve.x, expected["step"])
        np.testing.assert_allclose(curve.y, expected["gap"])
        np.testing.assert_allclose(curve.upper - curve.y, expected["standard_error"])  # type: ignore[operator]
    low, high = result.panels[0].y_range  # type: ignore[misc]
    assert low < 0 < high
    assert result.panels[0].zero_line


def test_the_gap_needs_both_splits() -> None:
    data = run()
    held_out = data.evaluations[data.evaluations["split"] == "eval"]
    assert gap_curves([replace(data, evaluations=held_out)]).curves() == []


def test_train_and_eval_in_one_panel_with_an_inset() -> None:
    result = train_and_eval_curves([run(), run(method="ggpo")], inset_steps=36)
    assert [panel.title for panel in result.panels] == ["LoRA", "LoRA-GGPO"]
    assert [curve.label for curve in result.panels[1].curves] == [
        "LoRA-GGPO, train (clean)",
        "LoRA-GGPO, eval (held out)",
    ]
    assert {panel.inset for panel in result.panels} == {(0, 36)}
    assert len({panel.y_range for panel in result.panels}) == 1


def test_one_run_with_other_seeds_beneath() -> None:
    first, *others = [run(seed=seed) for seed in range(3)]
    result = single_evaluation(first, others)
    [curve] = result.curves()
    np.testing.assert_array_equal(curve.y, first.evaluations.query("split == 'eval'")["loss"])
    assert [raw.label for raw in curve.raw] == ["seed 1", "seed 2"]
    assert "Faint: 2 further seeds of the same settings." in result.notes
    assert any("no spread over seeds is known" in note for note in single_evaluation(first).notes)


def test_unknown_splits_and_columns_are_refused() -> None:
    with pytest.raises(UsageError, match=r"split: 'evla' is not known.*Did you mean 'eval'"):
        evaluation_curves([run()], splits=["evla"])
    with pytest.raises(UsageError, match="column: 'loss' is not known"):
        train_and_eval_curves([run()], column="loss")
