"""`SurfaceSet` → Plotly figures, for the app and the HTML report: contours, and a surface in three dimensions.

Contours are SVG as the curves are. The surface takes one of the few WebGL views that a browser grants a page, so a page
draws it when somebody asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.plots.curves import FloatArray, Panel
from landscape.plots.plotly_page import FONT, Plain, add_frame, annotate, axis_range, axis_suffix, escape, themed
from landscape.plots.plotly_renderer import add_curves
from landscape.plots.slice_labels import spots, step_labels
from landscape.plots.slice_levels import HATCH, UNKNOWN
from landscape.plots.slices import PathData, SurfaceData, SurfaceSet
from landscape.plots.style import FRAME, GRID, INK, MUTED, PAPER, readable, shade, with_alpha

PAGE = 900
"""Pixels for which heights and labels are chosen; pages are as wide or wider, which moves labels apart only."""

LEFT, RIGHT, BAR_ROOM = 72, 18, 96
LOSS_HEIGHT, DISTANCE_HEIGHT, GAP_Y, PANEL_GAP = 130, 90, 96, 20
"""Pixels: margins, the latter where the color scale stands in it; the lower panels, what lies between the surfaces and
them and between the two."""

GAP_X = 0.03
SURFACE_INK = "#1c2025"
SURFACE_PAPER = "#fefefe"
"""Surfaces stay light in the dark theme, so what lies on them must not turn as `INK` and `PAPER` do."""

Box = tuple[float, float, float, float]
"""Left, right, bottom and top in shares of the plotting area."""


@dataclass(frozen=True)
class SlicePage:
    """Where everything stands: the panels of the paths beside a single surface, below several."""

    count: int
    panels: bool
    legend_rows: int
    label_width: int
    """Of the color scale, in characters."""

    @property
    def beside(self) -> bool:
        """Whether the panels of the path are beside the surface."""
        return self.count == 1 and self.panels

    @property
    def share(self) -> float:
        """Width of one surface."""
        return 0.56 if self.beside else (1 - GAP_X * (self.count - 1)) / self.count

    @property
    def margin_right(self) -> int:
        """In pixels."""
        return RIGHT if self.beside else BAR_ROOM + 7 * max(0, self.label_width - 4)

    @property
    def side(self) -> int:
        """Height of a surface in pixels: square on a page of `PAGE` pixels."""
        return min(round(self.share * (PAGE - LEFT - self.margin_right)), 560)

    @property
    def body(self) -> int:
        """Height of everything in pixels."""
        below = self.panels and not self.beside
        return self.side + (GAP_Y + LOSS_HEIGHT + PANEL_GAP + DISTANCE_HEIGHT if below else 0)

    def surface(self, index: int) -> Box:
        """Box of a surface."""
        left = index * (self.share + GAP_X)
        return left, left + self.share, 1 - self.side / self.body, 1.0

    def panel(self, index: int) -> Box:
        """Box of a panel, the losses first and then the distances."""
        row, column = divmod(index, self.count)
        if self.beside:
            head = 20 * self.legend_rows + 16
            loss = round(0.58 * (self.side - head - PANEL_GAP))
            top, height = (head, loss) if row == 0 else (head + loss + PANEL_GAP, self.side - head - PANEL_GAP - loss)
            left, right = 0.75, 1.0
        else:
            top = self.side + GAP_Y + row * (LOSS_HEIGHT + PANEL_GAP)
            height = (LOSS_HEIGHT, DISTANCE_HEIGHT)[row]
            left, right, _, _ = self.surface(column)
        return left, right, max(0.0, 1 - (top + height) / self.body), 1 - top / self.body

    def legend(self) -> Plain:
        """Over the panels that it explains."""
        if self.beside:
            return {"orientation": "v", "x": 0.75, "y": 1.0, "yanchor": "top", "tracegroupgap": 0}
        return {"y": 1 - (self.side + GAP_Y - 4) / self.body}


def surfaces_to_plotly(result: SurfaceSet, *, theme: str = "light", heading: bool = True) -> go.Figure:
    """Draw the contours with the panels of their paths.

    Args:
        theme: ``light`` or ``dark``.
        heading: whether the figure carries its title and notes; a page that prints them itself says False.
    """
    plain: Plain = {"data": [], "layout": {"annotations": [], "shapes": []}}
    count = len(result.surfaces)
    page = SlicePage(count, bool(result.curves.panels), len(result.curves.legend()), result.levels.label_width)
    for index in range(count):
        _add_surface(plain, result, index, page)
    shown: set[str] = set()
    for index, panel in enumerate(result.curves.panels):
        _add_panel(plain, result, index, page)
        add_curves(plain, panel, axis_suffix(count + index), shown)
    # The frame leaves room for the surfaces' titles.
    titles = Panel(" ".join(surface.title for surface in result.surfaces).strip(), (), "")
    add_frame(plain, replace(result.curves, panels=(titles,)), page.body, heading)
    plain["layout"]["margin"]["r"] = page.margin_right
    plain["layout"]["legend"] |= page.legend()
    return themed(plain, theme)


def _add_surface(plain: Plain, result: SurfaceSet, index: int, page: SlicePage) -> None:
    surface, name = result.surfaces[index], axis_suffix(index)
    left, right, bottom, top = page.surface(index)
    line = {"linecolor": FRAME, "showline": True, "mirror": True, "showgrid": False, "zeroline": False}
    line |= {"ticks": "outside", "tickcolor": FRAME, "nticks": 7}
    x_axis: Plain = {**line, "domain": [left, right], "anchor": f"y{name}", "range": list(result.x_range)}
    y_axis: Plain = {**line, "domain": [bottom, top], "anchor": f"x{name}", "range": list(result.y_range)}
    x_axis["title"] = {"text": escape(surface.x_label), "standoff": 8}
    if index:
        x_axis["matches"], y_axis["matches"] = "x", "y"
        y_axis["showticklabels"] = False
    else:
        y_axis |= {"title": {"text": escape(surface.y_label), "standoff": 10}, "automargin": True}
    plain["layout"] |= {f"xaxis{name}": x_axis, f"yaxis{name}": y_axis}
    if surface.title:
        annotate(plain, f"<b>{escape(surface.title)}</b>", left, 1, yshift=4, yanchor="bottom", color=INK, size=13)
    place = {"xaxis": f"x{name}", "yaxis": f"y{name}"}
    bar = {"showscale": index == 0, "colorbar": _color_bar(result, page.side, page.body)}
    bar["colorbar"]["x"] = page.surface(page.count - 1)[1]
    plain["data"].append(_contour(result, surface) | bar | place)
    cells = surface.unknown_cells()
    if cells:
        plain["data"].append(_hatch(cells) | place)
    for path in surface.paths:
        plain["data"] += [trace | place for trace in _path(path, alone=len(surface.paths) == 1)]
    if surface.center is not None:
        plain["data"].append(_center(surface.center, "circle-open" if surface.paths else "cross-thin") | place)
    width = page.share * (PAGE - LEFT - page.margin_right)
    for label in step_labels(result, surface, (width, page.side), (6.6, 14.0)):
        spot = {"xref": f"x{name} domain", "yref": f"y{name} domain", "xanchor": "center", "yanchor": "middle"}
        words = {"text": escape(label.text), "x": label.x / width, "y": label.y / page.side, "showarrow": False}
        color = readable(shade(_on_surface(label.color), 0.8))
        look = {"font": {"size": 11, "color": color}, "bgcolor": with_alpha(SURFACE_PAPER, 0.72)}
        plain["layout"]["annotations"].append({**spot, **words, **look, "borderpad": 0, "name": "step label"})


def _on_surface(color: str) -> str:
    return SURFACE_INK if color == INK else color


def _contour(result: SurfaceSet, surface: SurfaceData) -> Plain:
    levels = result.levels
    edges = levels.scale_edges
    step = float(edges[1] - edges[0])
    bands = len(levels.colors)
    kind = (
        " (sd over planes)"
        if surface.spread is not None
        else " (standard error)"
        if surface.standard_error is not None
        else ""
    )
    return {
        "type": "contour",
        "x": surface.x,
        "y": surface.y,
        "z": _small(levels.scale(surface.loss).T),
        "zmin": float(edges[0]),
        "zmax": float(edges[-1]),
        "autocontour": False,
        # Plotly's levels are the inner edges: what lies outside them takes the first and the last color.
        "contours": {
            "start": float(edges[1]), "end": float(edges[max(1, bands - 1)]), "size": step, "coloring": "fill",
        },
        "colorscale": _color_scale(levels.colors),
        "line": {"color": with_alpha(SURFACE_PAPER, 0.6), "width": 0.7, "smoothing": 0},
        "connectgaps": False,
        "text": _hover(surface),
        "hovertemplate": f"{escape(surface.x_label)} %{{x:.4g}}, {escape(surface.y_label)} %{{y:.4g}}<br>"
        f"{escape(surface.measured.metric)} %{{text}}{kind}<extra></extra>",
        "name": escape(surface.title),
    }  # fmt: skip


def _color_scale(colors: list[str]) -> list[list[Any]]:
    if len(colors) == 1:
        return [[0.0, colors[0]], [1.0, colors[0]]]
    return [[index / (len(colors) - 1), color] for index, color in enumerate(colors)]


def _hover(surface: SurfaceData) -> list[list[str]]:
    """Loss ± what is known of its error at each grid point, rows over y; ≈ where it is interpolated."""
    error = surface.spread if surface.spread is not None else surface.standard_error
    signs = np.where(np.ones_like(surface.finite) if surface.evaluated is None else surface.evaluated, "", "≈ ")
    errors = np.full(surface.loss.shape, np.nan) if error is None else error
    cells = zip(signs.T.ravel(), surface.loss.T.ravel(), errors.T.ravel(), strict=True)
    texts = [f"{sign}{value:.4g}" + (f" ± {half:.2g}" if np.isfinite(half) else "") for sign, value, half in cells]
    return np.array(texts, dtype=object).reshape(surface.loss.T.shape).tolist()


def _small(values: FloatArray) -> np.ndarray:
    """A figure's data is embedded in the page."""
    return values.astype(np.float32)


