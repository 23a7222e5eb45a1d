"""`CurveSet` → Plotly figure, for the app and the HTML report.

SVG scatter throughout: a page can hold any number of them, while browsers drop WebGL views after the eighth or so.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.plots.build import inset_range, spans_top
from landscape.plots.curves import INSET_BOX, SPAN_LINES, Curve, CurveSet, FloatArray, Panel
from landscape.plots.envelope import reduce
from landscape.plots.plotly_page import Plain, add_frame, annotate, axis_range, axis_suffix, escape, themed
from landscape.plots.style import FRAME, GRID, INK, MUTED, readable, shade, with_alpha
from landscape.plots.tiles_plotly import add_tiles

PANEL_HEIGHT = 260
GAP_X = 0.035
GAP_Y = 76
STACKED_GAP_Y = 22
TILE_HEIGHT = 20
"""Pixels: a panel at least, the gaps between columns (a share) and rows of panels with and without tick labels between
them, and a row of tiles at least."""


def to_plotly(result: CurveSet, *, theme: str = "light", heading: bool = True) -> go.Figure:
    """Draw the figure.

    Args:
        theme: ``light`` or ``dark``.
        heading: whether the figure carries its title and notes; a page that prints them itself says False.
    """
    result = reduce(result)
    # Plain dictionaries, which Plotly checks once at the end: checking each step took most of a report's time.
    plain: Plain = {"data": [], "layout": {"annotations": [], "shapes": []}}
    body = _panel_height(result) * result.rows + _gap_y(result) * (result.rows - 1)
    shown: set[str] = set()
    for index, panel in enumerate(result.panels):
        _add_panel(plain, result, index, body)
        add_curves(plain, panel, axis_suffix(index), shown)
        if panel.inset is not None and panel.curves:
            _add_inset(plain, result, index, body)
    add_frame(plain, result, body, heading)
    return themed(plain, theme)


def _box(result: CurveSet, index: int, body: int) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a panel in shares of the plotting area."""
    row, column = divmod(index, result.columns)
    gap = GAP_X if result.share_y != "none" else 2.6 * GAP_X
    width = (1 - gap * (result.columns - 1)) / result.columns
    left = column * (width + gap)
    height = _panel_height(result)
    top = 1 - row * (height + _gap_y(result)) / body
    return left, left + width, max(0.0, top - height / body), top


def _panel_height(result: CurveSet) -> int:
    return max(PANEL_HEIGHT, TILE_HEIGHT * result.tile_lines)


def _gap_y(result: CurveSet) -> int:
    return STACKED_GAP_Y if any(panel.x_label == "" for panel in result.panels) else GAP_Y


