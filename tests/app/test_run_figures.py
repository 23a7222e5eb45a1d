"""Costs, spectra, layers and scatter plots: the numbers that are drawn."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.index import RunIndex, RunRow
from app.run_figures import (
    COSTS,
    density_figure,
    frontier,
    known_costs,
    label,
    layer_figure,
    pareto,
    scatter_figure,
    scores,
    short_layer,
    snapshot_table,
)
from landscape.plots.evaluation import gap_series
from tests.synthetic_runs import run, write


def test_the_frontier_is_what_nothing_beats() -> None:
    points = [tuple(point) for point in np.random.default_rng(0).integers(0, 12, (40, 2)).tolist()]
    found = frontier(points)
    for x, y in found:
        assert not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    for a, b in points:
        assert any(x <= a and y <= b for x, y in found)
    assert frontier([]) == []


@pytest.fixture
def trained(tmp_path: Path) -> list[RunRow]:
    """Four runs with costs and a score, of which one has none."""
    runs = [run(method=method, seed=seed, max_steps=60) for method, seed in itertools.product(("lora", "mgpo"), (0, 1))]
    for one in runs:
        one.metrics["seconds"] = 0.02 + 0.01 * one.config["seed"]
        one.evaluations["token_accuracy"] = 0.5 + 0.1 * one.config["seed"]
    store = write(runs, tmp_path / "store")
    for number, one in enumerate(store.runs()[:-1]):
        one.set_status(peak_memory={"rss": (number + 1) * 10**9})
    return list(RunIndex(store).rows())


@pytest.mark.parametrize("cost", COSTS)
def test_pareto_holds_every_run_with_a_loss(cost: str, trained: list[RunRow]) -> None:
    figure = pareto(trained, cost)
    by_label = {curve.label: curve for curve in figure.panels[0].curves}
    if cost in ("wall", "gpu"):  # these runs were never started, and on no device
        assert not by_label
        return
    assert {"LoRA", "LoRA-MGPO"} <= set(by_label)
    losses = sorted(row.tail.eval_loss or 0 for row in trained if row.config["method"] == "lora")
    assert sorted(by_label["LoRA"].y.tolist()) == losses
    expected = {"rank": {8.0}, "time": {1.2, 1.8}, "memory": {1.0, 2.0}}[cost]
    assert {round(x, 6) for x in by_label["LoRA"].x.tolist()} == expected
    assert figure.panels[0].x_label == COSTS[cost].axis
    assert len(by_label["LoRA-MGPO"].x) == 2 - (cost == "memory")


def test_costs_that_no_run_has_are_not_offered(trained: list[RunRow]) -> None:
    assert known_costs(trained) == ["time", "memory", "rank"]
    assert known_costs([]) == []


def test_a_score_may_be_better_when_larger(trained: list[RunRow]) -> None:
    offered = scores(trained)
    assert set(offered) == {"eval", "train", "token_accuracy"}
    figure = pareto(trained, "time", offered["token_accuracy"])
    front = next(curve for curve in figure.panels[0].curves if curve.label == "not beaten in both")
    np.testing.assert_allclose(np.stack([front.x, front.y]), [[1.2, 1.8], [0.5, 0.6]], rtol=1e-12)
    assert figure.panels[0].y_label == "last token accuracy (held out)"


def test_density_draws_the_steps_asked_for() -> None:
    grid = np.linspace(-1, 10, 50)
    rows = [{"step": s, "space": "adapter", "grid": grid, "density": np.exp(-((grid - s) ** 2))} for s in (0, 5, 9)]
    rows.append({"step": 5, "space": "merged", "grid": grid, "density": np.ones(50)})
    rows.append({"step": 9, "space": "adapter", "grid": [], "density": []})
    panel = density_figure(pd.DataFrame(rows), [5, 9], "adapter").panels[0]
    assert [curve.label for curve in panel.curves] == ["step 5", "step 9"]
    assert panel.log_y
    curve = panel.curves[0]
    np.testing.assert_allclose(curve.y, np.exp(-((curve.x - 5) ** 2)), rtol=1e-12)
    assert len({curve.color for curve in panel.curves}) == 2


def test_layers_are_a_heat_map() -> None:
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    rows = [
        {"step": step, "space": "adapter", "layer": name, "value": float(step + index), "converged": index == 0}
        for step in (0, 10)
        for index, name in enumerate(names)
    ]
    rows.append({"step": 20, "space": "adapter", "layer": None, "value": np.nan, "converged": False})
    tiles = layer_figure(pd.DataFrame(rows), "adapter").panels[0].tiles
    assert tiles is not None
    assert (tiles.columns, tiles.rows) == (("0", "10"), ("1 up_proj", "0 q_proj"))
    assert {(tile.column, tile.row, tile.lines[0]) for tile in tiles.tiles} == {
        (0, 1, "0"), (0, 0, "1?"), (1, 1, "10"), (1, 0, "11?"),
    }  # fmt: skip


def test_snapshots_hold_sharpness_and_gap_of_one_step() -> None:
    data = run(sharp=True)
    table = snapshot_table([data])
    assert data.sharpness is not None
    gaps = gap_series(data, "gap")
    for row in table.to_dict("records"):
        own = data.sharpness[(data.sharpness["step"] == row["step"]) & (data.sharpness["index"] == 0)]
        assert row["adapter"] == own["value"].iloc[0]
        assert row["gap"] == gaps.y[gaps.x == row["step"]][0]
    assert len(table) == 13
    curve = scatter_figure(table, "adapter", "gap").panels[0].curves[0]
    assert sorted(curve.x.tolist()) == sorted(table["adapter"].tolist())
    assert curve.bars


def test_labels(tmp_path: Path) -> None:
    rows = RunIndex(write([run(max_steps=60), run(method="full", max_steps=60)], tmp_path / "store")).rows()
    assert sorted(map(label, rows)) == ["Full FT, lr = 5e-4, seed 0", "LoRA, r = 8, lr = 5e-4, seed 0"]


@pytest.mark.parametrize(("name", "short"), [("m.layers.3.mlp.up_proj", "3 up_proj"), ("lm_head", "lm_head")])
def test_layers_have_short_names(name: str, short: str) -> None:
    assert short_layer(name) == short
