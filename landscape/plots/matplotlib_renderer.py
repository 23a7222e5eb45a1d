"""`CurveSet` → Matplotlib figure, the form of record: PDF, SVG and PNG with all text inside the page.

Uses `matplotlib.figure.Figure` directly: no pyplot, no global state, any thread.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from landscape.plots.build import inset_range, spans_top
from landscape.plots.curves import INSET_BOX, SPAN_LINES, Curve, CurveSet, Panel
from landscape.plots.envelope import reduce
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
)
from landscape.plots.style import DASHES, FRAME, GRID, INK, MARKERS, MUTED, readable, shade
from landscape.plots.tiles_matplotlib import draw_tiles

DIRECT_LABELS_UP_TO = 8
TILE_HEIGHT = 0.19
"""Inches that a row of tiles has at least: one line of text."""


@dataclass(frozen=True)
class Layout:
    """Sizes in inches: everything that is not a panel is measured before the page is cut."""

    width: float
    panel_width: float
    panel_height: float
    left: float = 0.62
    right: float = 0.16
    gap_x: float = 0.20
    gap_y: float = 0.44
    bottom: float = 0.46

    @classmethod
    def of(cls, result: CurveSet, width: float | None, direct: bool) -> Layout:
        """Columns share the width; a single panel is larger."""
        columns = result.columns
        width = width or (6.6 if columns == 1 else min(3.55 * columns + 0.6, 11.0))
        left = 0.62 if result.share_y != "none" else 0.5
        right = _label_width(result) if direct else 0.16
        gap_x = 0.20 if result.share_y != "none" else 0.55
        panel = (width - left - right - gap_x * (columns - 1)) / columns
        if panel < 0.8:
            panel, width = 0.8, left + right + gap_x * (columns - 1) + 0.8 * columns
        height = min(max(0.62 * panel, 1.7), 3.5) if result.rows == 1 or columns > 1 else 2.1
        height = max(height, TILE_HEIGHT * result.tile_lines)
        stacked = any(panel.x_label == "" for panel in result.panels)
        return cls(width, panel, height, left, right, gap_x, gap_y=0.18 if stacked else 0.60)


def to_matplotlib(result: CurveSet, *, width: float | None = None, legend: str = "auto") -> Figure:
    """Draw the figure.

    Args:
        width: of the page in inches; None chooses it from the number of columns.
        legend: ``top``, ``direct`` (names at the line ends, single panels only) or ``auto``.
    """
    result = reduce(result)
    entries = result.legend()
    direct = len(result.panels) == 1 and (
        legend == "direct" or (legend == "auto" and 1 < len(entries) <= DIRECT_LABELS_UP_TO)
    )
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name of the store, drawn as a box
        layout = Layout.of(result, width, direct)
        figure = _compose(result, layout, direct)
        # Wide tick labels push the axis label off the page: only a drawn figure knows how wide they are.
        beyond = overhang(figure)
        if beyond > 0:
            layout = replace(layout, left=layout.left + beyond, width=layout.width + beyond)
            figure = _compose(result, layout, direct)
            figure.draw_without_rendering()
    return figure


def _compose(result: CurveSet, layout: Layout, direct: bool) -> Figure:
    """Header, legend, panels and footer, each measured in lines, and the panels between them."""
    entries = result.legend()
    header = header_lines(result, layout.width)
    footer = note_lines(result, layout.width)
    per_row = 0 if direct else entries_per_row(entries, layout.width)
    legend_rows = -(-len(entries) // per_row) if per_row else 0
    titled = any(panel.title for panel in result.panels)
    top = header_height(header) + 0.18 * legend_rows + (0.30 if titled else 0.14)
    foot = layout.bottom + NOTE_LINE * len(footer) + 0.10
    body = layout.panel_height * result.rows + layout.gap_y * (result.rows - 1)
    figure = Figure(figsize=(layout.width, top + body + foot))
    FigureCanvasAgg(figure)
    axes = _panels(figure, result, layout, top)
    for ax, panel in zip(axes, result.panels, strict=True):
        draw_panel(ax, panel)
    _share_x(axes, result.panels)
    draw_header(figure, header, layout.left)
    if direct:
        _direct_labels(figure, axes[0], entries)
    elif entries:
        draw_legend(figure, entries, layout.left, header_height(header), per_row)
    draw_notes(figure, footer, layout.left)
    return figure


def _share_x(axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """One range for all panels, as in Plotly, so that what stands above each other happened at the same step."""
    if len({(panel.log_x, panel.x_ticks) for panel in panels}) > 1:
        return
    drawn = [ax for ax, panel in zip(axes, panels, strict=True) if panel.curves]
    if drawn:
        limits = [ax.get_xlim() for ax in drawn]
        for ax in axes:
            ax.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))


def _panels(figure: Figure, result: CurveSet, layout: Layout, top: float) -> list[Axes]:
    width, height = figure.get_size_inches()
    axes: list[Axes] = []
    for index, panel in enumerate(result.panels):
        row, column = divmod(index, result.columns)
        left = layout.left + column * (layout.panel_width + layout.gap_x)
        bottom = height - top - (row + 1) * layout.panel_height - row * layout.gap_y
        ax = figure.add_axes((left / width, bottom / height, layout.panel_width / width, layout.panel_height / height))
        below = index + result.columns < len(result.panels)
        ax.tick_params(length=2.5, width=0.6)
        if below and panel.x_label == "":
            ax.tick_params(labelbottom=False)
        if column and result.share_y != "none":
            ax.tick_params(labelleft=False)
        own = result.share_y == "none" and column and result.panels[index - 1].y_label != panel.y_label
        if not column or own:
            ax.set_ylabel(textwrap.fill(plain(panel.y_label), int(layout.panel_height / POINT / 4.6)), labelpad=4)
        if panel.x_label and not (below and result.panels[index + result.columns].x_label == panel.x_label):
            ax.set_xlabel(panel.x_label, labelpad=2)
        axes.append(ax)
    return axes


def draw_panel(ax: Axes, panel: Panel) -> None:
    """Everything inside one pair of axes but the labels of the axes."""
    ax.set_title(plain(panel.title), loc="left", fontsize=8.5, fontweight="bold", pad=5)
    if panel.tiles is not None:
        draw_tiles(ax, panel.tiles)
        return
    _draw_axes(ax, panel)
    if panel.inset is not None and panel.curves:
        _draw_inset(ax, panel, panel.inset)
    if not any(len(curve.x) for curve in panel.curves):
        ax.text(0.5, 0.5, "no runs", transform=ax.transAxes, ha="center", va="center", color=MUTED)


def _draw_axes(ax: Axes, panel: Panel) -> None:
    if panel.log_y:
        ax.set_yscale("log")
    if panel.log_x:
        ax.set_xscale("log")
    if panel.x_ticks:
        ax.set_xticks([value for value, _ in panel.x_ticks], [plain(text) for _, text in panel.x_ticks])
        ax.minorticks_off()
        if not panel.log_x:  # room for the outermost texts
            first, last = panel.x_ticks[0][0], panel.x_ticks[-1][0]
            margin = 0.1 * (last - first) or 1.0
            ax.set_xlim(first - margin, last + margin)
    ax.grid(True, color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    if panel.zero_line:
        ax.axhline(0, color=MUTED, linewidth=0.8)
    if panel.level is not None:
        value, text = panel.level
        ax.axhline(value, color=INK, linewidth=0.8, linestyle="dashed")
        across = ax.get_yaxis_transform()
        ax.text(0.99, value, plain(text), transform=across, ha="right", va="bottom", color=INK, fontsize=8)
    for curve in panel.curves:
        _draw_beneath(ax, curve)
    for curve in panel.curves:
        _draw_line(ax, curve)
    _draw_spans(ax, panel)
    if panel.y_range is not None:
        ax.set_ylim(*panel.y_range)
    for curve in panel.curves:
        _draw_ends(ax, curve, panel)


def _draw_spans(ax: Axes, panel: Panel) -> None:
    """Neighbors' labels are on different lines, so that they do not cover each other; all within the axes."""
    top = spans_top(panel)
    for number, span in enumerate(panel.spans):
        ax.axvspan(span.start, span.stop, color=span.color, alpha=0.14, linewidth=0, zorder=1.2)
        ax.axvline(span.peak, color=span.color, linewidth=0.8, linestyle="dotted", zorder=1.4)
        ax.get_xlim()  # what was drawn widens the limits only when they are asked for
        share = ax.transAxes.inverted().transform(ax.transData.transform((span.peak, 0.5)))[0]
        label = ax.text(
            share, top - 0.055 * (number % SPAN_LINES), plain(span.text), transform=ax.transAxes,
            ha="center", va="top", fontsize=6.8, color=readable(span.color), zorder=4,
        )  # fmt: skip
        half = min(0.5, label.get_window_extent().width / ax.bbox.width / 2 + 0.01)
        label.set_x(min(max(share, half), 1 - half))


