"""What every Plotly page has around its panels: fonts, title, legend and notes, and the colors of the dark theme."""

from __future__ import annotations

import html
import re
import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.plots.curves import CurveSet
from landscape.plots.style import FRAME, INK, MUTED, PAPER, dark_variant, with_alpha

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

Plain = dict[str, Any]
"""A figure in the form that plotly.js reads."""

_COLOR = re.compile(r"#[0-9a-f]{6}|rgba\([^)]*\)")


def color_map(figure: go.Figure) -> dict[str, str]:
    """Every color in the figure → the one to use on a dark ground; a page switches themes with it."""
    return plain_colors(figure.to_plotly_json())


def plain_colors(plain: Plain) -> dict[str, str]:
    """`color_map` of a figure in its plain form."""
    found: set[str] = set()

    def note(value: str, key: str) -> str:
        if "color" in key and _COLOR.fullmatch(value):
            found.add(value)
        return value

    _map_strings(plain, note)
    return {color: dark_variant(color) for color in sorted(found)}


def recolored(figure: Any, colors: dict[str, str]) -> Any:
    """A copy of a figure's plain form with its colors replaced."""
    return _map_strings(figure, lambda value, key: colors.get(value, value) if "color" in key else value)


def _map_strings(value: Any, change: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _map_strings(item, change, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change, key) for item in value]
    return change(value, key) if isinstance(value, str) else value


def themed(plain: Plain, theme: str) -> go.Figure:
    """The figure in the colors of ``light`` or ``dark``."""
    return go.Figure(recolored(plain, plain_colors(plain)) if theme == "dark" else plain)


def axis_suffix(number: int) -> str:
    """What Plotly appends to ``x`` and ``y`` in the names of a pair of axes, counted from 0."""
    return "" if number == 0 else str(number + 1)


def axis_range(bounds: tuple[float, float], log: bool) -> list[float]:
    """Bounds as an axis takes them."""
    return [float(np.log10(bound)) for bound in bounds] if log else list(bounds)


def add_frame(plain: Plain, result: CurveSet, body: int, heading: bool) -> None:
    """Legend above the panels, title above the legend, notes under the last axis."""
    legend_rows = -(-sum(len(curve.label) + 7 for curve in result.legend()) // 110) if result.legend() else 0
    above = 22 * legend_rows + (30 if any(panel.title for panel in result.panels) else 12)
    top, bottom = above + 6, 58
    if heading:
        head = [f"<b>{escape(result.title)}</b>", *(escape(line) for line in textwrap.wrap(result.chosen, 120))]
        notes = [*result.notes, *(f"Missing: {text}" for text in result.missing)]
        foot = [escape(line) for note in notes for line in textwrap.wrap(note, 140)]
        top += 20 * len(head) + 10
        bottom += 15 * len(foot) + 10
        annotate(plain, head[0], 0, 1, yshift=top - 14, color=INK, size=17, yanchor="top")
        annotate(plain, "<br>".join(head[1:]), 0, 1, yshift=top - 38, color=MUTED, size=12, yanchor="top")
        annotate(plain, "<br>".join(foot), 0, 0, yshift=-56, color=MUTED, size=11, yanchor="top")
    plain["layout"].update(
        template="none",  # else Plotly adds 7 kB of its own defaults to every figure
        height=body + top + bottom,
        margin={"l": 72, "r": 18, "t": top, "b": bottom},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        hovermode="closest",
        hoverlabel={"bgcolor": PAPER, "bordercolor": FRAME, "font": {"color": INK}, "align": "left"},
        legend={
            "orientation": "h", "x": 0, "xanchor": "left", "y": 1 + (above - 22 * legend_rows) / body,
            "yanchor": "bottom", "font": {"size": 12.5, "color": INK}, "bgcolor": with_alpha(PAPER, 0),
        },
    )  # fmt: skip


def annotate(plain: Plain, text: str, x: float, y: float, *, color: str, size: float, **place: Any) -> None:
    """Text at a place of the page, or nothing where there is none."""
    if text:
        place = {"xanchor": "left", "yanchor": "middle", "align": "left", "xref": "paper", "yref": "paper", **place}
        note = {"text": text, "x": x, "y": y, "showarrow": False, "font": {"color": color, "size": size}}
        plain["layout"]["annotations"].append(place | note)


def escape(text: str) -> str:
    """Plotly reads a little HTML in every text; strings of a store must not become markup."""
    return html.escape(" ".join(str(text).split()), quote=False)
