"""The tables, ablations and marks as figures, from runs without training behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landscape.errors import StoreError
from landscape.figures import FIGURES
from landscape.plots import RunData, table, to_matplotlib, to_plotly
from landscape.reproduction.experiment import load_experiment
from landscape.reproduction.marks import with_rebounds
from landscape.reproduction.variants import all_variants, variant_of
from tests.synthetic_runs import run, sweep
from tests.synthetic_slices import slice_file


def scored(method: str, score: float, seed: int = 0, task: str = "cola", **changes: Any) -> RunData:
    """A run whose last evaluation has an accuracy."""
    data = run(method=method, seed=seed, max_steps=20, **changes)
    evaluations = data.evaluations.assign(accuracy=np.nan)
    last = (evaluations["split"] == "eval") & (evaluations["step"] == evaluations["step"].max())
    evaluations.loc[last, "accuracy"] = score
    config = {**data.config, "task": task, "method_args": changes.get("method_args", {})}
    return replace(data, config=config, evaluations=evaluations)


def glue() -> list[RunData]:
    return [
        scored(method, score + 0.01 * seed, seed, task)
        for method, score in (("lora", 0.69), ("dora", 0.72), ("lora-plus", 0.75))
        for task in ("cola", "mrpc")
        for seed in range(2)
    ]


def test_a_score_table_has_ours_and_the_papers_numbers() -> None:
    [figure] = FIGURES["table1"].build(glue())
    [panel] = figure.panels
    assert panel.tiles is not None
    assert panel.tiles.rows == ("LoRA+", "DoRA", "LoRA")  # from below
    assert panel.tiles.columns == ("cola", "mrpc", "mean")
    top = {tile.column: tile for tile in panel.tiles.tiles if tile.row == 2}
    assert top[0].lines == ("69.5 ± 0.71", "paper 69.35")
    assert top[2].numbers["paper"] == pytest.approx((69.35 + 68.38) / 2)
    assert [tile.row for tile in panel.tiles.tiles if tile.marked] == [0, 0, 0]
    assert "no runs of Full FT, AdaLoRA" in figure.missing[0]
    drawn = table(figure)
    assert drawn.loc[(drawn["x"] == 0) & (drawn["y"] == 1), "value"].item() == pytest.approx(72.5)


def test_without_scores_losses_are_shown_and_less_is_better() -> None:
    [figure] = FIGURES["table1"].build([run(method=m, seed=s) for m in ("lora", "adalora") for s in range(2)])
    [panel] = figure.panels
    assert panel.tiles is not None
    assert all(len(tile.lines) == 1 for tile in panel.tiles.tiles)
    assert "these runs logged no metric" in figure.notes[0]
    assert figure.title == "Methods on classification tasks: held-out losses"
    values = {tile.row: tile.numbers["value"] for tile in panel.tiles.tiles}
    [best] = [tile.row for tile in panel.tiles.tiles if tile.marked]
    assert values[best] == min(values.values())


def test_long_names_leave_room_for_the_axis_label_at_any_resolution() -> None:
    noise = {"adaptive": True, "direction": "random"}
    runs = [scored("lora", 0.82, seed) for seed in range(2)]
    runs += [scored("mgpo", 0.8, seed, method_args=noise) for seed in range(2)]
    [result] = FIGURES["table4"].build(runs)
    figure = to_matplotlib(result)
    for dpi in (100, 150, 220, 300):
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        assert figure.axes[0].yaxis.label.get_window_extent().x0 >= 0


def test_shades_show_differences_beside_the_seeds_spread() -> None:
    def shares(spread: float) -> list[float]:
        runs = [
            scored(m, 0.7 + gain + spread * seed, seed) for m, gain in (("lora", 0), ("dora", 0.01)) for seed in (0, 1)
        ]
        [tiles] = [panel.tiles for panel in FIGURES["table1"].build(runs)[0].panels]
        assert tiles is not None
        return sorted(tile.share for tile in tiles.tiles)

    assert shares(0.001) == pytest.approx([0.08, 0.7])
    # Seeds 0.1 apart have a standard deviation of 0.0707, of which four are the span.
    assert np.diff(shares(0.1)) == pytest.approx(0.62 * 0.01 / (4 * 0.1 / math.sqrt(2)))


ABLATED = (
    ("lora", {}, "LoRA"),
    ("ggpo", {"weight_norm": True, "gradient_norm": False, "sigma": 0.05}, "+ Weight Norm"),
    ("ggpo", {"weight_norm": False, "gradient_norm": True}, "+ Gradient Norm"),
    ("ggpo", {"weight_norm": True, "gradient_norm": True}, "LoRA-GGPO"),
)


@pytest.mark.parametrize(("method", "arguments", "name"), ABLATED)
def test_variants_are_told_apart_by_their_switches(method: str, arguments: dict, name: str) -> None:
    variants = all_variants([load_experiment("ggpo3")])
    assert variant_of({"method": method, "method_args": arguments}, variants) == name
    assert variant_of({"method": "mgpo", "method_args": {}}, variants) is None
    ranks = all_variants([load_experiment("mgpo-table2")])
    assert variant_of({"method": "lora-ga", "rank": 32, "method_args": {}}, ranks) == "LoRA-GA (rank=32)"
    assert variant_of({"method": "lora-ga", "rank": 8, "method_args": {}}, ranks) == "LoRA-GA"


def test_an_ablation_has_a_point_a_variant() -> None:
    runs = [
        scored(method, 0.7 + 0.02 * i + 0.01 * seed, seed, method_args=arguments)
        for i, (method, arguments, _) in enumerate(ABLATED)
        for seed in range(3)
    ]
    [figure] = FIGURES["ggpo3"].build(runs)
    assert [panel.title for panel in figure.panels] == ["cola", "the paper's mean over its tasks"]
    ours, theirs = figure.panels
    assert [curve.label for curve in ours.curves] == [name for *_, name in ABLATED]
    assert [float(curve.y[0]) for curve in ours.curves] == pytest.approx([71, 73, 75, 77])
    assert [float(curve.y[0]) for curve in theirs.curves] == [82.08, 86.85, 87.66, 88.70]
    curve = ours.curves[0]
    assert curve.lower is not None
    assert float(curve.y[0] - curve.lower[0]) == pytest.approx(1.0)


def test_the_cost_table() -> None:
    switches = {"adaptive": True, "direction": "momentum"}
    runs = [
        replace(run(method=method, method_args=arguments), peak_memory={"rss": memory})
        for method, arguments, memory in (("lora", {}, 10**9), ("mgpo", switches, 2 * 10**9))
    ]
    [figure] = FIGURES["table3"].build(runs)
    drawn = table(figure)
    assert drawn.loc[drawn["x"] == 1, "value"].tolist() == [1000, 2000]
    assert drawn.loc[drawn["x"] == 0, "value"].tolist() == pytest.approx([20, 20])


def episodes(p_value: float, kind: str = "episode", adjust: str = "none", flags: str = "") -> pd.DataFrame:
    row = {"column": "loss_clean", "adjust": adjust, "kind": kind, "onset": 80.0, "peak": 100.0, "recovery": 130.0,
           "p_value": p_value, "flags": flags}  # fmt: skip
    return pd.DataFrame([row])


def marked(p_values: Sequence[float], **more: Any) -> list[RunData]:
    runs = [one for one in sweep(("lora",), (16, 128), seeds=len(p_values)) if one.state == "done"]
    return [replace(one, episodes=episodes(p_values[one.seed or 0], **more)) for one in runs]


def test_rebounds_are_shaded_with_the_smallest_p_of_the_seeds() -> None:
    [figure] = FIGURES["mgpo2"].build([*marked([0.2, 0.01, 0.03]), *sweep(("mgpo",), (16, 128))])
    spans = {panel.title: panel.spans for panel in figure.panels}
    [span] = spans["r = 16"]
    assert (span.start, span.peak, span.stop) == (80, 100, 130)
    assert span.text == "LoRA: p = 0.01, 2 of 3 seeds"
    assert "tested runs rebound (p ≤ 0.05" in " ".join(figure.notes)


def test_what_is_not_significant_is_not_shaded() -> None:
    [figure] = FIGURES["mgpo2"].build([*marked([0.2, 0.5]), *sweep(("mgpo",), (16, 128))])
    assert all(panel.spans == () for panel in figure.panels)
    [untested] = FIGURES["mgpo1"].build(sweep(("lora",)))
    assert "Rebounds were not tested" in " ".join(untested.notes)
    lost = marked([0.01, 0.01], flags="non_finite")
    [figure] = FIGURES["mgpo1"].build(lost)
    assert figure.panels[0].spans == ()


def test_the_adjusted_test_counts_where_there_is_one() -> None:
    runs = marked([0.01, 0.01])
    both = [replace(one, episodes=pd.concat([episodes(0.01), episodes(0.4, adjust="base")])) for one in runs]
    [figure] = FIGURES["mgpo1"].build(both)
    assert figure.panels[0].spans == ()
    [figure] = FIGURES["mgpo1"].build(runs)
    assert figure.panels[0].spans[0].text.startswith("LoRA r = 16: p = 0.01")
    assert with_rebounds(figure, []).notes[-1].startswith("Rebounds were not tested")


def test_numbers_by_rate() -> None:
    runs = sweep(("lora", "mgpo"), (16,), rates=(1e-4, 5e-4), seeds=3, sharp=True)
    [figure] = FIGURES["flatness"].build(runs)
    titles = [panel.title for panel in figure.panels]
    assert titles == ["held-out loss", "generalization gap", "λmax"]
    assert figure.missing == ("balanced λmax of arithmetic.", "width of arithmetic.")
    assert "1 runs diverged." in figure.notes
    curve = figure.panels[0].curves[0]
    last = [one.evaluations.loc[one.evaluations["split"] == "eval", "loss"].iloc[-1]
            for one in runs if one.method == "lora" and one.config["learning_rate"] == 1e-4]  # fmt: skip
    assert curve.y[0] == pytest.approx(np.mean(last))
    assert curve.n is not None
    assert curve.n.tolist() == [3, 2]


def test_bands_of_eigenvalues_are_those_of_its_logarithm() -> None:
    runs = sweep(("lora", "mgpo"), (16,), rates=(1e-4, 5e-4), seeds=3, sharp=True)
    runs = [replace(one, sharpness=one.sharpness.assign(value=7.0 * 100.0 ** one.config["seed"]))
            for one in runs if one.sharpness is not None]  # fmt: skip
    [figure] = FIGURES["flatness"].build(runs)
    curve = figure.panels[2].curves[0]
    assert curve.lower is not None
    assert curve.upper is not None
    # Seeds at 7, 700 and 70000: the mean less its standard deviation would be negative.
    assert (curve.y[0], curve.lower[0], curve.upper[0]) == pytest.approx((700, 7, 70_000))
    assert figure.notes[0].startswith("Means over seeds (of λmax geometric)")


def test_widths_are_of_the_widest_slice_and_at_most_all_of_it() -> None:
    runs = sweep(("lora", "mgpo"), (16,), rates=(1e-4, 5e-4))
    sliced = []
    for one in runs:
        narrow, wide = (slice_file(one.run_id, dims=1, radius=radius) for radius in (1.0, 4.0))
        width = math.inf if one.method == "mgpo" else 2.5
        flat = {**(wide.flatness or {}), "width": (width, 0.1, 3.0)}
        sliced.append(replace(one, slices=[replace(wide, flatness=flat), narrow]))
    [figure] = FIGURES["flatness"].build(sliced)
    [panel] = [panel for panel in figure.panels if panel.title == "width"]
    drawn = {curve.label: curve.y.tolist() for curve in panel.curves}
    assert drawn == {"LoRA": [2.5, 2.5], "LoRA-MGPO": [8.0, 8.0]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table1", r"two of Full FT, LoRA, .*the choice from the store has LoRA \(landscape reproduce ggpo-table1"),
        ("table3", "two of Full FT, LoRA, LoRA-MGPO"),
        ("ggpo3", r"one of \+ Weight Norm, \+ Gradient Norm beside others"),
        ("mgpo4", r"one of LoRA \+ MGPO beside others"),
        ("lr-tuning", "two methods at two learning rates"),
        ("flatness", "two methods at two learning rates, analyzed for λmax or balanced λmax or width"),
    ],
)
def test_a_store_without_the_runs(name: str, message: str) -> None:
    with pytest.raises(StoreError, match=f"figure {name} needs .*{message}"):
        FIGURES[name].build([run()])
    with pytest.raises(StoreError, match=f"figure {name} needs"):
        FIGURES[name].build([replace(run(), evaluations=pd.DataFrame(columns=["step", "split", "loss"]))])


@pytest.mark.parametrize("name", ["table1", "mgpo4", "table4", "lr-tuning"])
def test_both_renderers_draw_them(name: str) -> None:
    ways = ((True, "momentum"), (False, "momentum"), (True, "random"))
    arguments = [{"adaptive": adaptive, "direction": way} for adaptive, way in ways]
    runs = glue() + [scored("mgpo", 0.8, seed, method_args=a) for a in arguments for seed in range(2)]
    runs += [scored("mgpo", 0.8, seed, method_args=arguments[0], learning_rate=1e-3) for seed in range(2)]
    [figure] = FIGURES[name].build(runs)
    height = to_matplotlib(figure).get_size_inches()[1]
    assert math.isfinite(height)
    assert to_plotly(figure).data
