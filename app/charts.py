"""Figures on a page: drawn in its theme, described for screen readers, exported, and opened by a click."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from app.curve_figures import CurveFigure, click_targets
from app.exports import MIME, figure_bytes, surface_bytes
from app.shown import keep
from landscape.plots import CurveSet, Drawing, SurfaceSet, surface_3d, surfaces_to_plotly, to_plotly
from landscape.plots.plotly_page import axis_suffix, escape
from landscape.report import Sheet

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:^=&])")

CONFIG = {
    "displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d"],
    "toImageButtonOptions": {"format": "svg"},
}  # fmt: skip


def plain(text: object) -> str:
    """Text of a store as Markdown that shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def theme() -> str:
    """``light`` or ``dark``, as the reader's page is."""
    return "dark" if getattr(st.context.theme, "type", None) == "dark" else "light"


def draw(figure: Drawing, key: str, *, heading: bool = True, exports: bool = True) -> None:
    """A figure with its words around it and its files below."""
    words = _words(figure)
    keep(f"chart-{key}", figure)
    _head(words, heading)
    made = (
        surfaces_to_plotly(figure, theme=theme(), heading=False)
        if isinstance(figure, SurfaceSet)
        else to_plotly(figure, theme=theme(), heading=False)
    )
    st.plotly_chart(_spelled(made), theme=None, key=f"chart-{key}", config=CONFIG, alt=description(words))
    _foot(figure, words, key, exports)


def draw_curves(figure: CurveFigure, key: str, *, heading: bool = True) -> tuple[str, int] | None:
    """Curves whose points can be clicked; returns the run and step that was, if any."""
    keep(f"chart-{key}", figure.result)
    _head(figure.result, heading)
    made = _spelled(clickable(to_plotly(figure.result, theme=theme(), heading=False), figure))
    event = st.plotly_chart(
        made, theme=None, key=f"chart-{key}", config=CONFIG, on_select="rerun", selection_mode="points",
        alt=description(figure.result),
    )  # fmt: skip
    _foot(figure.result, figure.result, key, True)
    return clicked(event)


def _spelled(made: go.Figure) -> go.Figure:
    """With 1e-6 on its axes for what Plotly calls 1µ."""
    return made.update_xaxes(exponentformat="e").update_yaxes(exponentformat="e")


def clickable(made: go.Figure, figure: CurveFigure) -> go.Figure:
    """The figure with an invisible point under the pointer wherever a click opens a snapshot.

    Plotly selects no points of plain lines, and markers on all of them would be 50,000 elements of the page.
    """
    lines: Any = made.data
    for trace in lines:
        if trace.customdata is not None:  # of two points in one place only one is hovered over, and only it is clicked
            trace.update(hovertemplate=None, hoverinfo="skip")
    position = 0
    for index, panel in enumerate(figure.result.panels):
        axes = {"xaxis": f"x{axis_suffix(index)}", "yaxis": f"y{axis_suffix(index)}"}
        for curve in panel.curves:
            run_ids = figure.members[position]
            position += 1
            x, y = click_targets(curve)
            first = run_ids[0]
            many = f" (of {len(run_ids)} seeds)" if len(run_ids) > 1 else ""
            made.add_trace(
                {
                    "type": "scatter", "mode": "markers", "x": x, "y": y, **axes, "showlegend": False, "name": "click",
                    "marker": {"size": 6, "color": curve.color, "opacity": 0},  # larger ones would overlap
                    "selected": {"marker": {"opacity": 0.9, "size": 9}}, "unselected": {"marker": {"opacity": 0}},
                    "customdata": [[first, round(float(step))] for step in x],
                    "hovertemplate": f"<b>{escape(curve.label)}</b><br>step %{{x}}: %{{y:.4g}}"
                    f"<br>N = {len(run_ids)}<br><i>click: open this snapshot{many}</i><extra></extra>",
                }
            )  # fmt: skip
    return made


def clicked(event: Any) -> tuple[str, int] | None:
    """Run and step of the first selected point that carries them."""
    selection: Mapping[str, Any] = (event or {}).get("selection") or {}
    points: Iterable[Mapping[str, Any]] = selection.get("points") or []
    for point in points:
        data = point.get("customdata")
        if isinstance(data, Mapping):
            data = [data.get("0", ""), data.get("1", "")]
        if isinstance(data, Sequence) and len(data) == 2 and isinstance(data[0], str):
            try:
                return data[0], int(data[1])
            except (TypeError, ValueError):
                continue
    return None


def description(words: CurveSet) -> str:
    """What a screen reader says in place of the picture."""
    lines = [curve.label for curve in words.legend()]
    first = next(iter(words.panels), None)
    axes = f"{first.y_label} against {first.x_label}" if first else ""
    return f"{words.title}: {axes}. {len(lines)} lines: {', '.join(lines[:8])}. The CSV export holds the numbers."


def draw_in_three_dimensions(figure: SurfaceSet, index: int, name: str) -> None:
    """One surface in WebGL, of which browsers grant a page few views."""
    made = surface_3d(figure, index, theme=theme())
    st.plotly_chart(made, theme=None, key="chart-three", config=CONFIG, height=560, alt=f"{name} in three dimensions")
    with st.container(horizontal=True, horizontal_alignment="right"):
        export_row(partial(surface_bytes, figure, index), "three", f"{_file_name(name)}-3d")


def show_table(frame: Any, key: str, title: str, note: str = "", **options: Any) -> Any:
    """A data frame with a note and its file below.

    Args:
        options: those of ``st.dataframe``, whose event is returned.
    """
    keep(f"table-{key}", Sheet(title, frame))
    event = st.dataframe(frame, key=f"table-{key}", **{"hide_index": True, "alt": title, **options})
    with st.container(horizontal=True, wrap=False, horizontal_alignment="distribute"):
        st.caption(note or f"{len(frame)} line{'s' * (len(frame) != 1)}.")
        st.download_button(
            "CSV", lambda: frame.to_csv(index=False).encode("utf-8"), f"{_file_name(title) or key}.csv", "text/csv",
            key=f"export-{key}", on_click="ignore", icon=":material/download:", help="The table as it is shown.",
        )  # fmt: skip
    return event


def export_row(make: Callable[[str], bytes], key: str, name: str) -> None:
    """A button for each format; a file is made when its button is pressed."""
    with st.popover(
        "Export", icon=":material/download:", width="content",
        help="PNG, SVG and PDF as printed; CSV: the numbers drawn; HTML: the figure to point at.",
    ):  # fmt: skip
        for kind, mime in MIME.items():
            st.download_button(
                kind.upper(), partial(make, kind), f"{name}.{kind}", mime,
                key=f"export-{key}-{kind}", on_click="ignore", width="stretch",
            )  # fmt: skip


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _head(words: CurveSet, heading: bool) -> None:
    if heading:
        st.markdown(f"#### {plain(words.title)}")
    if words.chosen:
        st.caption(plain(words.chosen))


def _foot(figure: Drawing, words: CurveSet, key: str, exports: bool) -> None:
    notes = [*words.notes, *(f"Missing: {text}" for text in words.missing)]
    with st.container(horizontal=True, wrap=False, horizontal_alignment="distribute"):
        if notes:
            st.caption(" ".join(plain(note) for note in notes), width="stretch")
        else:
            st.space("stretch")
        if exports:
            export_row(partial(figure_bytes, figure), key, _file_name(words.title) or key)


def _words(figure: Drawing) -> CurveSet:
    return figure.curves if isinstance(figure, SurfaceSet) else figure
