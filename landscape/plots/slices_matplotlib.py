"""`SurfaceSet` → Matplotlib figure, the form of record, in the look of `landscape.plots.matplotlib_renderer`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from landscape.plots.matplotlib_renderer import (
    POINT,
    RC,
    _draw_panel,
    _entries_per_row,
    _header,
    _header_height,
    _header_lines,
    _legend,
    _overhang,
    _text,
    _wrap,
    plain,
)
from landscape.plots.slice_labels import spots, step_labels
from landscape.plots.slice_levels import HATCH, UNKNOWN
from landscape.plots.slices import PathData, SurfaceData, SurfaceSet
from landscape.plots.style import FRAME, INK, MUTED, readable

LABEL_SIZE = 7.0
GAP = 0.24
BAR = 0.11
BAR_GAP = 0.12
LOSS_HEIGHT = 1.05
DISTANCE_HEIGHT = 0.72
PANEL_GAP = 0.16
"""Inches: between surfaces; width of the color bar and its distance; of the lower panels and between them."""


@dataclass(frozen=True)
class SurfaceLayout:
    """Sizes in inches."""

    width: float
    side: float
    """Of the square of one surface."""
    left: float
    right: float

    @classmethod
    def of(cls, count: int, width: float | None, label_width: int) -> SurfaceLayout:
        """Square surfaces, the larger the fewer; never below one inch."""
        width = width or {1: 5.4, 2: 7.4, 3: 9.6}.get(count, 11.0)
        left, right = 0.62, 0.56 + 0.064 * max(4, label_width)
        side = (width - left - right - GAP * (count - 1)) / count
        if side < 1:
            side, width = 1.0, left + right + GAP * (count - 1) + count
        return cls(width, side, left, right)


def surfaces_to_matplotlib(result: SurfaceSet, *, width: float | None = None) -> Figure:
    """Draw the figure.

    Args:
        width: of the page in inches; None chooses it from the number of surfaces.
    """
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name of the store, drawn as a box
        layout = SurfaceLayout.of(len(result.surfaces), width, result.levels.label_width)
        figure = _compose(result, layout)
        overhang = _overhang(figure)
        if overhang > 0:
            layout = replace(layout, left=layout.left + overhang, width=layout.width + overhang)
            figure = _compose(result, layout)
            figure.draw_without_rendering()
    return figure


def _compose(result: SurfaceSet, layout: SurfaceLayout) -> Figure:
    """Header, legend, surfaces, panels of the paths and footer, from the top down."""
    curves = result.curves
    header = [(line, 10.5, "bold") for line in _wrap([curves.title], layout.width, 12.0)]
    header += _header_lines(replace(curves, title=""), layout.width)
    footer = _wrap(curves.notes, layout.width, 6.6)
    entries = curves.legend()
    per_row = _entries_per_row(entries, layout.width)
    titled = any(surface.title for surface in result.surfaces)
    top = _header_height(header) + (0.30 if titled else 0.14)
    legend_top = top + layout.side + 0.44
    lower_top = legend_top + 0.18 * -(-len(entries) // per_row) + 0.12
    body = lower_top + LOSS_HEIGHT + PANEL_GAP + DISTANCE_HEIGHT if curves.panels else top + layout.side
    height = body + 0.46 + 0.12 * len(footer) + 0.10
    figure = Figure(figsize=(layout.width, height))
    FigureCanvasAgg(figure)
    for column, surface in enumerate(result.surfaces):
        ax = _axes(figure, layout, column, top, layout.side)
        _draw_surface(ax, result, surface, layout.side / POINT)
        ax.set_xlabel(plain(surface.x_label), labelpad=2)
        if column:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel(plain(surface.y_label), labelpad=4)
    _color_bar(figure, result, layout, top)
    for index, panel in enumerate(curves.panels):
        row, column = divmod(index, len(result.surfaces))
        place = (lower_top, LOSS_HEIGHT) if row == 0 else (lower_top + LOSS_HEIGHT + PANEL_GAP, DISTANCE_HEIGHT)
        ax = _axes(figure, layout, column, *place)
        _draw_panel(ax, panel)
        _marks(ax, result.surfaces[column])
        ax.tick_params(labelbottom=row == 1, labelleft=column == 0)
        if column == 0:
            ax.set_ylabel(plain(panel.y_label).replace(" from ", "\nfrom ").replace(" (", "\n("), labelpad=4)
        if row == 1:
            ax.set_xlabel(panel.x_label, labelpad=2)
    _header(figure, header, layout.left)
    if entries:
        _legend(figure, entries, layout.left, legend_top, per_row)
    for number, line in enumerate(reversed(footer)):
        _text(figure, layout.left, 0.08 + 0.12 * number, line, size=6.6, color=MUTED, from_bottom=True)
    return figure


def _axes(figure: Figure, layout: SurfaceLayout, column: int, top: float, height: float) -> Axes:
    page_width, page_height = figure.get_size_inches()
    left = layout.left + column * (layout.side + GAP)
    box = (left / page_width, 1 - (top + height) / page_height, layout.side / page_width, height / page_height)
    ax = figure.add_axes(box)
    ax.tick_params(length=2.5, width=0.6)
    return ax


def _draw_surface(ax: Axes, result: SurfaceSet, surface: SurfaceData, side: float) -> None:
    """Bands, hatch where nothing is known, and the paths; ``side`` is the axes' in points."""
    ax.set_title(plain(surface.title), loc="left", fontsize=8.5, fontweight="bold", pad=5)
    levels = result.levels
    values = np.ma.masked_invalid(levels.scale(surface.loss)).T
    if np.count_nonzero(~np.ma.getmaskarray(values)):
        # Cut values lie on the outer edges, which a filled contour leaves out.
        edges = levels.scale_edges.copy()
        edges[[0, -1]] += np.array([-1e-6, 1e-6]) * (edges[1] - edges[0])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No contour levels were found")
            ax.contourf(surface.x, surface.y, values, levels=edges, colors=levels.colors, corner_mask=False)
            ax.contour(
                surface.x, surface.y, values, levels=edges[1:-1], colors="white", linewidths=0.5, alpha=0.75,
                linestyles="solid", corner_mask=False,
            )  # fmt: skip
    for left, right, bottom, top in surface.unknown_cells():
        size = (right - left, top - bottom)
        ax.add_patch(
            Rectangle((left, bottom), *size, facecolor=UNKNOWN, edgecolor=HATCH, hatch="/////", linewidth=0, zorder=2)
        )
    for path in surface.paths:
        _draw_path(ax, path)
    ax.set_xlim(*result.x_range)
    ax.set_ylim(*result.y_range)
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(FRAME)
        spine.set_zorder(3)
    for label in step_labels(result, surface, (side, side), (0.62 * LABEL_SIZE, 1.05 * LABEL_SIZE)):
        ax.text(
            label.x / side, label.y / side, plain(label.text), transform=ax.transAxes, ha="center", va="center",
            fontsize=LABEL_SIZE, color=readable(label.color), zorder=7, gid="step label",
            path_effects=[withStroke(linewidth=2.2, foreground="white", alpha=0.9)],
        )  # fmt: skip


