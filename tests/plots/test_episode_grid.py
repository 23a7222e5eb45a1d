"""Heat maps and comparisons: the numbers of the runs' rows, the same in both renderers, nothing outside its tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landscape.episodes.multiplicity import q_values
from landscape.episodes.sweep import fisher
from landscape.errors import StoreError
from landscape.plots import CurveSet, RunData, episode_grid, table, to_matplotlib, to_plotly
from landscape.plots.episode_grid import episode_outcomes
from landscape.plots.style import contrast
from landscape.plots.tiles import Tile, Tiles
from tests.synthetic_runs import sweep


def with_rows(runs: Sequence[RunData], adjust: str = "none", column: str = "loss_clean") -> list[RunData]:
    """LoRA's runs rebound at the highest rank, by a little more for each seed."""
    result = []
    for data in runs:
        rebounds = data.method == "lora" and data.config["rank"] == 64
        size = 0.05 + 0.01 * (data.seed or 0) + 0.8 * rebounds
        row = {
            "column": column, "adjust": adjust, "kind": "episode", "amplitude": size, "p_value": 0.0005,
            "run_p_value": 0.0005 if rebounds else 0.7, "rise": size, "rise_area": 100 * size,
            "final_eval": 0.4 if data.state == "done" else math.nan, "final_train": 0.5,
        }  # fmt: skip
        result.append(replace(data, episodes=pd.DataFrame([row])))
    return result


@pytest.fixture(scope="module")
def runs() -> list[RunData]:
    return with_rows(sweep(methods=("lora", "mgpo"), ranks=(16, 64), rates=(1e-4, 5e-4), seeds=6))


@pytest.fixture(scope="module")
def figure(runs: list[RunData]) -> CurveSet:
    return episode_grid(runs)


def test_panels(figure: CurveSet) -> None:
    assert [panel.title for panel in figure.panels] == ["LoRA", "LoRA-MGPO", "LoRA-MGPO − LoRA"]
    lora = figure.panels[0].tiles
    assert lora is not None
    assert (lora.columns, lora.rows) == (("1e-4", "5e-4"), ("16", "64"))
    marked = {(tile.column, tile.row) for tile in lora.tiles if tile.marked}
    assert marked == {(0, 1), (1, 1)}
    [diverged] = [tile for tile in lora.tiles if tile.lines[-1] == "1 diverged"]
    assert (diverged.column, diverged.row) == (1, 1)
    assert diverged.lines[:3] == ("0.88", f"p = {fisher([0.0005] * 6):.2g}", "6 of 6")
    assert not [tile for tile in figure.panels[1].tiles.tiles if tile.marked]  # type: ignore[union-attr]


def test_the_table_has_the_numbers_of_the_tiles(figure: CurveSet) -> None:
    tiles = table(figure).query("series == 'tile'")
    assert len(tiles) == 8
    one = tiles[(tiles["panel"] == "LoRA") & (tiles["rank"] == 64) & (tiles["learning_rate"] == 1e-4)].iloc[0]
    assert one["rise"] == pytest.approx(0.875)
    assert one["rise_sd"] == pytest.approx(np.std(0.01 * np.arange(6), ddof=1))
    assert (one["n"], one["rebounding"]) == (6, 6)
    combined = tiles["p_value"].astype(float)
    np.testing.assert_allclose(tiles["q_value"].astype(float), q_values(combined))
    assert "rank" not in table(replace(figure, panels=figure.panels[2:]))


def test_comparisons(figure: CurveSet) -> None:
    curves = {curve.label: curve for curve in figure.panels[2].curves}
    assert list(curves) == ["r = 16", "r = 64", "mean over cells"]
    np.testing.assert_allclose(curves["r = 64"].y, [-0.8, -0.8], rtol=1e-9)
    np.testing.assert_allclose(curves["r = 64"].upper, [-0.8, -0.8], rtol=1e-9)
    np.testing.assert_allclose(curves["r = 16"].y, [0, 0], atol=1e-12)
    np.testing.assert_allclose(curves["mean over cells"].y, [-0.8, -0.4], rtol=1e-9)  # rebounding cells; all ranks
    assert any("LoRA-MGPO lowers the largest rise of the loss against LoRA" in note for note in figure.notes)


def test_five_pairs_are_open_circles() -> None:
    few = episode_grid(with_rows(sweep(methods=("lora", "mgpo"), ranks=(64,), seeds=5)))
    for curve in few.panels[2].curves:
        assert curve.hollow is not None
        assert curve.hollow.all()
    assert any("too few pairs" in note for note in few.notes)


