"""Results → figures. Builders make a `CurveSet`; `to_plotly`, `to_matplotlib` and `table` show the same one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from landscape.plots.build import with_inset
from landscape.plots.choice import Choice
from landscape.plots.comparison import method_comparison
from landscape.plots.curves import Curve, CurveSet, End, Panel, Trace, table
from landscape.plots.data import Cell, RunData, group
from landscape.plots.envelope import POINT_BUDGET, reduce
from landscape.plots.episode_grid import episode_grid
from landscape.plots.evaluation import evaluation_curves, gap_curves, single_evaluation, train_and_eval_curves
from landscape.plots.loss import loss_curves
from landscape.plots.sharpness import sharpness_curves
from landscape.plots.slice_files import line_figures, surface_figures
from landscape.plots.slice_lines import line_slices
from landscape.plots.slice_surfaces import surface_figure, surface_table
from landscape.plots.slices import LinePath, LineSlice, Measured, PathData, SurfaceData, SurfaceSet
from landscape.plots.style import METHOD_STYLES, MethodStyle, method_style
from landscape.plots.summary import (
    CellSummary,
    RunSummary,
    best_learning_rates,
    learning_rate_curves,
    summarize,
    summarize_cells,
    without_rate,
)

if TYPE_CHECKING:
    from landscape.plots.matplotlib_renderer import to_matplotlib
    from landscape.plots.plotly_page import color_map
    from landscape.plots.plotly_renderer import to_plotly
    from landscape.plots.slices_matplotlib import surfaces_to_matplotlib
    from landscape.plots.slices_plotly import surface_3d, surfaces_to_plotly
    from landscape.plots.surface_3d_matplotlib import surface_3d_to_matplotlib

Drawing = CurveSet | SurfaceSet

# Whoever draws with one library does not wait for the other's import.
_RENDERERS = {
    "to_matplotlib": "matplotlib_renderer",
    "to_plotly": "plotly_renderer",
    "color_map": "plotly_page",
    "surfaces_to_matplotlib": "slices_matplotlib",
    "surfaces_to_plotly": "slices_plotly",
    "surface_3d": "slices_plotly",
    "surface_3d_to_matplotlib": "surface_3d_matplotlib",
}


def __getattr__(name: str) -> Any:
    if name in _RENDERERS:
        return getattr(importlib.import_module(f"landscape.plots.{_RENDERERS[name]}"), name)
    raise AttributeError(f"module 'landscape.plots' has no attribute {name!r}")


__all__ = [
    "METHOD_STYLES",
    "POINT_BUDGET",
    "Cell",
    "CellSummary",
    "Choice",
    "Curve",
    "CurveSet",
    "Drawing",
    "End",
    "LinePath",
    "LineSlice",
    "Measured",
    "MethodStyle",
    "Panel",
    "PathData",
    "RunData",
    "RunSummary",
    "SurfaceData",
    "SurfaceSet",
    "Trace",
    "best_learning_rates",
    "color_map",
    "episode_grid",
    "evaluation_curves",
    "gap_curves",
    "group",
    "learning_rate_curves",
    "line_figures",
    "line_slices",
    "loss_curves",
    "method_comparison",
    "method_style",
    "reduce",
    "sharpness_curves",
    "single_evaluation",
    "summarize",
    "summarize_cells",
    "surface_3d",
    "surface_3d_to_matplotlib",
    "surface_figure",
    "surface_figures",
    "surface_table",
    "surfaces_to_matplotlib",
    "surfaces_to_plotly",
    "table",
    "to_matplotlib",
    "to_plotly",
    "train_and_eval_curves",
    "with_inset",
    "without_rate",
]