def _add_panel(plain: Plain, result: CurveSet, index: int, body: int) -> None:
    panel = result.panels[index]
    left, right, bottom, top = _box(result, index, body)
    row, column = divmod(index, result.columns)
    name = axis_suffix(index)
    leader = {"all": 0, "row": row * result.columns, "none": index}[result.share_y]
    below = index + result.columns < len(result.panels)
    repeated = below and (panel.x_label == "" or result.panels[index + result.columns].x_label == panel.x_label)
    line = {"linecolor": FRAME, "gridcolor": GRID, "zeroline": False, "ticks": "outside", "tickcolor": FRAME}
    x_axis: dict[str, Any] = {
        **line, "domain": [left, right], "anchor": f"y{name}", "showline": True,
        "type": "log" if panel.log_x else "linear",
        "showticklabels": not (below and panel.x_label == ""),
    }  # fmt: skip
    if panel.x_ticks:
        values, texts = zip(*panel.x_ticks, strict=True)
        ends = axis_range((values[0], values[-1]), panel.log_x)
        margin = 0.1 * (ends[1] - ends[0]) or 1.0
        x_axis |= {"tickvals": list(values), "ticktext": [escape(text) for text in texts]}
        x_axis["range"] = [ends[0] - margin, ends[1] + margin]
    if not repeated:
        x_axis["title"] = {"text": escape(panel.x_label), "standoff": 8}
    if index and len({(panel.log_x, panel.x_ticks, panel.tiles is None) for panel in result.panels}) == 1:
        x_axis["matches"] = "x"
    y_axis: dict[str, Any] = {
        **line, "domain": [bottom, top], "anchor": f"x{name}", "type": "log" if panel.log_y else "linear",
        "showticklabels": column == 0 or result.share_y == "none",
    }  # fmt: skip
    if y_axis["showticklabels"]:
        label = textwrap.wrap(panel.y_label, PANEL_HEIGHT // 7)
        y_axis["title"] = {"text": "<br>".join(escape(part) for part in label), "standoff": 10}
        y_axis["automargin"] = True
    if leader != index:
        y_axis["matches"] = f"y{axis_suffix(leader)}"
    if panel.y_range is not None:
        y_axis["range"] = axis_range(panel.y_range, panel.log_y)
        if panel.log_y and y_axis["range"][1] - y_axis["range"][0] < 2:
            y_axis["dtick"] = "D2"  # 1, 2 and 5 of each decade
    plain["layout"].update({f"xaxis{name}": x_axis, f"yaxis{name}": y_axis})
    if panel.title:
        annotate(plain, f"<b>{escape(panel.title)}</b>", left, top, yshift=4, yanchor="bottom", color=INK, size=13)
    if panel.zero_line:
        line = {"color": MUTED, "width": 1}
        span = {"x0": 0, "x1": 1, "xref": f"x{name} domain", "y0": 0, "y1": 0, "yref": f"y{name}"}
        plain["layout"]["shapes"].append({"type": "line", **span, "line": line, "layer": "below"})
    if panel.level is not None:
        value, text = panel.level
        line = {"color": INK, "width": 1, "dash": "dash"}
        span = {"x0": 0, "x1": 1, "xref": f"x{name} domain", "y0": value, "y1": value, "yref": f"y{name}"}
        plain["layout"]["shapes"].append({"type": "line", **span, "line": line, "layer": "below"})
        at = {"x": 1, "xref": f"x{name} domain", "xanchor": "right", "yref": f"y{name}", "yanchor": "bottom"}
        height = float(np.log10(value)) if panel.log_y else value
        words = {"text": escape(text), "showarrow": False, "font": {"color": INK, "size": 11}}
        plain["layout"]["annotations"].append({**at, **words, "y": height})
    _add_spans(plain, panel, name)
    if panel.tiles is not None:
        add_tiles(plain, panel.tiles, name)
    elif not panel.curves:
        middle = {"x": (left + right) / 2, "y": (bottom + top) / 2, "xanchor": "center"}
        annotate(plain, "no runs", **middle, color=MUTED, size=12)
        # Axes without a trace are not drawn.
        empty = {"type": "scatter", "x": [None], "y": [None], "showlegend": False, "hoverinfo": "skip"}
        plain["data"].append(empty | {"name": "end", "xaxis": f"x{name}", "yaxis": f"y{name}"})


def _add_spans(plain: Plain, panel: Panel, name: str) -> None:
    for number, span in enumerate(panel.spans):
        tall = {"xref": f"x{name}", "yref": f"y{name} domain", "y0": 0, "y1": 1, "layer": "below"}
        fill = {"fillcolor": with_alpha(span.color, 0.14), "line": {"width": 0}}
        line = {"line": {"color": span.color, "width": 1, "dash": "dot"}}
        plain["layout"]["shapes"] += [
            {"type": "rect", "x0": span.start, "x1": span.stop, **tall, **fill},
            {"type": "line", "x0": span.peak, "x1": span.peak, **tall, **line},
        ]
        # Annotations, unlike shapes, take the logarithm on a logarithmic axis.
        x = float(np.log10(span.peak)) if panel.log_x else span.peak
        place = {"xref": f"x{name}", "yref": f"y{name} domain", "xanchor": _side(span.peak, panel), "yanchor": "top"}
        text = escape(span.text)
        y = spans_top(panel) + 0.015 - 0.07 * (number % SPAN_LINES)
        annotate(plain, text, x, y, color=readable(span.color), size=10.5, **place)


def _side(x: float, panel: Panel) -> str:
    """The side on which a label at x begins, so that it stays within the axes."""
    known = [curve.x for curve in panel.curves if len(curve.x)]
    if not known or panel.log_x:
        return "center"
    low, high = min(part.min() for part in known), max(part.max() for part in known)
    share = (x - low) / (high - low) if high > low else 0.5
    return "left" if share < 0.3 else "right" if share > 0.7 else "center"


def add_curves(plain: Plain, panel: Panel, axis: str, shown: set[str], in_legend: bool = True) -> None:
    """Bands, lines and ends on one pair of axes; labels in ``shown`` have their legend entry already."""
    place = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    for curve in panel.curves:
        plain["data"] += [trace | place for trace in _beneath(curve, panel)]
    for curve in panel.curves:
        plain["data"].append(_line(curve, panel, in_legend and curve.label not in shown) | place)
        shown.add(curve.label)
        if curve.ends:
            plain["data"].append(_ends(curve, panel) | place)


def _beneath(curve: Curve, panel: Panel) -> list[Plain]:
    quiet = {
        "type": "scatter",
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": escape(curve.label),
    }
    faint = with_alpha(curve.color, 0.3 if len(curve.raw) == 1 else 0.2)
    traces = [
        {"x": _x(raw.x), "y": _y(raw.y), "line": {"width": 0.8, "color": faint}, "name": escape(raw.label), **quiet}
        for raw in curve.raw
    ]
    # A band that reaches to 0 or below has no edge on a logarithmic axis: it is drawn down to the axis.
    floor = panel.y_range[0] if panel.log_y and panel.y_range is not None else -np.inf
    for lower, upper, x in [] if curve.bars else _stretches(curve):
        outline = {
            "x": _x(np.concatenate([x, x[::-1]])),
            "y": _y(np.maximum(np.concatenate([upper, lower[::-1]]), floor)),
            "fill": "toself",
            "fillcolor": with_alpha(curve.color, 0.16),
            "line": {"width": 0, "color": with_alpha(curve.color, 0)},
            "name": escape(curve.band),
            **quiet,
        }
        traces.append(outline)
    return traces


def _stretches(curve: Curve) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    """The band where it is defined, cut at its gaps: lower, upper and x of each connected stretch."""
    if curve.lower is None or curve.upper is None:
        return []
    defined = np.isfinite(curve.lower) & np.isfinite(curve.upper)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], defined.astype(int), [0]])))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(curve.lower[a:b], curve.upper[a:b], curve.x[a:b]) for a, b in pairs if b - a > 1]


