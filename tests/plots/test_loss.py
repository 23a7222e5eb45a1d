"""Training-loss figures: what is averaged, what is marked, what is said about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from landscape.errors import UsageError
from landscape.plots import RunData, loss_curves, table
from landscape.plots.build import inset_range, with_fitting_ranges, with_inset, with_ranges
from landscape.plots.curves import Curve, Panel
from tests.synthetic_runs import run, sweep


def test_the_line_is_the_mean_over_seeds_and_the_band_their_spread() -> None:
    runs = [run(seed=seed) for seed in range(4)]
    [curve] = loss_curves(runs, bandwidth=0).curves()
    values = np.stack([data.metrics["loss_clean"] for data in runs])
    np.testing.assert_allclose(curve.y, values.mean(axis=0))
    np.testing.assert_allclose(curve.upper - curve.y, values.std(axis=0, ddof=1))  # type: ignore[operator]
    assert (curve.n == 4).all()  # type: ignore[union-attr]
    assert curve.band == "±1 sd over seeds"
    for raw, data in zip(curve.raw, runs, strict=True):
        np.testing.assert_array_equal(raw.y, data.metrics["loss_clean"])


def test_one_run_has_no_band_and_says_so() -> None:
    result = loss_curves([run()], bandwidth=0)
    [curve] = result.curves()
    assert (curve.lower, curve.upper, curve.raw) == (None, None, ())
    assert "N = 1 run per line: no spread over seeds is known." in result.notes


def test_smoothing_leaves_the_raw_trace_beneath() -> None:
    data = run()
    [curve] = loss_curves([data], bandwidth=6).curves()
    np.testing.assert_array_equal(curve.raw[0].y, data.metrics["loss_clean"])
    assert curve.y.std() < data.metrics["loss_clean"].std()


@pytest.mark.parametrize(
    ("column", "minus", "label"),
    [
        ("loss_clean", None, "training loss (clean), nats/token"),
        ("loss_perturbed", None, "training loss (perturbed), nats/token"),
        ("loss_clean", "loss_base", "training loss (clean) − base model's loss, nats/token"),
        ("loss_perturbed", "loss_clean", "training loss (perturbed) − clean loss, nats/token"),
    ],
)
def test_the_axis_says_what_the_loss_is(column: str, minus: str | None, label: str) -> None:
    data = run(method="mgpo")
    result = loss_curves([data], column=column, minus=minus, bandwidth=0)
    assert result.panels[0].y_label == label
    expected = data.metrics[column] - (data.metrics[minus] if minus else 0)
    np.testing.assert_allclose(result.curves()[0].y, expected)


def test_the_unit_follows_from_the_labels_an_example_has() -> None:
    data = run()
    single = data.evaluations.assign(num_labels=data.evaluations["num_examples"])
    assert loss_curves([replace(data, evaluations=single)]).panels[0].y_label.endswith("nats/example")


def test_relative_to_the_base_model_most_noise_is_gone() -> None:
    data = run()
    plain, relative = (loss_curves([data], minus=minus, bandwidth=0).curves()[0] for minus in (None, "loss_base"))
    assert np.diff(relative.y).std() < 0.5 * np.diff(plain.y).std()


@pytest.mark.parametrize(
    ("facet", "titles", "columns"),
    [
        (None, [""], 1),
        ("method", ["Full FT", "LoRA", "LoRA-MGPO"], 2),
        ("rank", ["r = 8", "r = 64"], 2),
        ("learning_rate", ["lr = 1e-4", "lr = 5e-4"], 2),
        (
            ("learning_rate", "rank"),
            ["lr = 1e-4, r = 8", "lr = 1e-4, r = 64", "lr = 5e-4, r = 8", "lr = 5e-4, r = 64"],
            2,
        ),
    ],
)
def test_facets(facet, titles: list[str], columns: int) -> None:
    result = loss_curves(sweep(ranks=(8, 64), rates=(1e-4, 5e-4), seeds=1), facet=facet)
    assert [panel.title for panel in result.panels] == titles
    assert result.columns == columns
    assert len({panel.y_range for panel in result.panels}) == 1


def test_full_fine_tuning_is_in_every_rank_panel_that_has_runs() -> None:
    runs = [data for data in sweep(ranks=(8, 64), rates=(1e-4, 5e-4), seeds=1) if data.cell.learning_rate == 1e-4]
    runs += [run(method="full", learning_rate=5e-4), run(rank=8, learning_rate=5e-4, alpha="r")]
    result = loss_curves(runs, facet=("learning_rate", "rank"))
    names = [[curve.label.split()[0] for curve in panel.curves] for panel in result.panels]
    assert names == [["Full", "LoRA", "LoRA-MGPO"], ["Full", "LoRA", "LoRA-MGPO"], ["Full", "LoRA"], []]


def test_colors_are_the_methods_own_across_rank_panels_and_shades_within_one() -> None:
    runs = sweep(methods=("lora", "mgpo"), ranks=(8, 32, 64), seeds=1)
    faceted = loss_curves(runs, facet="rank")
    assert {(curve.label, curve.color) for curve in faceted.curves()} == {("LoRA", "#d55e00"), ("LoRA-MGPO", "#0072b2")}
    assert len({curve.color for curve in loss_curves(runs).curves()}) == 6


def test_a_diverged_run_is_drawn_to_its_end_marked_and_not_averaged_over_later() -> None:
    runs = [run(seed=0), run(seed=1), run(seed=2, diverges_at=100)]
    result = loss_curves(runs, bandwidth=0)
    [curve] = result.curves()
    [end] = curve.ends
    last = runs[2].metrics["loss_clean"].dropna()
    assert (end.x, end.y, end.state) == (99, last.iloc[-1], "diverged")
    assert end.label.startswith("seed 2 diverged at step 100, last value")
    assert curve.n.tolist() == [3] * 99 + [0] + [2] * (len(runs[0].metrics) - 99)  # type: ignore[union-attr]
    assert np.isnan(curve.y[99])
    assert any("1 diverged" in note for note in result.notes)


def test_a_blown_up_run_does_not_flatten_the_others_and_the_note_has_its_value() -> None:
    data = run()
    blown = data.metrics.copy()
    blown.loc[200, "loss_clean"] = 3.2e8
    result = loss_curves([data, replace(run(seed=1), metrics=blown)], bandwidth=0)
    low, high = result.panels[0].y_range  # type: ignore[misc]
    assert low < 0.4
    assert 2 < high < 8
    assert any("3.2e+08" in note for note in result.notes)
    assert loss_curves([replace(data, metrics=blown)], bandwidth=0, log_y=True).panels[0].y_range[1] > 3e8  # type: ignore[index]


def test_a_rebound_and_the_start_are_never_cut() -> None:
    data = run(rank=64)
    low, high = loss_curves([data], bandwidth=0).panels[0].y_range  # type: ignore[misc]
    assert low < data.metrics["loss_clean"].min()
    assert high > data.metrics["loss_clean"].max()


def test_the_axis_holds_the_bands_but_not_the_spread_of_a_blow_up() -> None:
    flat = [
        replace(data, metrics=data.metrics.assign(loss_clean=0.5 + 0.01 * data.seed)) for data in map(_seed, (0, 2))
    ]  # type: ignore[operator]
    result = loss_curves(flat, bandwidth=0)
    [curve] = result.curves()
    low, high = result.panels[0].y_range  # type: ignore[misc]
    assert low < curve.lower.min() < curve.upper.max() < high  # type: ignore[union-attr]
    diverged = loss_curves([run(seed=0), run(seed=1, diverges_at=150)], bandwidth=0)
    assert np.nanmin(diverged.curves()[0].lower) < -0.2  # type: ignore[arg-type]
    assert diverged.panels[0].y_range[0] > -0.2  # type: ignore[index]


def _seed(seed: int) -> RunData:
    return run(seed=seed)


def test_settings_without_the_numbers_are_named_and_do_not_count() -> None:
    without = run(method="mgpo")
    without = replace(without, metrics=without.metrics.drop(columns="loss_clean"))
    queued = replace(run(method="ggpo"), metrics=pd.DataFrame(), state="queued")
    seed = replace(run(seed=1), metrics=pd.DataFrame(), state="running")
    result = loss_curves([run(), seed, without, queued])
    assert result.missing == ("no loss_clean in the metrics of LoRA-MGPO.",)
    assert [curve.label for curve in result.curves()] == ["LoRA"]
    assert "N = 1 run per line: no spread over seeds is known." in result.notes


def test_unequal_numbers_of_seeds_are_said() -> None:
    result = loss_curves([run(seed=0), run(seed=1), run(method="mgpo")])
    assert any("N = 1 to 2 seeds" in note and "N below 2: LoRA-MGPO: 1." in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "loss_clena"}, "column: 'loss_clena' is not known.*Did you mean 'loss_clean'"),
        ({"minus": "base"}, "minus: 'base' is not known; allowed: loss_base, loss_clean"),
        ({"facet": "ranks"}, "facet: 'ranks' is not known.*Did you mean 'rank'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loss_curves([run()], **options)


@pytest.mark.parametrize("runs", [[], [replace(run(), metrics=pd.DataFrame())]])
def test_nothing_to_draw_is_an_empty_panel(runs: list[RunData]) -> None:
    result = loss_curves(runs)
    assert [panel.curves for panel in result.panels] == [()]
    assert len(table(result)) == 0


def test_the_table_holds_the_numbers_drawn() -> None:
    runs = [run(seed=seed) for seed in range(2)]
    result = loss_curves(runs)
    numbers = table(result)
    line = numbers[numbers["series"] == "line"]
    [curve] = result.curves()
    np.testing.assert_array_equal(line["y"], curve.y)
    np.testing.assert_array_equal(line["upper"], curve.upper)
    assert set(numbers[numbers["series"] == "raw"]["run"]) == {"seed 0", "seed 1"}
    assert set(line["n"]) == {2}


def test_no_curve_runs_behind_an_inset() -> None:
    panel = loss_curves([run(rank=64), run(method="full")]).panels[0]
    raised = with_inset(panel, 0, 30)
    bottom, top = raised.y_range  # type: ignore[misc]
    behind = max(raw.y[raw.x > 90].max() for curve in panel.curves for raw in curve.raw)
    assert (behind - bottom) / (top - bottom) < 0.45
    assert raised.inset == (0, 30)


def test_inset_ranges_follow_what_is_in_the_interval() -> None:
    curve = Curve("a", "#000000", np.arange(10.0), np.arange(10.0))
    low, high = inset_range([curve], (2, 4), log_y=False)
    assert low == pytest.approx(1.88)
    assert high == pytest.approx(4.12)
    assert inset_range([curve], (50, 60), log_y=False) == (0.1, 1.0)


def test_one_panel_that_blows_up_does_not_flatten_the_others() -> None:
    def panel(title: str, height: float) -> Panel:
        return Panel(title, (Curve(title, "#000000", np.arange(3.0), np.array([0.0, height, 1.0])),), "")

    near, share, notes = with_fitting_ranges([panel("a", 1.0), panel("b", 3.9)])
    assert (share, notes) == ("all", ())
    assert near[0].y_range == near[1].y_range
    far, share, notes = with_fitting_ranges([panel("a", 1.0), panel("b", 4.1)])
    assert share == "none"
    assert [one.y_range[1] for one in far if one.y_range] == pytest.approx([1.04, 4.1 * 1.04], rel=0.02)
    assert notes == ("Axes differ from panel to panel: the largest would flatten others.",)
    _, share, _ = with_fitting_ranges([replace(panel(t, h), log_y=True) for t, h in (("a", 1.0), ("b", 9.0))])
    assert share == "all"


def test_panels_without_values_get_no_range() -> None:
    panels, notes = with_ranges([Panel("", (), "")], [0])
    assert panels[0].y_range is None
    assert notes == ()