def _draw_beneath(ax: Axes, curve: Curve) -> None:
    for raw in curve.raw:
        ax.plot(raw.x, raw.y, color=curve.color, alpha=0.25 if len(curve.raw) == 1 else 0.18, linewidth=0.6, zorder=1.5)
    if curve.bars and curve.lower is not None and curve.upper is not None:
        ax.vlines(curve.x, curve.lower, curve.upper, color=curve.color, linewidth=1.3, zorder=2.5)
    elif curve.lower is not None and curve.upper is not None:
        ax.fill_between(curve.x, curve.lower, curve.upper, color=curve.color, alpha=0.17, linewidth=0, zorder=1.8)


def _draw_line(ax: Axes, curve: Curve) -> None:
    dash = DASHES[curve.dash]
    style = (0, dash) if dash else "solid"
    if not curve.bars:
        ax.plot(curve.x, curve.y, color=curve.color, linestyle=style, linewidth=1.5, zorder=3, solid_capstyle="round")
    if curve.markers:
        hollow = np.zeros(len(curve.x), dtype=bool) if curve.hollow is None else curve.hollow
        for chosen, face in ((~hollow, curve.color), (hollow, "white")):
            ax.plot(
                curve.x[chosen], curve.y[chosen], linestyle="none", marker=MARKERS[curve.marker],
                markersize=_marker_size(len(curve.x)),
                markerfacecolor=face, markeredgecolor=curve.color, markeredgewidth=0.9, zorder=3.5,
            )  # fmt: skip


