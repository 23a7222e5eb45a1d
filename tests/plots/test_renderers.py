"""One result, two renderers: the same numbers, nothing overlapping, nothing interpreted."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from landscape.plots import (
    POINT_BUDGET,
    CurveSet,
    RunData,
    color_map,
    evaluation_curves,
    gap_curves,
    learning_rate_curves,
    loss_curves,
    sharpness_curves,
    to_matplotlib,
    to_plotly,
    train_and_eval_curves,
)
from landscape.plots.matplotlib_page import RC, plain
from landscape.plots.matplotlib_renderer import spread
from landscape.plots.plotly_page import recolored
from landscape.plots.style import PAPER, dark_variant
from tests.synthetic_runs import run, sweep

FIGURES: dict[str, Callable[[], CurveSet]] = {
    "one panel": lambda: loss_curves(sweep(methods=("full", "lora"), seeds=2), title="By rank"),
    "log axis": lambda: loss_curves([run(), run(seed=1, diverges_at=90)], log_y=True),
    "four panels": lambda: loss_curves(sweep(seeds=2), facet="rank", title="LoRA, MGPO and full fine-tuning"),
    "three panels": lambda: loss_curves(sweep(ranks=(8, 16, 32), seeds=1), facet="rank", minus="loss_base"),
    "grid": lambda: loss_curves(sweep(ranks=(8, 64), rates=(1e-4, 5e-4), seeds=1), facet=("learning_rate", "rank")),
    "insets": lambda: train_and_eval_curves([run(), run(method="ggpo")], inset_steps=36),
    "evaluation": lambda: evaluation_curves(sweep(ranks=(64,), seeds=1), facet="method", wrap=3),
    "gap": lambda: gap_curves(sweep(seeds=2), facet="rank", wrap=4),
    "sharpness": lambda: sharpness_curves(sweep(ranks=(8, 64), seeds=1, sharp=True), facet="rank"),
    "threshold": lambda: sharpness_curves([preconditioned()], log_y=True),
    "rates": lambda: learning_rate_curves(sweep(ranks=(8, 64), rates=(1e-4, 5e-4, 1e-3), seeds=2)),
    "many methods": lambda: loss_curves([run(method=m) for m in ("lora", "mgpo", "ggpo", "dora", "rslora", "pissa")]),
    "empty": lambda: loss_curves([]),
}


def preconditioned() -> RunData:
    data = run(sharp=True)
    assert data.sharpness is not None
    return replace(data, sharpness=data.sharpness.assign(space="preconditioned", threshold=38.0))


@pytest.fixture(params=FIGURES)
def result(request: pytest.FixtureRequest) -> CurveSet:
    return FIGURES[request.param]()


def texts(figure: Figure) -> list[Text]:
    return [item for item in figure.findobj(Text) if isinstance(item, Text) and item.get_visible() and item.get_text()]


def test_no_two_texts_overlap_and_all_are_on_the_page(result: CurveSet) -> None:
    figure = to_matplotlib(result)
    with mpl.rc_context(RC):
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [(item.get_text(), item.get_window_extent(renderer)) for item in texts(figure)]
    drawn = [(text, box) for text, box in boxes if box.width > 0 and figure.bbox.padded(40).overlaps(box)]
    page = figure.bbox
    for text, box in drawn:
        if _is_number(text):  # a tick label at an axis's end may be clipped away by the axis limits
            continue
        assert box.x0 >= page.x0 - 1, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y0 >= page.y0 - 1, text
        assert box.y1 <= page.y1 + 1, text
    words = [(text, box.padded(-0.5)) for text, box in drawn if not _is_number(text)]
    for (first, one), (second, other) in itertools.combinations(words, 2):
        assert not one.overlaps(other), (first, second)


def _is_number(text: str) -> bool:
    try:
        float(text.replace("−", "-"))
    except ValueError:
        return text.startswith("$")
    return True


def test_both_renderers_draw_the_results_numbers(result: CurveSet) -> None:
    interactive = to_plotly(result)
    curves = result.curves()
    main = [trace for trace in interactive.data if trace.customdata is not None]
    insets = sum(len(panel.curves) for panel in result.panels if panel.inset)
    assert len(main) == len(curves) + insets
    static = [ax for ax in to_matplotlib(result).axes if ax.get_label() != "inset_axes"]
    for ax, panel in zip(static[: len(result.panels)], result.panels, strict=True):
        drawn = [(line.get_xdata(), line.get_ydata()) for line in ax.lines]
        for curve in panel.curves:
            assert any(np.array_equal(curve.x, x) and np.array_equal(curve.y, y, equal_nan=True) for x, y in drawn)
            assert any(
                np.allclose(curve.x, trace.x) and np.allclose(curve.y, trace.y, rtol=1e-6, equal_nan=True)
                for trace in main
                if trace.name == " ".join(curve.label.split()) and len(trace.x) == len(curve.x)
            )


def test_panels_above_each_other_show_the_same_steps() -> None:
    data = run(sharp=True)
    assert data.sharpness is not None
    late = replace(data, sharpness=data.sharpness.query("step >= 160"))
    result = sharpness_curves([late])
    assert result.panels[0].curves[0].x.min() < 10 < result.panels[1].curves[0].x.min()
    assert len({ax.get_xlim() for ax in to_matplotlib(result).axes}) == 1
    layout = to_plotly(result).to_plotly_json()["layout"]
    assert layout["xaxis2"]["matches"] == "x"


def test_plotly_uses_svg_and_one_legend_entry_a_label(result: CurveSet) -> None:
    figure = to_plotly(result)
    assert {trace.type for trace in figure.data} <= {"scatter"}
    entries = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(entries) == sorted(" ".join(curve.label.split()) for curve in result.legend())


def test_ends_are_marked_at_the_last_value_or_at_the_top_when_it_lies_above() -> None:
    runs = [run(seed=0), run(seed=1), run(seed=2, diverges_at=150)]
    result = loss_curves(runs, bandwidth=0)
    [mark] = [trace for trace in to_plotly(result).data if trace.name == "end"]
    assert mark.x == (149,)
    assert mark.marker.symbol == ("x-thin",)
    assert mark.text[0].startswith("LoRA: seed 2 diverged at step 150")
    rates = learning_rate_curves([run(learning_rate=1e-4), run(learning_rate=1e-2, diverges_at=50)])
    [top] = [trace for trace in to_plotly(rates).data if trace.name == "end"]
    assert top.marker.symbol == ("triangle-up",)
    assert top.y[0] == pytest.approx(rates.panels[0].y_range[1])  # type: ignore[index]


def test_a_band_below_zero_is_drawn_down_to_the_logarithmic_axis() -> None:
    runs = [run(seed=0), run(seed=1, diverges_at=150)]
    result = loss_curves(runs, bandwidth=0, log_y=True)
    [band] = [trace for trace in to_plotly(result).data if trace.fill]
    assert np.nanmin(result.curves()[0].lower) < 0  # type: ignore[arg-type]
    assert np.min(band.y) == pytest.approx(result.panels[0].y_range[0], rel=1e-6)  # type: ignore[index]


HOSTILE = "<script>alert(1)</script> $x^2$ <b>&amp;\n\t</b> %{y}"


def test_strings_of_the_store_are_text() -> None:
    result = loss_curves([run(method=HOSTILE), run()], facet="method", title=HOSTILE)
    figure = to_plotly(result)
    for text in [*(note.text for note in figure.layout.annotations), *(trace.name for trace in figure.data)]:
        assert "<script" not in text
        assert "<b>&amp;amp;" in text or "&lt;script&gt;" in text or "script" not in text
    static = to_matplotlib(result)
    static.canvas.draw()
    assert any(item.get_text() == plain(HOSTILE) and r"\$x^2\$" in item.get_text() for item in texts(static))


def test_large_figures_stay_within_the_budget_and_keep_their_spikes() -> None:
    data = run(max_steps=30_000)
    metrics = data.metrics.copy()
    metrics.loc[12_345, "loss_clean"] = 3.75
    runs = [type(data)(**{**vars(data), "metrics": metrics, "config": {**data.config, "seed": s}}) for s in range(3)]
    figure = to_plotly(loss_curves(runs, bandwidth=0))
    assert sum(len(trace.x) for trace in figure.data) <= POINT_BUDGET * 1.1
    assert all(np.nanmax(trace.y) == 3.75 for trace in figure.data if trace.fill is None)


def test_the_dark_theme_is_the_color_map_applied() -> None:
    result = loss_curves(sweep(ranks=(8, 64), seeds=2), facet="rank")
    light, dark = to_plotly(result), to_plotly(result, theme="dark")
    colors = color_map(light)
    assert colors[PAPER] == dark.layout.paper_bgcolor == dark_variant(PAPER)
    assert colors["#d55e00"] == dark_variant("#d55e00")
    assert recolored(light.to_plotly_json()["layout"], colors) == dark.to_plotly_json()["layout"]
    assert "#ffffff" not in str(dark.layout)


def test_without_heading_the_page_prints_title_and_notes() -> None:
    result = loss_curves([run()], title="Title of mine")
    assert any("Title of mine" in note.text for note in to_plotly(result).layout.annotations)
    bare = to_plotly(result, heading=False)
    assert all("Title of mine" not in note.text for note in bare.layout.annotations)
    assert bare.layout.height < to_plotly(result).layout.height


def test_equal_results_give_equal_files() -> None:
    result = loss_curves([run()], facet="rank")
    files = []
    for _ in range(2):
        buffer = io.BytesIO()
        to_matplotlib(result).savefig(buffer, format="pdf", metadata={"CreationDate": None})
        files.append(buffer.getvalue())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([10, 50], [10, 50]),
        ([10, 12], [6, 16]),
        ([12, 10], [16, 6]),
        ([0, 0, 0], [0, 10, 20]),
        ([100, 100], [90, 100]),
        ([50, 50, 51], [40.333, 50.333, 60.333]),
    ],
)
def test_labels_are_moved_apart_as_little_as_needed(positions: list[float], expected: list[float]) -> None:
    assert spread(positions, 10, 0, 100) == pytest.approx(expected, abs=1e-3)
