"""`SurfaceSet` → Matplotlib figure, the form of record, in the look of `landscape.plots.matplotlib_renderer`."""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from landscape.plots.matplotlib_page import (
    NOTE_LINE,
    POINT,
    RC,
    draw_header,
    draw_legend,
    draw_notes,
    entries_per_row,
    header_height,
    header_lines,
    note_lines,
    overhang,
    plain,
    wrap,
)
from landscape.plots.matplotlib_renderer import draw_panel
from landscape.plots.slice_labels import spots, step_labels
from landscape.plots.slice_levels import HATCH, UNKNOWN
from landscape.plots.slices import PathData, SurfaceData, SurfaceSet
from landscape.plots.style import FRAME, INK, MUTED, readable

LABEL_SIZE = 7.0
GAP = 0.28
BAR = 0.11
BAR_GAP = 0.12
LOSS_HEIGHT = 1.05
DISTANCE_HEIGHT = 0.72
PANEL_GAP = 0.16
ROW = 0.18
"""Inches: between surfaces; width of the color bar and its distance; of the lower panels and between them; of a row of
the legend."""

Box = tuple[float, float, float, float]
"""Left, top, width and height in inches, from the page's upper left corner."""


@dataclass(frozen=True)
class SurfaceLayout:
    """Where everything stands, in inches: the panels of the paths beside a single surface, below several."""

    count: int
    beside: bool
    width: float
    side: float
    """Of the square of one surface."""
    left: float
    right: float
    """Room for the color bar."""
    top: float = 0.0
    """Of the surfaces."""
    legend_rows: int = 0

    @classmethod
    def of(cls, count: int, panels: bool, width: float | None, label_width: int) -> SurfaceLayout:
        """Square surfaces, the larger the fewer; never below one inch."""
        beside = count == 1 and panels
        width = width or (9.2 if beside else {1: 5.4, 2: 7.4, 3: 9.6}.get(count, 11.0))
        left, right = 0.62, 0.56 + 0.064 * max(4, label_width)
        side = 0.46 * width if beside else (width - left - right - GAP * (count - 1)) / count
        if side < 1:
            side, width = 1.0, left + right + (3.0 if beside else GAP * (count - 1) + count)
        return cls(count, beside, width, side, left, right)

    @property
    def bottom(self) -> float:
        """Of everything but axis labels and notes."""
        if self.beside:
            return self.top + self.side
        return max(self.top + self.side, *(sum(self.panel(row * self.count)[1::2]) for row in (0, 1)))

    @property
    def legend(self) -> tuple[float, float, float]:
        """Its left, top and width."""
        if not self.beside:
            return self.left, self.top + self.side + 0.44, self.width - 0.8
        left = self.left + self.side + self.right + 0.68
        return left, self.top, self.width - left - 0.16

    def surface(self, column: int) -> Box:
        """Of one surface."""
        return self.left + column * (self.side + GAP), self.top, self.side, self.side

    def panel(self, index: int) -> Box:
        """Of a panel under the legend, the losses first and then the distances."""
        row, column = divmod(index, self.count)
        left, top, width = self.legend
        top += ROW * self.legend_rows + 0.12
        heights = LOSS_HEIGHT, DISTANCE_HEIGHT
        if self.beside:
            room = self.top + self.side - top - PANEL_GAP
            heights = 0.6 * room, 0.4 * room
        else:
            left, _, width, _ = self.surface(column)
        return left, top + row * (heights[0] + PANEL_GAP), width, heights[row]


def surfaces_to_matplotlib(result: SurfaceSet, *, width: float | None = None) -> Figure:
    """Draw the figure.

    Args:
        width: of the page in inches; None chooses it from the number of surfaces.
    """
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name of the store, drawn as a box
        layout = SurfaceLayout.of(len(result.surfaces), bool(result.curves.panels), width, result.levels.label_width)
        figure = _compose(result, layout)
        beyond = overhang(figure)
        if beyond > 0:
            layout = replace(layout, left=layout.left + beyond, width=layout.width + beyond)
            figure = _compose(result, layout)
            figure.draw_without_rendering()
    return figure


