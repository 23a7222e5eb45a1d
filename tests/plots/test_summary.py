"""Final numbers of runs and cells against NumPy, and which learning rate is called best."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from landscape.plots import best_learning_rates, learning_rate_curves, summarize, summarize_cells, without_rate
from tests.synthetic_runs import run, sweep


def test_a_runs_numbers() -> None:
    data = run(sharp=True)
    summary = summarize(data)
    tail = data.metrics["loss_clean"].to_numpy()[-12:]  # 5 % of 240 steps
    assert summary.train.value == pytest.approx(tail.mean())
    assert summary.train.error == pytest.approx(tail.std(ddof=1) / math.sqrt(12))
    last = data.evaluations.query("step == 240").set_index("split")
    assert summary.held_out.value == last.loc["eval", "loss"]
    assert summary.held_out.error == last.loc["eval", "standard_error"]
    assert summary.gap.value == pytest.approx(last.loc["eval", "loss"] - last.loc["probe", "loss"])
    assert summary.gap.error == pytest.approx(math.sqrt(2) * 0.03)
    [peak] = summary.peaks
    assert (peak.space, peak.last_step, peak.highest_step) == ("adapter", 240, 240)


def test_a_run_without_measurements_has_none() -> None:
    summary = summarize(replace(run(), metrics=pd.DataFrame(), evaluations=pd.DataFrame()))
    assert not summary.train
    assert not summary.held_out
    assert not summary.gap
    assert summary.peaks == ()


def test_cells_average_over_finished_seeds_only() -> None:
    runs = [run(seed=0), run(seed=1), run(seed=2, diverges_at=100)]
    [row] = summarize_cells(runs)
    values = [summarize(data).held_out.value for data in runs[:2]]
    assert row.held_out.value == pytest.approx(np.mean(values))
    assert row.held_out.error == pytest.approx(np.std(values, ddof=1))
    assert (row.finished, row.diverged) == (2, 1)


def test_the_best_rate_has_the_lowest_loss_among_those_without_divergence() -> None:
    runs = []
    for rate, loss in ((1e-4, 0.9), (5e-4, 0.5), (1e-3, 0.7), (5e-3, 0.1)):
        data = run(learning_rate=rate, diverges_at=100 if rate == 5e-3 else None)
        runs.append(replace(data, evaluations=data.evaluations.assign(loss=loss)))
    rows = summarize_cells(runs)
    best = best_learning_rates(rows)
    assert [(key, row.cell.learning_rate) for key, row in best.items()] == [(without_rate(rows[0].cell), 5e-4)]


def test_final_loss_by_learning_rate() -> None:
    runs = sweep(methods=("lora", "mgpo"), ranks=(8, 64), rates=(1e-4, 5e-4, 1e-3), seeds=3)
    result = learning_rate_curves(runs)
    assert [panel.title for panel in result.panels] == ["r = 8", "r = 64"]
    assert [[curve.label for curve in panel.curves] for panel in result.panels] == [["LoRA", "LoRA-MGPO"]] * 2
    lora, mgpo = result.panels[1].curves
    [end] = lora.ends
    assert (end.x, end.y, end.state) == (1e-3, math.inf, "diverged")
    assert end.label == "1 of 3 runs diverged (seed 2)"
    assert lora.n is not None
    assert lora.n.tolist() == [3, 3, 2]
    assert lora.hollow is not None
    assert lora.hollow.tolist() == [False, False, True]
    done = [data for data in runs if data.method == "mgpo" and data.config["rank"] == 64]
    expected = [
        np.mean([summarize(data).held_out.value for data in done if data.cell.learning_rate == rate])
        for rate in (1e-4, 5e-4, 1e-3)
    ]
    np.testing.assert_allclose(mgpo.y, expected)
    assert result.panels[0].x_ticks == ((1e-4, "1e-4"), (5e-4, "5e-4"), (1e-3, "1e-3"))


def test_many_rates_get_few_ticks_with_both_ends() -> None:
    runs = [run(learning_rate=rate) for rate in np.geomspace(1e-5, 1e-2, 20)]
    ticks = learning_rate_curves(runs).panels[0].x_ticks
    assert len(ticks) == 6
    assert (ticks[0][1], ticks[-1][1]) == ("1e-5", "1e-2")


def test_a_rate_at_which_all_diverged_is_still_marked() -> None:
    runs = [run(learning_rate=1e-4), run(learning_rate=1e-2, diverges_at=50)]
    [curve] = learning_rate_curves(runs).curves()
    assert curve.y[0] > 0
    assert math.isnan(curve.y[1])
    assert [end.x for end in curve.ends] == [1e-2]