def _color_bar(result: SurfaceSet, side: int, body: int) -> Plain:
    levels = result.levels
    shown = levels.shown(max(3, min(side, 320) // 26))
    labels, edges = levels.labels, levels.scale_edges
    return {
        "x": 1, "xanchor": "left", "xpad": 14, "y": 1, "yanchor": "top", "ypad": 0,
        "len": min(side, 320) / body, "lenmode": "fraction", "thickness": 12, "outlinewidth": 0,
        "tickvals": [float(edges[index]) for index in shown], "ticktext": [labels[index] for index in shown],
        "tickfont": {"size": 11, "color": MUTED}, "ticks": "",
        "title": {"text": escape(result.metric_label), "side": "right", "font": {"size": 12, "color": INK}},
    }  # fmt: skip


def _hatch(cells: list[tuple[float, float, float, float]]) -> Plain:
    """One trace of rectangles: Plotly draws scatter over contours, so it covers what the contour guesses there."""
    x = [value for left, right, _, _ in cells for value in (left, right, right, left, left, None)]
    y = [value for _, _, bottom, top in cells for value in (bottom, bottom, top, top, bottom, None)]
    return {
        "type": "scatter", "x": x, "y": y, "mode": "lines", "line": {"width": 0, "color": UNKNOWN}, "fill": "toself",
        "fillpattern": {"shape": "/", "fgcolor": HATCH, "bgcolor": UNKNOWN, "size": 6, "solidity": 0.2},
        "hoverinfo": "skip", "showlegend": False, "name": "not finite",
    }  # fmt: skip


def _path(path: PathData, *, alone: bool) -> list[Plain]:
    """A halo, the line with its snapshots, and the marks."""
    seen, color = path.seen, _on_surface(path.color)
    x, y = path.coordinates[seen].T
    quiet = {"type": "scatter", "x": x, "y": y, "showlegend": False, "legendgroup": escape(path.label)}
    halo = {"mode": "lines", "line": {"color": SURFACE_PAPER, "width": 5}, "hoverinfo": "skip", "name": "halo"}
    size = 6 if len(seen) <= 60 else 4
    line = {
        "mode": "lines+markers", "line": {"color": color, "width": 2}, "name": escape(path.label),
        "marker": {"size": size, "color": color, "line": {"color": SURFACE_PAPER, "width": 1}},
        "text": [_snapshot(path, index) for index in seen.tolist()], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    found = spots(path, alone=alone)
    edges = [_on_surface(spot.color) for spot in found]
    places = path.coordinates[[spot.index for spot in found]].reshape(-1, 2)
    hollow = [spot.kind != "end" for spot in found]
    marks = {
        "x": places[:, 0], "y": places[:, 1], "mode": "markers", "cliponaxis": False, "name": "marks",
        "marker": {
            "opacity": 1,  # an array of sizes would make it less
            "size": [10 if spot.kind != "mark" else 9 for spot in found],
            "symbol": ["diamond" if spot.kind == "mark" else "circle" for spot in found],
            "color": [SURFACE_PAPER if is_hollow else color for is_hollow in hollow],
            "line": {"width": 2, "color": [e if h else SURFACE_PAPER for e, h in zip(edges, hollow, strict=True)]},
        },
        "text": [_snapshot(path, spot.index) for spot in found], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    return [quiet | halo, quiet | line, quiet | marks]


def _center(place: tuple[float, float], symbol: str) -> Plain:
    """The snapshot through which the plane goes."""
    return {
        "type": "scatter", "x": [place[0]], "y": [place[1]], "mode": "markers", "name": "center", "showlegend": False,
        "marker": {"symbol": symbol, "size": 15, "color": SURFACE_INK, "line": {"width": 2, "color": SURFACE_INK}},
        "hovertemplate": "the snapshot through which the plane goes<extra></extra>",
    }  # fmt: skip


def _snapshot(path: PathData, index: int) -> str:
    return (
        f"<b>{escape(path.label)}</b>, step {path.steps[index]}<br>its own loss {path.loss[index]:.4g}<br>"
        f"surface here {path.surface_loss[index]:.4g}<br>distance from plane {path.distance[index]:.4g}"
    )


def _add_panel(plain: Plain, result: SurfaceSet, index: int, page: SlicePage) -> None:
    """Axes of the loss or the distance along the paths of one surface."""
    panel, count = result.curves.panels[index], page.count
    row, column = divmod(index, count)
    name = axis_suffix(count + index)
    left, right, bottom, top = page.panel(index)
    line = {"linecolor": FRAME, "gridcolor": GRID, "zeroline": False, "ticks": "outside", "tickcolor": FRAME}
    steps = np.concatenate([path.steps for surface in result.surfaces for path in surface.paths])
    margin = 0.04 * float(steps.max() - steps.min()) or 1.0
    x_axis: Plain = {
        **line, "domain": [left, right], "anchor": f"y{name}", "showline": True, "showticklabels": row == 1,
        "range": [float(steps.min()) - margin, float(steps.max()) + margin],
    }  # fmt: skip
    if index:
        x_axis["matches"] = f"x{axis_suffix(count)}"
    if row == 1:
        x_axis["title"] = {"text": escape(panel.x_label), "standoff": 8}
    y_axis: Plain = {**line, "domain": [bottom, top], "anchor": f"x{name}", "nticks": 5}
    if panel.y_range is not None:
        y_axis["range"] = axis_range(panel.y_range, panel.log_y)
    if column:
        y_axis |= {"showticklabels": False, "matches": f"y{axis_suffix(count + row * count)}"}
    else:
        text = escape(panel.y_label).replace(" from ", "<br>from ").replace(" (", "<br>(")
        y_axis |= {"title": {"text": text, "standoff": 10}, "automargin": not page.beside}
    plain["layout"] |= {f"xaxis{name}": x_axis, f"yaxis{name}": y_axis}
    for path in result.surfaces[column].paths:
        for spot in spots(path):
            if spot.kind == "mark":
                step = int(path.steps[spot.index])
                span = {"x0": step, "x1": step, "xref": f"x{name}", "y0": 0, "y1": 1, "yref": f"y{name} domain"}
                look = {"line": {"color": with_alpha(path.color, 0.5), "width": 1}, "layer": "below"}
                plain["layout"]["shapes"].append({"type": "line", **span, **look})


def surface_3d(result: SurfaceSet, index: int = 0, *, theme: str = "light") -> go.Figure:
    """One of the surfaces in three dimensions, in the colors of the contours.

    The path's projection lies on the surface; its own loss floats over or under it, at the end of a stem. Where the
    loss is not finite the surface has a hole.

    Args:
        index: of the surface.
        theme: ``light`` or ``dark``.
    """
    surface, levels = result.surfaces[index], result.levels
    height = np.clip(np.where(surface.finite, surface.loss, np.nan), None, levels.edges[-1])
    metric = escape(surface.measured.metric)
    axis = {"gridcolor": GRID, "zeroline": False, "showbackground": False, "color": MUTED}
    plain: Plain = {
        "data": [
            {
                "type": "surface", "x": surface.x, "y": surface.y, "z": _small(height.T),
                "surfacecolor": _small(levels.scale(surface.loss).T), "cmin": float(levels.scale_edges[0]),
                "cmax": float(levels.scale_edges[-1]), "colorscale": _color_scale(levels.colors),
                "colorbar": _color_bar(result, 320, 480) | {"len": 0.7, "y": 0.92},
                "hovertemplate": f"%{{x:.4g}}, %{{y:.4g}}<br>{metric} %{{z:.4g}}<extra></extra>",
                "name": escape(surface.title),
                "opacity": 0.88,  # lines that run just under the facets stay in sight
                "lighting": {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05},
            },
            *(trace for path in surface.paths for trace in _path_3d(path)),
        ],
        "layout": {
            "template": "none", "height": 560, "margin": {"l": 8, "r": BAR_ROOM, "t": 12, "b": 8},
            "font": {"family": FONT, "size": 12, "color": INK}, "paper_bgcolor": PAPER,
            "hoverlabel": {"bgcolor": PAPER, "bordercolor": FRAME, "font": {"color": INK}, "align": "left"},
            "legend": {"orientation": "h", "x": 0, "y": 1, "bgcolor": with_alpha(PAPER, 0)},
            "scene": {
                "xaxis": {**axis, "title": {"text": escape(surface.x_label)}},
                "yaxis": {**axis, "title": {"text": escape(surface.y_label)}},
                "zaxis": {
                    **axis, "title": {"text": escape(result.metric_label)}, "type": "log" if levels.log else "linear",
                },
                "aspectratio": {"x": 1, "y": 1, "z": 0.7},
                "camera": {"eye": {"x": 0.95, "y": -1.1, "z": 1.15}},
            },
        },
    }  # fmt: skip
    return themed(plain, theme)


def _path_3d(path: PathData) -> list[Plain]:
    seen = path.seen
    x, y = path.coordinates[seen].T
    low, high = path.surface_loss[seen], path.loss[seen]
    gap = np.full(len(seen), np.nan)
    texts = [_snapshot(path, index) for index in seen.tolist()]
    common = {"type": "scatter3d", "legendgroup": escape(path.label)}
    return [
        {
            **common, "x": np.repeat(x, 3), "y": np.repeat(y, 3), "z": np.stack([low, high, gap], axis=1).ravel(),
            "mode": "lines", "line": {"color": path.color, "width": 2}, "hoverinfo": "skip", "showlegend": False,
            "name": "stems",
        },
        {
            **common, "x": x, "y": y, "z": low, "mode": "lines",
            "line": {"color": path.color, "width": 4, "dash": "dot"},
            "name": f"{escape(path.label)}: projection", "hoverinfo": "skip",
        },
        {
            **common, "x": x, "y": y, "z": high, "mode": "lines+markers", "line": {"color": path.color, "width": 5},
            "marker": {"size": 3.5, "color": path.color}, "name": f"{escape(path.label)}: its own loss",
            "text": texts, "hovertemplate": "%{text}<extra></extra>",
        },
    ]  # fmt: skip
