"""What every Matplotlib page has around its panels: fonts, header, legend and notes, with all text inside the page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from landscape.plots.curves import Curve, CurveSet
from landscape.plots.style import DASHES, FRAME, INK, MARKERS, MUTED

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.edgecolor": FRAME,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.labelsize": 8.0,
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text
    "svg.fonttype": "path",
    "svg.hashsalt": "landscape",  # equal input, equal file
}

POINT = 1 / 72
"""Inches."""

NOTE_SIZE = 6.6
NOTE_LINE = 0.12
"""Points and inches."""

Line = tuple[str, float, str]
"""Text, size and weight."""


def overhang(figure: Figure) -> float:
    """Inches by which labels of axes and ticks lie outside the page's left margin; draws the figure."""
    figure.draw_without_rendering()
    labels = [ax.yaxis.label for ax in figure.axes if ax.get_ylabel()]
    ticks = [tick.label1 for ax in figure.axes for tick in ax.yaxis.get_major_ticks()]
    labels += [text for text in ticks if text.get_visible() and text.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    # Hinting makes text a few percent wider at another resolution; ticks that are push the axis label along.
    wider = 0.09 * max((box.width for box in boxes), default=0.0)
    return max((0.06 - (box.x0 - wider) / figure.dpi for box in boxes), default=0.0)


def draw_legend(figure: Figure, curves: Sequence[Curve], left: float, top: float, per_row: int) -> None:
    """Entries in rows, ``top`` inches below the page's top."""
    width, height = figure.get_size_inches()
    # Matplotlib fills legends column by column; this order makes them read row by row.
    rows = -(-len(curves) // per_row)
    columns = -(-len(curves) // rows)
    order = [row * columns + column for column in range(columns) for row in range(rows)]
    shown = [curves[index] for index in order if index < len(curves)]
    figure.legend(
        handles=[_handle(curve) for curve in shown],
        labels=[plain(curve.label) for curve in shown],
        loc="upper left",
        bbox_to_anchor=(left / width, 1 - top / height),
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=2.2,
        columnspacing=1.4,
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.35,
    )


def _handle(curve: Curve) -> Line2D:
    dash = DASHES[curve.dash]
    return Line2D(
        [], [], color=curve.color, linewidth=1.8, linestyle=(0, dash) if dash else "solid",
        marker=MARKERS[curve.marker] if curve.markers else "", markersize=3.4,
    )  # fmt: skip


def entries_per_row(curves: Sequence[Curve], width: float) -> int:
    """How many fit in a row of a page ``width`` inches wide."""
    widest = max((len(curve.label) for curve in curves), default=1)
    return max(1, int((width - 0.8) / POINT / (widest * 4.7 + 32)))


def header_lines(result: CurveSet, width: float) -> list[Line]:
    """The title and what was chosen."""
    lines = [(plain(result.title), 10.5, "bold")] if result.title else []
    return lines + [(line, 7.6, "normal") for line in wrap([result.chosen], width, 7.6)]


def header_height(lines: Sequence[Line]) -> float:
    """Inches from the page's top to below the header."""
    return 0.13 + sum(0.20 if weight == "bold" else 0.14 for _, _, weight in lines)


def draw_header(figure: Figure, lines: Sequence[Line], left: float) -> None:
    """At the top of the page."""
    for number, (text, size, weight) in enumerate(lines):
        color = INK if weight == "bold" else MUTED
        draw_text(figure, left, header_height(lines[:number]) - 0.03, text, size=size, color=color, weight=weight)


def draw_text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str,
    weight: str = "normal",
    from_bottom: bool = False,
) -> None:
    """Text at inches from the left and the top (or the bottom) of the page."""
    width, height = figure.get_size_inches()
    place = y / height if from_bottom else 1 - y / height
    figure.text(x / width, place, text, size=size, color=color, weight=weight, va="bottom" if from_bottom else "top")


def wrap(texts: Sequence[str], width: float, size: float) -> list[str]:
    """Lines of this font size that fit on a page ``width`` inches wide."""
    characters = int((width - 0.8) / POINT / (size * 0.56))
    return [line for text in texts if text for line in textwrap.wrap(plain(text), max(20, characters))]


def note_lines(result: CurveSet, width: float) -> list[str]:
    """What stands under the figure."""
    return wrap([*result.notes, *(f"Missing: {text}" for text in result.missing)], width, NOTE_SIZE)


def draw_notes(figure: Figure, lines: Sequence[str], left: float) -> None:
    """At the bottom of the page."""
    for number, line in enumerate(reversed(lines)):
        draw_text(figure, left, 0.08 + NOTE_LINE * number, line, size=NOTE_SIZE, color=MUTED, from_bottom=True)


def plain(text: str) -> str:
    """Text that Matplotlib prints as it stands: one line, dollar signs are no mathematics."""
    return " ".join(str(text).split()).replace("$", r"\$")