def _marker_size(points: int) -> float:
    return 3.4 if points <= 40 else 2.2 if points <= 120 else 0.0


def _draw_ends(ax: Axes, curve: Curve, panel: Panel) -> None:
    for end in curve.ends:
        high = panel.y_range[1] if panel.y_range else np.inf
        ax.plot(
            end.x, min(end.y, high), marker="x" if end.y <= high else "^", markersize=5.5, markeredgewidth=1.5,
            color=shade(curve.color, 0.7), linestyle="none", zorder=4, clip_on=False,
        )  # fmt: skip


def _draw_inset(ax: Axes, panel: Panel, interval: tuple[float, float]) -> None:
    inset = ax.inset_axes(INSET_BOX)
    _draw_axes(inset, Panel("", panel.curves, "", log_y=panel.log_y))
    inset.set_xlim(*interval)
    inset.set_ylim(*inset_range(panel.curves, interval, panel.log_y))
    inset.tick_params(labelsize=6.5, length=2, width=0.5)
    inset.set_title(f"steps {interval[0]:g} to {interval[1]:g}", fontsize=6.8, color=MUTED, pad=2.5, loc="left")
    for spine in inset.spines.values():
        spine.set_visible(True)
        spine.set_color(FRAME)


def _direct_labels(figure: Figure, ax: Axes, curves: Sequence[Curve]) -> None:
    """Names beside the line ends, moved apart where they would touch, with a thin leader to where they belong."""
    shown = [curve for curve in curves if np.isfinite(curve.y).any()]
    height = ax.get_position().height * figure.get_size_inches()[1] / POINT
    ends = [(curve.x[np.isfinite(curve.y)][-1], curve.y[np.isfinite(curve.y)][-1]) for curve in shown]
    to_axes = ax.transData + ax.transAxes.inverted()
    places = [np.clip(to_axes.transform(end), 0, 1) for end in ends]
    spread_out = spread([float(place[1]) * height for place in places], 10.5, 0.0, height)
    for curve, place, y in zip(shown, places, spread_out, strict=True):
        ink = readable(curve.color)
        ax.plot(
            [place[0], 1.012, 1.03], [place[1], place[1], y / height], transform=ax.transAxes, color=ink,
            linewidth=0.6, clip_on=False, alpha=0.55, zorder=1,
        )  # fmt: skip
        ax.text(1.037, y / height, plain(curve.label), transform=ax.transAxes, color=ink, va="center", fontsize=8)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed to be ``gap`` apart within [low, high], order kept.

    Least squares under the order (pool adjacent violators on positions shifted by their rank's gap), then clamped.
    """
    order = np.argsort(positions, kind="stable")
    shifted = [positions[index] - rank * gap for rank, index in enumerate(order)]
    blocks: list[list[float]] = []
    for value in shifted:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value_b, count_b = blocks.pop()
            value_a, count_a = blocks.pop()
            total = count_a + count_b
            blocks.append([(value_a * count_a + value_b * count_b) / total, total])
    fitted = [value for value, count in blocks for _ in range(int(count))]
    ceiling = high - gap * (len(fitted) - 1)
    result = [0.0] * len(positions)
    for rank, index in enumerate(order):
        result[index] = max(low, min(fitted[rank], ceiling)) + rank * gap
    return result


def _label_width(result: CurveSet) -> float:
    return 0.22 + max((len(curve.label) for curve in result.legend()), default=0) * 5.1 * POINT