def _compose(result: SurfaceSet, layout: SurfaceLayout) -> Figure:
    """Header, surfaces, legend, panels of the paths and footer."""
    curves = result.curves
    header = [(line, 10.5, "bold") for line in wrap([curves.title], layout.width, 13.0)]
    header += header_lines(replace(curves, title=""), layout.width)
    footer = note_lines(curves, layout.width)
    titled = any(surface.title for surface in result.surfaces)
    entries = curves.legend()
    per_row = entries_per_row(entries, layout.legend[2] + 0.8)
    layout = replace(
        layout, top=header_height(header) + (0.30 if titled else 0.14), legend_rows=-(-len(entries) // per_row)
    )
    bottom = layout.bottom if curves.panels else layout.top + layout.side
    figure = Figure(figsize=(layout.width, bottom + 0.46 + NOTE_LINE * len(footer) + 0.10))
    FigureCanvasAgg(figure)
    for column, surface in enumerate(result.surfaces):
        ax = _axes(figure, layout.surface(column))
        _draw_surface(ax, result, surface, layout.side / POINT)
        ax.set_xlabel(_broken(surface.x_label, layout.side), labelpad=2)
        if column:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel(_broken(surface.y_label, layout.side), labelpad=4)
    _color_bar(figure, result, layout)
    for index, panel in enumerate(curves.panels):
        row, column = divmod(index, layout.count)
        ax = _axes(figure, layout.panel(index))
        draw_panel(ax, panel)
        _marks(ax, result.surfaces[column])
        ax.tick_params(labelbottom=row == 1, labelleft=column == 0)
        if column == 0:
            ax.set_ylabel(plain(panel.y_label).replace(" from ", "\nfrom ").replace(" (", "\n("), labelpad=4)
        if row == 1:
            ax.set_xlabel(panel.x_label, labelpad=2)
    draw_header(figure, header, layout.left)
    if entries:
        draw_legend(figure, entries, *layout.legend[:2], per_row)
    draw_notes(figure, footer, layout.left)
    return figure


def _broken(label: str, side: float) -> str:
    """In lines no longer than the axis, which is ``side`` inches long."""
    return textwrap.fill(plain(label), int(side / POINT / 4.6))


def _axes(figure: Figure, place: Box) -> Axes:
    page_width, page_height = figure.get_size_inches()
    left, top, width, height = place
    ax = figure.add_axes(
        (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
    )
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
        _draw_path(ax, path, alone=len(surface.paths) == 1)
    if surface.center is not None:
        for width, color in ((3.0, "white"), (1.2, INK)):
            ax.plot(
                *surface.center, marker="o" if surface.paths else "+", markersize=11 if surface.paths else 8,
                markerfacecolor="none", markeredgewidth=width, markeredgecolor=color, zorder=5.5,
            )  # fmt: skip
    ax.set_xlim(*result.x_range)
    ax.set_ylim(*result.y_range)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(max(2, min(6, int(side / 40))), steps=[1, 2, 5, 10]))
        axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
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


def _draw_path(ax: Axes, path: PathData, *, alone: bool) -> None:
    places = path.coordinates[path.seen]
    halo = [withStroke(linewidth=3.4, foreground="white", alpha=0.9)]
    ax.plot(*places.T, color=path.color, linewidth=1.5, zorder=4, path_effects=halo, solid_joinstyle="round")
    size = 3.2 if len(places) <= 60 else 2.0
    ax.plot(
        *places.T, linestyle="none", marker="o", markersize=size, markerfacecolor=path.color, markeredgecolor="white",
        markeredgewidth=0.5, zorder=5,
    )  # fmt: skip
    for spot in spots(path, alone=alone):
        shape, face, edge, large = {
            "start": ("o", "white", spot.color, 6.5),
            "end": ("o", spot.color, "white", 7.5),
            "mark": ("D", "white", spot.color, 5.8),
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


def _color_bar(figure: Figure, result: SurfaceSet, layout: SurfaceLayout) -> None:
    """Bands of equal height, as the levels are even on their scale."""
    height = min(layout.side, 3.2)
    left = layout.surface(layout.count - 1)[0] + layout.side + BAR_GAP
    ax = _axes(figure, (left, layout.top, BAR, height))
    ax.set_label("color bar")
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