def _draw_path(ax: Axes, path: PathData) -> None:
    places = path.coordinates[path.seen]
    halo = [withStroke(linewidth=3.4, foreground="white", alpha=0.9)]
    ax.plot(*places.T, color=path.color, linewidth=1.5, zorder=4, path_effects=halo, solid_joinstyle="round")
    size = 3.2 if len(places) <= 60 else 2.0
    ax.plot(
        *places.T, linestyle="none", marker="o", markersize=size, markerfacecolor=path.color, markeredgecolor="white",
        markeredgewidth=0.5, zorder=5,
    )  # fmt: skip
    for spot in spots(path):
        shape, face, edge, large = {
            "start": ("o", "white", path.color, 6.5),
            "end": ("o", path.color, "white", 7.5),
            "mark": ("D", "white", path.color, 5.8),
        }[spot.kind]
        ax.plot(
            *path.coordinates[spot.index], marker=shape, markersize=large, markerfacecolor=face, markeredgecolor=edge,
            markeredgewidth=1.4, linestyle="none", zorder=6, clip_on=False,
        )  # fmt: skip


def _marks(ax: Axes, surface: SurfaceData) -> None:
    """Where the marked snapshots are on the axis of steps."""
    for path in surface.paths:
        for spot in spots(path):
            if spot.kind == "mark":
                ax.axvline(float(path.steps[spot.index]), color=path.color, linewidth=0.8, alpha=0.5, zorder=1)


def _color_bar(figure: Figure, result: SurfaceSet, layout: SurfaceLayout, top: float) -> None:
    """Bands of equal height, as the levels are even on their scale."""
    page_width, page_height = figure.get_size_inches()
    left = layout.width - layout.right + BAR_GAP
    height = min(layout.side, 3.2)
    box = (left / page_width, 1 - (top + height) / page_height, BAR / page_width, height / page_height)
    ax = figure.add_axes(box, label="color bar")
    levels = result.levels
    bands = len(levels.colors)
    ax.bar(0.5, 1.0, bottom=np.arange(bands), width=1.0, color=levels.colors, edgecolor="white", linewidth=0.5)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, bands)
    shown = levels.shown(max(3, int(height / 0.22)))
    labels = levels.labels
    ax.set_yticks(shown, [labels[index] for index in shown])
    ax.set_xticks([])
    ax.yaxis.tick_right()
    ax.tick_params(length=2, width=0.6, colors=MUTED, pad=2)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_ylabel(plain(result.metric_label), color=INK, labelpad=4)
    ax.yaxis.set_label_position("right")
