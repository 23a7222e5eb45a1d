"""A page as one file: what is on it, in order, and nothing that a store's strings could do."""

from __future__ import annotations

import pandas as pd

from app.curve_figures import CurveView, curve_figure
from app.shown import Shown
from landscape.report import Sheet, Words
from tests.synthetic_runs import run


def test_a_page_as_a_file() -> None:
    shown = Shown("Curves", "What was logged.")
    shown.parts["a"] = Words("Over nothing", heading=True)
    shown.parts["b"] = Words("Losses", heading=True)
    shown.parts["chart"] = curve_figure([run(max_steps=60)], CurveView()).result
    shown.parts["table"] = Sheet("Runs", pd.DataFrame({"name": ["<img src=x>"], "loss": [1.23456789], "p": [None]}))
    text = shown.html("<b>store", "rank == 8").decode()
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert "&lt;b&gt;store" in text
    assert "&lt;img src=x&gt;" in text
    assert "<img src=x>" not in text
    assert '<td class="num">1.2346</td>' in text
    assert "<td>–</td>" in text
    assert "Over nothing" not in text
    assert text.index("<h2>Losses</h2>") < text.index('id="figure-2"') < text.index("<h3>Runs</h3>")
    assert "Plotly" in text
    assert "default-src 'none'" in text


def test_a_part_drawn_again_keeps_its_place() -> None:
    shown = Shown("Curves", "")
    shown.parts |= {"one": Words("first"), "two": Words("second")}
    shown.parts["one"] = Words("changed")
    text = shown.html("store", "").decode()
    assert text.index("changed") < text.index("second")
    assert "first" not in text
    assert "where" not in text.split("<main>")[0].split("</style>")[1]
    assert "Plotly.newPlot" not in text  # nothing to draw, so nothing to draw it with
