"""Heat maps over ranks and rates, and methods compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from app.sweep_figures import MEASURES, comparable, comparison_table, heat_map, thinned
from landscape.errors import StoreError
from landscape.plots import RunData, summarize
from tests.synthetic_runs import run, sweep


def with_test(data: RunData, rise: float, p: float) -> RunData:
    row = {
        "column": "loss_clean", "adjust": "none", "kind": "episode", "p_value": p, "run_p_value": p, "rise": rise,
        "rise_area": 10 * rise, "amplitude": rise, "final_eval": summarize(data).held_out.value, "final_train": 1.0,
    }  # fmt: skip
    return replace(data, episodes=pd.DataFrame([row]))


def test_tiles_are_means_over_seeds_and_the_best_rate_is_framed() -> None:
    runs = sweep(("lora",), (8, 32), (1e-4, 5e-4), seeds=2)
    runs = [with_test(one, 0.1 * (index + 1), 0.01) for index, one in enumerate(runs)]
    figure = heat_map(runs, "rise")
    tiles = figure.panels[0].tiles
    assert tiles is not None
    assert (tiles.columns, tiles.rows) == (("1e-4", "5e-4"), ("8", "32"))
    for tile in tiles.tiles:
        rate, rank = (1e-4, 5e-4)[tile.column], (8, 32)[tile.row]
        own = [one for one in runs if (one.cell.learning_rate, one.cell.rank) == (rate, rank)]
        assert tile.numbers["value"] == pytest.approx(np.mean([MEASURES["rise"].of(one) for one in own]), rel=1e-12)
    for row, rank in enumerate((8, 32)):
        means = {}
        for column, rate in enumerate((1e-4, 5e-4)):
            own = [one for one in runs if (one.cell.learning_rate, one.cell.rank) == (rate, rank)]
            if all(one.state != "diverged" for one in own):
                means[column] = np.mean([summarize(one).held_out.value for one in own])
        assert [t.column for t in tiles.tiles if t.row == row and t.marked] == [min(means, key=means.__getitem__)]


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_draws(measure: str) -> None:
    runs = [with_test(one, 0.2, 0.03) for one in sweep(("full", "lora", "mgpo"), (8, 32), seeds=2, sharp=True)]
    figure = heat_map(runs, measure)
    assert [panel.title for panel in figure.panels] == ["Full FT", "LoRA", "LoRA-MGPO"]
    assert MEASURES[measure].help in figure.notes[0]


def test_what_was_not_measured_is_not_drawn() -> None:
    assert heat_map([run(max_steps=60)], "lambda_max").panels == ()


def test_small_p_values_are_dark() -> None:
    runs = [with_test(run(rank=8, max_steps=60), 0.1, 0.001), with_test(run(rank=32, max_steps=60), 0.1, 0.9)]
    tiles = heat_map(runs, "p").panels[0].tiles
    assert tiles is not None
    shares = {tile.row: tile.share for tile in tiles.tiles}
    assert shares[0] > shares[1]


def test_methods_are_compared_on_shared_seeds() -> None:
    runs = [run(method=method, seed=seed, max_steps=60) for method in ("lora", "mgpo") for seed in range(6)]
    runs = [with_test(one, 0.5 if one.method == "lora" else 0.1, 0.001) for one in runs]
    table = comparison_table(comparable(runs).runs, "loss_clean", 0.05)
    assert table["setting"].tolist() == ["fixed config"]
    row = table.iloc[0]
    assert (row["pair"], row["seeds"]) == ("LoRA-MGPO − LoRA", 6)
    assert row["difference"] == pytest.approx(-0.4, rel=1e-12)
    assert row["p"] == 2.0**-5


def test_nothing_tested() -> None:
    with pytest.raises(StoreError, match="no run was tested"):
        comparable([run(max_steps=60)])


def test_long_runs_are_thinned_by_means() -> None:
    data = run(max_steps=200)
    x = np.arange(1, 10_001)
    frame = pd.DataFrame({"step": x, "loss_clean": x / 10_000, "seconds": 1.0})
    thin = thinned(replace(data, metrics=frame)).metrics
    assert len(thin) < 2000
    np.testing.assert_allclose(thin["loss_clean"], thin["step"] / 10_000, rtol=1e-12)
    assert thinned(data) is data
