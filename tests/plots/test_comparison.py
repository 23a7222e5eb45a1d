"""The table of methods against a plain computation over the runs, and what its words say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from landscape.errors import StoreError
from landscape.figures import FIGURES
from landscape.plots import RunData, method_comparison, table, to_matplotlib, to_plotly
from landscape.plots.comparison import MOST_ROWS, common_rate, final_metric, own_split, scores
from tests.synthetic_runs import run

RATES = (1e-4, 4e-4, 1.6e-3)


def scored(loss: float, f1: float = 0.8, **changes) -> RunData:
    """A run whose last evaluation is known; accuracy is 1 - loss."""
    data = run(max_steps=40, **changes)
    last = data.evaluations["step"] == data.evaluations["step"].max()
    frame = data.evaluations.assign(accuracy=0.5, accuracy_standard_error=0.02, f1=0.5)
    frame.loc[last, ["loss", "accuracy", "f1"]] = [loss, 1 - loss, f1]
    environment = {"device": "cpu", "threads": 1}
    return replace(data, evaluations=frame, environment=environment)


def grid() -> list[RunData]:
    """LoRA is best at the middle rate, DoRA at the highest, MGPO over DoRA at the lowest; one LoRA run diverges."""
    losses = {("lora", None): (0.5, 0.3, 0.4), ("dora", None): (0.6, 0.5, 0.2), ("mgpo", "dora"): (0.3, 0.4, 0.6)}
    runs = [
        scored(loss + 0.02 * seed, method=method, adapter=adapter, learning_rate=rate, seed=seed)
        for (method, adapter), row in losses.items()
        for rate, loss in zip(RATES, row, strict=True)
        for seed in range(3)
    ]
    lost = next(r for r in runs if r.cell.method == "lora" and r.cell.learning_rate == 1.6e-3)
    runs[runs.index(lost)] = replace(lost, state="diverged")
    return runs


def numbers(runs: list[RunData]) -> pd.DataFrame:
    return table(method_comparison(runs)).set_index(["method", "metric", "at"])


def test_every_number_of_the_table() -> None:
    frame = numbers(grid())
    for method, best, rate in [("LoRA", 0.32, 4e-4), ("DoRA", 0.22, 1.6e-3), ("mgpo-dora", 0.32, 1e-4)]:
        own = frame.loc[method, "eval loss", "best rate"]
        assert (own["value"], own["sd"]) == (pytest.approx(best), pytest.approx(0.02))
        assert (own["n"], own["diverged"], own["learning_rate"]) == (3, 0, rate)
        assert frame.loc[method, "accuracy", "best rate"]["value"] == pytest.approx(1 - best)
        assert frame.loc[method, "learning rate", "best rate"]["value"] == rate
        assert frame.loc[method, "seconds a step", "best rate"]["value"] == pytest.approx(0.02)
    # All at LoRA's best rate.
    for method, loss in [("LoRA", 0.32), ("DoRA", 0.52), ("mgpo-dora", 0.42)]:
        common = frame.loc[method, "eval loss", "common rate"]
        assert (common["value"], common["learning_rate"]) == (pytest.approx(loss), 4e-4)


def test_the_words_name_scale_seeds_edges_and_divergence() -> None:
    figure = method_comparison(grid())
    for part in ("model tiny", "task arithmetic", "rank 8", "α 16", "steps 40", "256", "CPU, 1 thread"):
        assert part in figure.chosen
    notes = " ".join(figure.notes)
    assert "N = 3 seeds;" in notes
    assert "standard error of 0.020" in notes
    assert "1e-4, 4e-4, 1.6e-3" in notes
    assert "cannot tell methods apart" not in notes
    rates = {tile.lines[0] for tile in figure.panels[-1].tiles.tiles if tile.column == 0}  # type: ignore[union-attr]
    assert rates == {"4e-4", "1.6e-3 ‡", "1e-4 ‡"}
    two = method_comparison([r for r in grid() if r.seed != 2])
    assert "Two seeds give an idea of the spread and cannot tell methods apart" in " ".join(two.notes)


def test_a_diverged_rate_is_never_best_and_is_marked_where_it_stands() -> None:
    runs = [replace(r, state="diverged") if r.seed == 0 and r.method == "dora" else r for r in grid()]
    figure = method_comparison(runs)
    frame = table(figure).set_index(["method", "metric", "at"])
    assert math.isnan(frame.loc["DoRA", "eval loss", "best rate"]["value"])
    common = frame.loc["DoRA", "eval loss", "common rate"]
    assert (common["n"], common["diverged"], common["value"]) == (2, 1, pytest.approx(0.53))
    assert "some of the runs diverged" in " ".join(figure.notes)


def test_better_is_darker_in_losses_and_in_scores() -> None:
    loss, accuracy, *_ = method_comparison(grid()).panels
    for panel in (loss, accuracy):
        tiles = [tile for tile in panel.tiles.tiles if tile.column == 1]  # type: ignore[union-attr]
        dora = panel.tiles.rows.index("DoRA")  # type: ignore[union-attr]
        assert max(tiles, key=lambda tile: tile.share).row == dora


def test_an_average_is_what_its_method_is_for() -> None:
    data = scored(0.4, method="ema")
    averaged = data.evaluations.query("split == 'eval'").assign(split="eval-ema", loss=0.1)
    data = replace(data, evaluations=pd.concat([data.evaluations, averaged]))
    assert own_split(data) == "eval-ema"
    assert final_metric(data, "loss").value == 0.1
    assert own_split(scored(0.4)) == "eval"
    assert "(ema) the average was evaluated" in " ".join(method_comparison([data, scored(0.3)]).notes)


def test_the_common_rate_without_lora_is_that_of_most() -> None:
    runs = [scored(0.1, method="dora", learning_rate=1e-3), scored(0.2, method="mgpo", learning_rate=5e-4)]
    runs.append(scored(0.3, method="ggpo", learning_rate=5e-4))
    assert common_rate(scores(runs)) == 5e-4


def test_runs_of_unknown_rate_have_one_column() -> None:
    runs = [scored(0.1, method=name) for name in ("a", "b")]
    runs = [replace(one, config={**one.config, "learning_rate": None}) for one in runs]
    figure = method_comparison(runs)
    assert [len(panel.tiles.columns) for panel in figure.panels] == [1, 1, 1, 2]  # type: ignore[union-attr]
    assert "–" in {tile.lines[0] for tile in figure.panels[-1].tiles.tiles}  # type: ignore[union-attr]


def test_a_large_store_shows_its_best_settings() -> None:
    runs = [scored(1 + 0.01 * index, method="lora", weight_decay=index / 100) for index in range(MOST_ROWS + 3)]
    figure = method_comparison(runs)
    assert len(figure.panels[0].tiles.rows) == MOST_ROWS  # type: ignore[union-attr]
    assert figure.missing == ("3 settings of higher eval loss than these.",)


def test_runs_that_have_not_ended_are_in_no_table() -> None:
    runs = [replace(scored(0.3, method=name), state="running") for name in ("lora", "mgpo")]
    assert scores(runs) == []
    assert FIGURES["methods"].build([*grid(), *runs])
    with pytest.raises(StoreError, match="figure methods needs finished, evaluated runs of two methods"):
        FIGURES["methods"].build(runs)


def test_both_renderers_have_room_for_every_row() -> None:
    runs = [scored(float(np.sin(index)) + 2, method=f"m{index}") for index in range(30)]
    figure = method_comparison(runs)
    page = to_matplotlib(figure)
    (height,) = {round(ax.get_position().height * page.get_figheight(), 3) for ax in page.axes}
    assert height >= 30 * 0.19
    assert to_plotly(figure).layout.height > 30 * 20
