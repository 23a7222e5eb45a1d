"""Rebounds shaded in a figure, in both renderers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from landscape.plots import to_matplotlib, to_plotly, with_inset
from landscape.plots.curves import INSET_BOX, CurveSet, Span
from landscape.plots.episodes import MarkedCurve, episode_curves

X = np.arange(5000.0)


@dataclass(frozen=True)
class Found:
    kind: str = "episode"
    onset: float = 1000
    peak: float = 2000
    recovery: float = 3000
    p_value: float = 0.01
    flags: tuple[str, ...] = ()


FOUND = [
    Found(),
    Found(onset=3500, peak=3600, recovery=3700, p_value=1.0, flags=("resume",)),
    Found(onset=100, peak=110, recovery=120, p_value=0.4),
    Found(kind="spike", onset=1, peak=2, recovery=3, p_value=1.0, flags=("bad_batch",)),
]


def drawn() -> CurveSet:
    return episode_curves([MarkedCurve("a", X, 2 - X / 5000, FOUND, "1 rebound")], y_label="loss")


def test_what_is_shaded() -> None:
    panel = drawn().panels[0]
    assert panel.title == "a: 1 rebound"
    assert [(s.start, s.peak, s.stop, s.text) for s in panel.spans] == [
        (1000, 2000, 3000, "episode, p = 0.01"),
        (3500, 3600, 3700, "not counted: resume"),
    ]
    assert panel.spans[0].color != panel.spans[1].color
    assert "Not shaded: 2 with p > 0.05" in drawn().notes[1]


def test_line_and_raw_trace() -> None:
    y = np.where(X == 2, 50, 2 - X / 5000)  # a bad batch
    curve = episode_curves([MarkedCurve("a", X, y, FOUND)]).panels[0].curves[0]
    assert len(curve.x) == 2000
    np.testing.assert_array_equal(curve.raw[0].y, y)
    # A local-linear fit of means over neighbors leaves a straight line where it is.
    np.testing.assert_allclose(curve.y, 2 - curve.x / 5000, rtol=1e-8)


def test_a_curve_that_ends_not_finite() -> None:
    values = np.where((X > 4000) | (X == 10), np.nan, 1.0)
    curve = episode_curves([MarkedCurve("a", X, values)]).panels[0].curves[0]
    (end,) = curve.ends
    assert (end.x, end.state, end.label) == (4000, "diverged", "not finite from step 4001")
    assert np.isfinite(curve.y).all()
    assert episode_curves([MarkedCurve("a", X, 1 + X)]).panels[0].curves[0].ends == ()


def test_nothing_finite_draws_an_empty_panel() -> None:
    result = episode_curves([MarkedCurve("a", X, np.full(len(X), np.nan))])
    assert result.panels[0].curves == ()
    to_matplotlib(result)
    to_plotly(result)


def test_matplotlib_draws_the_spans() -> None:
    figure = to_matplotlib(drawn())
    (ax,) = figure.axes
    spans = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    assert [(span.x0, span.x1) for span in spans] == [pytest.approx((1000, 3000)), pytest.approx((3500, 3700))]
    texts = {text.get_text(): text for text in ax.texts}
    assert {"episode, p = 0.01", "not counted: resume"} <= set(texts)
    page = figure.bbox
    boxes = [texts[text].get_window_extent() for text in ("episode, p = 0.01", "not counted: resume")]
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)
    assert not boxes[0].overlaps(boxes[1])
    assert to_hex(ax.patches[0].get_facecolor()) == drawn().panels[0].spans[0].color


@pytest.mark.parametrize("inset", [False, True])
@pytest.mark.parametrize("peak", [2.0, 900.0, 2500.0, 4998.0])
def test_labels_of_spans_stay_within_the_axes_and_below_the_inset(peak: float, inset: bool) -> None:
    result = drawn()
    [panel] = result.panels
    text = "LoRA-MGPO r = 128: p = 0.0096, 4 of 6 seeds"
    panel = replace(panel, spans=(Span(peak - 1, peak, peak + 1, text, "#0072b2"),))
    result = replace(result, panels=(with_inset(panel, 0, 500) if inset else panel,), columns=3)
    ax = to_matplotlib(result).axes[0]
    [label] = [found for found in ax.texts if found.get_text() == text]
    box, axes = label.get_window_extent(), ax.bbox
    assert axes.x0 <= box.x0 < box.x1 <= axes.x1
    assert not any(box.overlaps(child.get_tightbbox()) for child in ax.child_axes)
    [note] = [found for found in to_plotly(result).to_plotly_json()["layout"]["annotations"] if found["text"] == text]
    assert note["xanchor"] == {2.0: "left", 900.0: "left", 2500.0: "center", 4998.0: "right"}[peak]
    assert note["y"] <= (INSET_BOX[1] if inset else 1)


def test_plotly_draws_the_spans() -> None:
    plain = to_plotly(drawn()).to_plotly_json()["layout"]
    rectangles = [shape for shape in plain["shapes"] if shape["type"] == "rect"]
    assert [(shape["x0"], shape["x1"]) for shape in rectangles] == [(1000, 3000), (3500, 3700)]
    peaks = [shape["x0"] for shape in plain["shapes"] if shape["type"] == "line"]
    assert peaks == [2000, 3600]
    texts = [note["text"] for note in plain["annotations"]]
    assert {"episode, p = 0.01", "not counted: resume"} <= set(texts)