def _line(curve: Curve, panel: Panel, first: bool) -> Plain:
    n = np.ones(len(curve.x)) if curve.n is None else curve.n
    half = np.full(len(curve.x), np.nan) if curve.upper is None else curve.upper - curve.y
    band = f"<br>{escape(curve.band)}: %{{customdata[1]:.4g}}" if curve.band else ""
    markers: dict[str, Any] = {}
    if curve.markers and len(curve.x) <= 120:
        hollow = np.zeros(len(curve.x), dtype=bool) if curve.hollow is None else curve.hollow
        symbols = np.where(hollow, f"{curve.marker}-open", curve.marker).tolist() if hollow.any() else curve.marker
        markers = {"marker": {"size": 6 if len(curve.x) <= 40 else 4, "color": curve.color, "symbol": symbols}}
    if curve.bars and curve.lower is not None and curve.upper is not None:
        ends = {"array": _y(curve.upper - curve.y), "arrayminus": _y(curve.y - curve.lower), "symmetric": False}
        markers |= {"mode": "markers", "error_y": {**ends, "color": curve.color, "width": 0, "thickness": 1.6}}
    return {
        "type": "scatter",
        "x": _x(curve.x),
        "y": _y(curve.y),
        "mode": "lines+markers" if markers else "lines",
        "line": {"color": curve.color, "width": 2, "dash": curve.dash, "simplify": False},
        "name": escape(curve.label),
        "legendgroup": escape(curve.label),
        "legendrank": 1000 + curve.order,
        "showlegend": first,
        "customdata": np.stack([n, half], axis=1).astype(np.float32),
        "hovertemplate": (
            f"<b>{escape(curve.label)}</b><br>{escape(panel.x_label or 'step')} %{{x}}: %{{y:.4g}}{band}"
            "<br>N = %{customdata[0]:d}<extra></extra>"
        ),
        **markers,
    }


def _ends(curve: Curve, panel: Panel) -> Plain:
    high = panel.y_range[1] if panel.y_range is not None else np.inf
    color = shade(curve.color, 0.6)
    return {
        "type": "scatter",
        "x": [end.x for end in curve.ends],
        "y": [min(end.y, high) for end in curve.ends],
        "mode": "markers",
        "marker": {
            "symbol": ["x-thin" if end.y <= high else "triangle-up" for end in curve.ends],
            "size": 9,
            "color": color,
            "line": {"width": 2, "color": color},
        },
        "text": [escape(f"{curve.label}: {end.label}") for end in curve.ends],
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
        "legendgroup": escape(curve.label),
        "cliponaxis": False,
        "name": "end",
    }


def _add_inset(plain: Plain, result: CurveSet, index: int, body: int) -> None:
    panel = result.panels[index]
    assert panel.inset is not None
    left, right, bottom, top = _box(result, index, body)
    x0, y0, width, height = INSET_BOX
    name = str(len(result.panels) + index + 1)
    line = {"showline": True, "mirror": True, "linecolor": FRAME, "gridcolor": GRID, "zeroline": False}
    line["tickfont"] = {"size": 10, "color": MUTED}
    plain["layout"].update(
        {
            f"xaxis{name}": {
                **line, "anchor": f"y{name}", "range": list(panel.inset), "nticks": 4,
                "domain": [left + x0 * (right - left), left + (x0 + width) * (right - left)],
            },
            f"yaxis{name}": {
                **line, "anchor": f"x{name}", "nticks": 4, "type": "log" if panel.log_y else "linear",
                "range": axis_range(inset_range(panel.curves, panel.inset, panel.log_y), panel.log_y),
                "domain": [bottom + y0 * (top - bottom), bottom + (y0 + height) * (top - bottom)],
            },
        }
    )  # fmt: skip
    add_curves(plain, panel, name, set(), in_legend=False)
    text = f"steps {panel.inset[0]:g} to {panel.inset[1]:g}"
    corner = {"x": left + x0 * (right - left), "y": bottom + (y0 + height) * (top - bottom)}
    annotate(plain, text, **corner, yshift=2, yanchor="bottom", color=MUTED, size=11)


def _x(values: FloatArray) -> np.ndarray:
    """Steps as the smallest integers that hold them, else float32: a figure's data is embedded in the page."""
    if len(values) and values.min() >= 0 and values.max() < 2**31 and np.array_equal(values, values.round()):
        return values.astype(np.uint16 if values.max() < 2**16 else np.int32)
    return values.astype(np.float32)


def _y(values: FloatArray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
