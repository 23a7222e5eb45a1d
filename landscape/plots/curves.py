"""What a figure of curves shows, as plain data: built by `landscape.plots.loss` and others, drawn by the renderers.

The same `CurveSet` becomes a Plotly figure, a Matplotlib figure or a table, so that the three cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from landscape.plots.tiles import Tiles

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
EndState = Literal["diverged", "failed", "interrupted"]

INSET_BOX = (0.40, 0.50, 0.58, 0.46)
"""Left, bottom, width and height of an inset within its panel, as shares of the axes."""

SPAN_LINES = 3
"""Lines of text that the labels of neighboring spans take turns on."""


@dataclass(frozen=True)
class Trace:
    """One series of one run as measured; ``x`` and ``y`` (points,), finite and sorted by ``x``."""

    x: FloatArray
    y: FloatArray
    label: str = ""


@dataclass(frozen=True)
class End:
    """Where a run stopped before its last step: the last finite point and why."""

    x: float
    y: float
    state: EndState
    label: str


@dataclass(frozen=True)
class Curve:
    """One line of a panel with what stands around it.

    ``x``, ``y`` (points,) are drawn as the line, with NaN where it breaks. ``lower`` and ``upper`` (points,) bound the
    band that ``band`` names. ``n`` (points,) is the number of runs behind each point. ``raw`` lies faintly under it.
    ``hollow`` (points,) marks the points to draw as open circles, such as eigenvalues that did not converge.
    ``marker`` is their shape, a key of `landscape.plots.style.MARKERS`. ``order`` sorts the legend. With ``bars`` the
    points stand for themselves: ``lower`` and ``upper`` are the ends of a
    bar at each, and no line joins them.
    """

    label: str
    color: str
    x: FloatArray
    y: FloatArray
    dash: str = "solid"
    lower: FloatArray | None = None
    upper: FloatArray | None = None
    band: str = ""
    n: IntArray | None = None
    raw: tuple[Trace, ...] = ()
    ends: tuple[End, ...] = ()
    markers: bool = False
    marker: str = "circle"
    hollow: NDArray[np.bool_] | None = None
    order: int = 0
    bars: bool = False


@dataclass(frozen=True)
class Span:
    """A shaded stretch of the x axis with a line at ``peak`` and ``text`` over it."""

    start: float
    peak: float
    stop: float
    text: str
    color: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    ``inset`` (low, high) repeats that stretch of the x axis in a small frame at the top right. ``x_ticks`` (value,
    text) replace the axis's own ticks. ``level`` (value, name) is a dashed horizontal line that the axis reaches.
    ``spans`` lie beneath the curves. ``tiles`` are a heat map in place of curves.
    """

    title: str
    curves: tuple[Curve, ...]
    y_label: str
    x_label: str = "optimizer step"
    log_x: bool = False
    x_ticks: tuple[tuple[float, str], ...] = ()
    log_y: bool = False
    zero_line: bool = False
    level: tuple[float, str] | None = None
    inset: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    spans: tuple[Span, ...] = ()
    tiles: Tiles | None = None


@dataclass(frozen=True)
class CurveSet:
    """A whole figure: panels in row-major order over ``columns`` columns.

    ``chosen`` says which runs the figure shows, ``notes`` what its lines and bands are, ``missing`` what the figure
    asks for that the store does not have.
    """

    title: str
    panels: tuple[Panel, ...]
    columns: int = 1
    share_y: Literal["all", "row", "none"] = "all"
    chosen: str = ""
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Number of panel rows."""
        return -(-len(self.panels) // self.columns)

    @property
    def tile_lines(self) -> int:
        """Lines of text that the panel with most rows of tiles has room for, at most two a row."""
        panels = [panel.tiles for panel in self.panels if panel.tiles is not None]
        return max(
            (len(t.rows) * min(2, max(len(tile.lines) for tile in t.tiles)) for t in panels if t.tiles), default=0
        )

    def curves(self) -> list[Curve]:
        """All curves of all panels, in drawing order."""
        return [curve for panel in self.panels for curve in panel.curves]

    def legend(self) -> list[Curve]:
        """The first curve of each label: one legend entry each."""
        first: dict[str, Curve] = {}
        for curve in self.curves():
            first.setdefault(curve.label, curve)
        return sorted(first.values(), key=lambda curve: curve.order)


def table(result: CurveSet) -> pd.DataFrame:
    """The numbers drawn, at full resolution: one row a point.

    Columns: panel, curve, series (``line``, ``raw`` or ``tile``), run (of raw points), x, y (of tiles: column and row),
    lower, upper, n, x_label, y_label, band, and those of tiles. NaN rows, which only break a line, are left out.
    """
    parts, more = [], []
    for panel in result.panels:
        for tile in panel.tiles.tiles if panel.tiles else ():
            names = {"panel": panel.title, "series": "tile", "x_label": panel.x_label, "y_label": panel.y_label}
            parts.append(pd.DataFrame([{**names, "x": tile.column, "y": tile.row, **tile.numbers}]))
            more += [name for name in tile.numbers if name not in more]
        for curve in panel.curves:
            labels = {"panel": panel.title, "curve": curve.label, "x_label": panel.x_label, "y_label": panel.y_label}
            line = pd.DataFrame({**labels, "series": "line", "run": "", "x": curve.x, "y": curve.y})
            line["lower"] = np.nan if curve.lower is None else curve.lower
            line["upper"] = np.nan if curve.upper is None else curve.upper
            line["n"] = 1 if curve.n is None else curve.n
            line["band"] = curve.band
            parts.append(line[np.isfinite(line["y"])])
            parts += [
                pd.DataFrame({**labels, "series": "raw", "run": raw.label, "x": raw.x, "y": raw.y, "n": 1, "band": ""})
                for raw in curve.raw
            ]
    columns = ["panel", "curve", "series", "run", "x", "y", "lower", "upper", "n", "x_label", "y_label", "band"]
    columns += [name for name in more if name not in columns]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)
