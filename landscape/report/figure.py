"""One figure of a report: what the page's script draws, and the words around it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from landscape.figures import embedded
from landscape.plots import CurveSet, Drawing, SurfaceSet, color_map, surface_3d, surfaces_to_plotly, to_plotly

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PANEL_WIDTH = 250
"""Pixels below which a panel is scrolled to rather than squeezed."""


@dataclass(frozen=True)
class ReportView:
    """One way of drawing a figure: ``data``, and ``colors`` of the dark theme, as JSON that is safe inside HTML."""

    name: str
    data: Markup
    colors: Markup

    @classmethod
    def of(cls, name: str, figure: Figure) -> ReportView:
        """What the page's script draws."""
        return cls(name, Markup(embedded(str(figure.to_json()))), Markup(embedded(json.dumps(color_map(figure)))))


@dataclass(frozen=True)
class ReportFigure:
    """One interactive figure with the words around it; ``views`` are other ways of drawing it, behind buttons."""

    id: str
    title: str
    source: str
    about: str
    chosen: str
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    data: Markup
    colors: Markup
    width: int
    height: int
    loggable: bool
    views: tuple[ReportView, ...] = ()

    @classmethod
    def of(cls, name: str, result: Drawing, about: str = "", source: str = "") -> ReportFigure:
        """A figure without its own heading, which the page prints."""
        if isinstance(result, SurfaceSet):
            figure, words, loggable = surfaces_to_plotly(result, heading=False), result.curves, False
            views = [(surface.title, surface_3d(result, index)) for index, surface in enumerate(result.surfaces)]
        else:
            figure, words, views = to_plotly(result, heading=False), result, []
            loggable = _all_positive(result) and not any(panel.inset or panel.log_y for panel in result.panels)
        own = ReportView.of("", figure)
        return cls(
            id=name,
            title=words.title,
            source=source,
            about=about,
            chosen=words.chosen,
            notes=words.notes,
            missing=words.missing,
            data=own.data,
            colors=own.colors,
            width=PANEL_WIDTH * words.columns + 90,
            height=int(figure.layout.height),
            loggable=loggable,
            views=tuple(ReportView.of(f"3D: {title}" if title else "3D", view) for title, view in views),
        )


def _all_positive(result: CurveSet) -> bool:
    """Whether a logarithmic axis could show every line of the figure."""
    return all(bool((curve.y[np.isfinite(curve.y)] > 0).all()) for curve in result.curves())
