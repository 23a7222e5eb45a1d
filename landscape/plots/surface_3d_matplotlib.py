"""One surface of a `SurfaceSet` in three dimensions, drawn by Matplotlib: what a page shows in WebGL, for paper."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from landscape.plots.matplotlib_page import (
    NOTE_LINE,
    RC,
    draw_header,
    draw_notes,
    header_height,
    header_lines,
    note_lines,
    plain,
)
from landscape.plots.slice_levels import Levels
from landscape.plots.slices import PathData, SurfaceData, SurfaceSet
from landscape.plots.style import GRID, MUTED

WIDTH, SIDE = 6.4, 5.0
"""Inches: of the page, and height of the axes."""


def only_surface(result: SurfaceSet, index: int) -> SurfaceSet:
    """The figure with one of its surfaces and without the panels of the paths."""
    surface = result.surfaces[index]
    title = f"{result.curves.title}: {surface.title}" if surface.title else result.curves.title
    return replace(result, surfaces=(surface,), curves=replace(result.curves, title=title, panels=()))


def surface_3d_to_matplotlib(result: SurfaceSet, index: int = 0) -> Figure:
    """The surface as facets in the contours' colors, with the paths' own loss over it and their projection on it.

    The height is even in what the color is even in: the logarithm of the loss where the levels are logarithmic.

    Args:
        index: of the surface.
    """
    one = only_surface(result, index)
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Z contains NaN values")  # holes are meant
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        head = header_lines(one.curves, WIDTH)
        foot = note_lines(replace(one.curves, notes=(_note(one.surfaces[0]),)), WIDTH)
        top, bottom = header_height(head), NOTE_LINE * len(foot) + 0.1
        height = top + SIDE + bottom
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        box = (0.02, bottom / height, 0.9, SIDE / height)
        axes: Any = figure.add_axes(box, projection="3d", computed_zorder=False)
        _draw(axes, one.surfaces[0], one.levels, one.metric_label)
        draw_header(figure, head, 0.16)
        draw_notes(figure, foot, 0.16)
    return figure


def _draw(axes: Any, surface: SurfaceData, levels: Levels, metric: str) -> None:
    heights = levels.scale(surface.loss)
    bands = np.clip(np.searchsorted(levels.scale_edges, heights, side="right") - 1, 0, len(levels.colors) - 1)
    colors = np.array([to_rgba(color) for color in levels.colors])[bands]
    x, y = np.meshgrid(surface.x, surface.y, indexing="ij")
    count = max(surface.loss.shape)
    axes.plot_surface(
        x, y, heights, facecolors=colors, rcount=count, ccount=count, linewidth=0.2, edgecolor=(1, 1, 1, 0.35),
        shade=True, antialiased=True, zorder=1,
    )  # fmt: skip
    for path in surface.paths:
        _draw_path(axes, path, levels)
    shown = levels.shown(6)
    axes.set_zticks(levels.scale_edges[shown], [levels.labels[place] for place in shown])
    axes.set_zlim(levels.scale_edges[0], levels.scale_edges[-1])
    axes.set_xlabel(plain(surface.x_label))
    axes.set_ylabel(plain(surface.y_label))
    axes.set_zlabel(plain(metric))
    axes.view_init(elev=34, azim=-52)
    axes.tick_params(labelsize=7, colors=MUTED)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis._axinfo["grid"].update(color=GRID, linewidth=0.6)


def _draw_path(axes: Any, path: PathData, levels: Levels) -> None:
    x, y = path.coordinates[path.seen].T
    low, high = (levels.scale(values[path.seen]) for values in (path.surface_loss, path.loss))
    axes.plot(x, y, low, color=path.color, linewidth=1.2, linestyle=":", zorder=3)
    axes.plot(x, y, high, color=path.color, linewidth=1.8, marker="o", markersize=2.6, zorder=4)


def _note(surface: SurfaceData) -> str:
    if not surface.paths:
        return ""
    return "Solid: the run's own loss at its snapshots; dotted: the surface's under them. The run lies off the plane."
