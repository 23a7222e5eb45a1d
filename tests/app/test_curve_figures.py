"""What the curves page draws: the numbers, no lost spike, at most so many points, and whose line is whose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from app.charts import clickable, clicked, description, plain
from app.curve_figures import (
    BOTH,
    NAMES,
    QUANTITIES,
    CurveView,
    binned,
    click_targets,
    curve_figure,
    enveloped,
    single_run,
)
from landscape.errors import UsageError
from landscape.plots import POINT_BUDGET, reduce, to_plotly
from landscape.plots.curves import Trace
from landscape.plots.envelope import count_points
from tests.synthetic_runs import run, sweep


def test_raw_values_are_the_runs() -> None:
    data = run(max_steps=100)
    figure = curve_figure([data], CurveView(smoothing=0))
    curve = figure.result.panels[0].curves[0]
    np.testing.assert_array_equal(curve.y, data.metrics["loss_clean"])
    assert figure.members == ((data.run_id,),)
    assert "nats/token" in figure.result.panels[0].y_label


@pytest.mark.parametrize("quantity", NAMES)
def test_every_quantity_draws(quantity: str) -> None:
    runs = sweep(("lora", "mgpo"), (8, 32), seeds=2)
    figure = curve_figure(runs, CurveView(quantity=quantity, facet=("rank",)))
    drawn = sum(len(panel.curves) for panel in figure.result.panels)
    assert drawn == len(figure.members) == (8 if quantity == BOTH else 4)
    assert all(len(ids) == 2 for ids in figure.members)
    assert figure.result.panels[0].x_label == "optimizer step"
    if quantity in QUANTITIES and QUANTITIES[quantity].signed:
        assert figure.result.panels[0].zero_line


def test_members_belong_to_their_curves() -> None:
    runs = sweep(("full", "lora"), (8, 32), seeds=1)
    figure = curve_figure(runs, CurveView(facet=("rank",), smoothing=0))
    by_id = {one.run_id: one for one in runs}
    curves = [curve for panel in figure.result.panels for curve in panel.curves]
    assert len(curves) == len(figure.members) == 4  # full fine-tuning joins both ranks
    for curve, (run_id,) in zip(curves, figure.members, strict=True):
        finite = np.isfinite(curve.y)
        loss = by_id[run_id].metrics["loss_clean"].to_numpy()
        np.testing.assert_array_equal(curve.y[finite], loss[np.isfinite(loss)])


def long_run(steps: int, seed: int = 0) -> object:
    data = run(max_steps=200, seed=seed)
    x = np.arange(1, steps + 1)
    noise = np.random.default_rng(seed).normal(0, 0.05, steps)
    frame = pd.DataFrame({"step": x, "loss_clean": 1 + 1 / x + noise, "loss_perturbed": 1.0, "grad_norm": 1.0})
    return replace(data, metrics=frame, step=steps, max_steps=steps)


@pytest.mark.parametrize("smoothing", [0.0, 1.5])
def test_no_spike_is_lost_and_the_budget_holds(smoothing: float) -> None:
    runs = [long_run(10_000, seed) for seed in range(12)]
    for number, one in enumerate(runs):
        one.metrics.loc[4321 + 7 * number, "loss_clean"] = 50.0 + number  # type: ignore[attr-defined]
    figure = curve_figure(runs, CurveView(smoothing=smoothing))  # type: ignore[arg-type]
    drawn = reduce(figure.result)
    assert count_points(drawn) <= POINT_BUDGET
    peaks = {float(trace.y.max()) for curve in drawn.curves() for trace in curve.raw}
    assert peaks == {50.0 + number for number in range(12)}


def test_bins_are_means_on_a_grid_that_runs_share() -> None:
    x = np.arange(1, 10_001, dtype=float)
    first = binned(Trace(x, x), 10)
    assert first.x[:3].tolist() == [1, 2, 3]
    np.testing.assert_allclose(first.y, first.x, rtol=1e-12)  # the mean of steps 101..110 is the bin's middle
    second = binned(Trace(x[:8000], np.ones(8000)), 10)
    assert set(second.x) <= set(first.x)
    short = Trace(x[:50], x[:50])
    assert binned(short, 10) is short


def test_envelopes_keep_extremes() -> None:
    y = np.zeros(10_000)
    y[[17, 9_000]] = 5, -5
    kept = enveloped(Trace(np.arange(10_000.0), y), 200)
    assert (kept.y.max(), kept.y.min()) == (5, -5)
    assert len(kept.y) < 400


def test_log_steps_leave_out_step_zero() -> None:
    figure = curve_figure([run(max_steps=60)], CurveView(quantity="eval", log_x=True))
    assert figure.result.panels[0].log_x
    assert figure.result.panels[0].curves[0].x.min() == 10


def test_rebounds_are_shaded_with_their_p_value() -> None:
    rows = pd.DataFrame(
        {
            "column": ["loss_clean", "loss_clean", "grad_norm"], "kind": ["episode", "episode", "episode"],
            "onset": [20.0, 40.0, 20.0], "peak": [25.0, 45.0, 25.0], "recovery": [30.0, 50.0, 30.0],
            "p_value": [0.001, 0.4, 0.001],
        }
    )  # fmt: skip
    data = replace(run(max_steps=60), episodes=rows)
    spans = curve_figure([data], CurveView()).result.panels[0].spans
    assert [(span.start, span.peak, span.stop, span.text) for span in spans] == [(20, 25, 30, "episode, p = 0.001")]
    assert not curve_figure([data], CurveView(episodes=False)).result.panels[0].spans


def test_runs_without_the_quantity_are_counted() -> None:
    data = run(max_steps=60)
    other = replace(run(seed=1, max_steps=60), metrics=data.metrics.drop(columns="grad_norm"))
    figure = curve_figure([data, other], CurveView(quantity="grad_norm"))
    assert figure.members == ((data.run_id,),)
    assert "1 run, which did not log it" in figure.result.missing[0]


@pytest.mark.parametrize(("view", "match"), [
    (CurveView(quantity="los"), "quantity: 'los'"), (CurveView(facet=("seed",)), "facet: 'seed'"),
])  # fmt: skip
def test_unknown_names(view: CurveView, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        curve_figure([run(max_steps=60)], view)


def test_an_inset_repeats_a_stretch() -> None:
    panel = curve_figure([run()], CurveView(inset=(0, 50))).result.panels[0]
    assert panel.inset == (0, 50)


def test_a_step_is_marked() -> None:
    spans = single_run(run(max_steps=60), 30).panels[0].spans
    assert (spans[-1].peak, spans[-1].text) == (30, "step 30")


def test_clicks_lead_to_runs_and_steps() -> None:
    runs = sweep(("lora",), (8, 32), seeds=2)
    figure = curve_figure(runs, CurveView(facet=("rank",)))
    made = clickable(to_plotly(figure.result), figure)
    targets = [trace for trace in made.data if trace.name == "click"]
    assert len(targets) == 2
    assert {trace.xaxis for trace in targets} == {"x", "x2"}
    for trace, ids in zip(targets, figure.members, strict=True):
        assert trace.customdata[0][0] == ids[0]
        assert [int(step) for _, step in trace.customdata] == [round(x) for x in trace.x]
        assert len(trace.x) <= 120
    point = {"customdata": [figure.members[0][0], 17]}
    assert clicked({"selection": {"points": [{"x": 1}, point]}}) == (figure.members[0][0], 17)


@pytest.mark.parametrize("event", [None, {}, {"selection": {"points": []}}, {"selection": {"points": [{"x": 3}]}},
                                   {"selection": {"points": [{"customdata": ["a", "b"]}]}}])  # fmt: skip
def test_other_clicks_lead_nowhere(event: object) -> None:
    assert clicked(event) is None


def test_targets_are_on_the_line() -> None:
    curve = curve_figure([run()], CurveView()).result.panels[0].curves[0]
    x, y = click_targets(curve, 50)
    assert len(x) == 50
    assert all(y[i] == curve.y[curve.x == x[i]][0] for i in range(50))


def test_text_is_escaped() -> None:
    assert plain("<b>*x*</b> :red[y] $1$") == r"\<b\>\*x\*\</b\> \:red\[y\] \$1\$"


def test_figures_are_described() -> None:
    said = description(curve_figure([run(max_steps=60)], CurveView()).result)
    assert "training loss (clean), nats/token against optimizer step" in said