def test_one_method_has_nothing_to_compare() -> None:
    alone = episode_grid(with_rows(sweep(methods=("lora",), ranks=(16, 64), seeds=2)))
    assert [panel.title for panel in alone.panels] == ["LoRA"]
    assert not any("Bars" in note for note in alone.notes)
    to_matplotlib(alone)
    to_plotly(alone)


def test_full_fine_tuning_is_in_every_row() -> None:
    both = episode_grid(with_rows(sweep(methods=("full", "lora"), ranks=(16, 64), seeds=2)))
    full = both.panels[0].tiles
    assert full is not None
    assert [(tile.column, tile.row) for tile in full.tiles] == [(0, 0), (0, 1)]


def test_which_rows_are_drawn() -> None:
    data = sweep(methods=("lora",), ranks=(64,), seeds=3)
    both = [
        replace(run, episodes=pd.concat([raw.episodes, adjusted.episodes]))
        for run, raw, adjusted in zip(data, with_rows(data), with_rows(data, "base"), strict=True)
    ]
    assert episode_outcomes(both)[1] == "none"
    assert episode_outcomes([*with_rows(data)[:1], *with_rows(data, "base")[1:]])[1] == "base"
    assert len(episode_outcomes([*with_rows(data)[:1], *with_rows(data, "base")[1:]])[0]) == 2
    with pytest.raises(StoreError, match="landscape analyze episodes STORE --column grad_norm"):
        episode_outcomes(both, "grad_norm")
    with pytest.raises(StoreError, match="needs tested runs"):
        episode_grid(data)


@pytest.mark.parametrize("share", [-1, 0, 0.3, 0.5, 0.7, 1, 2])
def test_text_can_be_read_on_every_tile(share: float) -> None:
    tile = Tile(0, 0, share, ("0.1",))
    assert contrast(tile.ink, tile.color) >= 4.5


def test_tiles_get_darker() -> None:
    grays = [contrast(Tile(0, 0, share, ("",)).color, "#000000") for share in np.linspace(0, 1, 12)]
    assert (np.diff(grays) < 0).all()


def test_matplotlib_writes_within_the_tiles(figure: CurveSet) -> None:
    page = to_matplotlib(figure)
    page.draw_without_rendering()
    for ax, panel in zip(page.axes, figure.panels, strict=True):
        if panel.tiles is None:
            bars = [c for c in ax.collections if len(c.get_paths())]
            assert sum(len(c.get_paths()) for c in bars) == sum(len(curve.x) for curve in panel.curves)
            continue
        boxes = [patch.get_window_extent() for patch in ax.patches]
        assert len(boxes) == len(panel.tiles.tiles)
        texts = [text for text in ax.texts if text.get_text()]
        assert len(texts) == sum(len(tile.lines) for tile in panel.tiles.tiles)
        for text in texts:
            extent = text.get_window_extent()
            inside = [b for b in boxes if b.x0 <= extent.x0 and extent.x1 <= b.x1 and b.y0 <= extent.y0 + 1]
            assert inside, text.get_text()


def test_plotly_draws_the_same(figure: CurveSet) -> None:
    page = to_plotly(figure)
    plain = page.to_plotly_json()
    rectangles = [shape for shape in plain["layout"]["shapes"] if shape["type"] == "rect"]
    assert len(rectangles) == 8
    assert sum(shape["line"]["width"] > 0 for shape in rectangles) == 2
    [lora, _] = [trace for trace in plain["data"] if trace["name"] == "tiles"]
    assert lora["text"][0].startswith("<b>0.07</b><br>")
    assert list(plain["layout"]["xaxis"]["ticktext"]) == ["1e-4", "5e-4"]
    bars = [trace for trace in plain["data"] if "error_y" in trace]
    assert [trace["name"] for trace in bars] == ["r = 16", "r = 64", "mean over cells"]
    drawn: Any = next(trace for trace in page.data if trace.name == "r = 64")  # type: ignore[attr-defined]
    np.testing.assert_allclose(drawn.y + drawn.error_y.array, [-0.8, -0.8], rtol=1e-5)
    assert {trace["mode"] for trace in bars} == {"markers"}
    # The heat maps' columns and the comparisons' places are not one axis.
    assert "matches" not in plain["layout"]["xaxis3"]
    to_plotly(figure, theme="dark")


def test_an_empty_heat_map_draws() -> None:
    panel = episode_grid(with_rows(sweep(methods=("lora",), ranks=(64,), seeds=2))).panels[0]
    empty = CurveSet("", (replace(panel, tiles=Tiles(("1",), ("2",), ())),))
    to_matplotlib(empty)
    to_plotly(empty)
