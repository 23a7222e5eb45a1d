"""2D slices → surfaces side by side, with their paths' own losses below; and the table of the numbers drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from landscape.errors import UsageError
from landscape.plots.build import join_notes, with_ranges
from landscape.plots.curves import Curve, CurveSet, FloatArray, Panel
from landscape.plots.slice_levels import Levels, loss_levels
from landscape.plots.slices import SurfaceData, SurfaceSet
from landscape.plots.style import MUTED

MOST_SURFACES = 4
"""Side by side; more are too small to be read."""

ON_SURFACE = "surface at the projection"


def surface_figure(
    surfaces: Sequence[SurfaceData],
    *,
    title: str = "Loss surface",
    chosen: str = "",
    highest: float | None = None,
) -> SurfaceSet:
    """2D slices of one plane side by side on one color scale, with the paths' own losses below.

    Args:
        chosen: what is shown, under the title.
        highest: a loss above takes the highest color, so that a wall does not use up the scale.

    Raises:
        UsageError: no surfaces or more than 4, surfaces of different metrics or with differently named axes.
    """
    if not 1 <= len(surfaces) <= MOST_SURFACES:
        raise UsageError(f"surfaces: {len(surfaces)}; allowed: 1 to {MOST_SURFACES} side by side")
    first = surfaces[0]
    for index, other in enumerate(surfaces):
        for name in ("x_label", "y_label"):
            if getattr(other, name) != getattr(first, name):
                raise UsageError(
                    f"surfaces[{index}]: {name} {getattr(other, name)!r}, surfaces[0] has {getattr(first, name)!r}; "
                    "allowed: surfaces of one plane"
                )
        if other.measured.metric != first.measured.metric:
            raise UsageError(
                f"surfaces[{index}]: metric {other.measured.metric!r}, surfaces[0] has {first.measured.metric!r}"
            )
    levels = loss_levels(np.concatenate([surface.loss.ravel() for surface in surfaces]), highest)
    places = [path.coordinates[path.seen] for surface in surfaces for path in surface.paths]
    x_range = _extent([surface.x for surface in surfaces] + [place[:, 0] for place in places])
    y_range = _extent([surface.y for surface in surfaces] + [place[:, 1] for place in places])
    panels, cut = _path_panels(surfaces)
    notes = join_notes(*_notes(surfaces, levels, x_range, y_range), *cut)
    curves = CurveSet(title, panels, columns=len(surfaces), share_y="row", chosen=chosen, notes=notes)
    return SurfaceSet(tuple(surfaces), levels, x_range, y_range, curves)


def _extent(parts: Sequence[FloatArray]) -> tuple[float, float]:
    values = np.concatenate(parts)
    return float(values.min()), float(values.max())


def _path_panels(surfaces: Sequence[SurfaceData]) -> tuple[tuple[Panel, ...], tuple[str, ...]]:
    """A row of losses and a row of distances, or nothing without paths."""
    if not any(surface.paths for surface in surfaces):
        return (), ()
    # One neutral legend entry for what is dashed in several colors.
    key = Curve(ON_SURFACE, MUTED, np.array([np.nan]), np.array([np.nan]), "dot", order=99)
    losses, distances = [], []
    for surface in surfaces:
        curves = [key]
        for order, path in enumerate(surface.paths):
            lower = upper = None
            if path.standard_error is not None:
                lower, upper = path.loss - path.standard_error, path.loss + path.standard_error
            steps, loss = path.steps.astype(np.float64), np.where(np.isfinite(path.loss), path.loss, np.nan)
            below = np.where(np.isfinite(path.surface_loss), path.surface_loss, np.nan)
            band = "±1 standard error over examples" if lower is not None else ""
            curves.append(
                Curve(path.label, path.color, steps, loss, "solid", lower, upper, band, markers=True, order=order)
            )
            curves.append(Curve(ON_SURFACE, path.color, steps, below, "dot", order=99))
        losses.append(Panel("", tuple(curves), surface.measured.label, ""))
        away = tuple(
            Curve(path.label, path.color, path.steps.astype(np.float64), path.distance, markers=True, order=order)
            for order, path in enumerate(surface.paths)
        )
        distances.append(Panel("", away, "distance from plane", zero_line=True))
    count = len(surfaces)
    return with_ranges([*losses, *distances], [0] * count + [1] * count)


def _notes(
    surfaces: Sequence[SurfaceData], levels: Levels, x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[str]:
    notes = _path_notes(surfaces)
    several = len(surfaces) > 1
    if any(surface.center is not None for surface in surfaces):
        mark = "Black ring" if any(surface.paths for surface in surfaces) else "Cross"
        notes.append(f"{mark}: the snapshot through which the plane goes.")
    for surface in surfaces:
        own = " ".join(surface.notes)
        notes.append(f"{surface.title}: {own}" if own and several and surface.title else own)
    metric = surfaces[0].measured.metric
    scale = f"log({metric})" if levels.log else metric
    notes.append(f"Contours are evenly spaced in {scale}" + (", one scale for all." if several else "."))
    above = [float(surface.loss[surface.finite].max()) for surface in surfaces if surface.finite.any()]
    if above and max(above) > levels.edges[-1] * (1 + 1e-9):
        notes[-1] += f" The highest color stands for all above it, up to {max(above):.3g}."
    bad = sum(int((~surface.finite).sum()) for surface in surfaces)
    if bad:
        total = sum(surface.loss.size for surface in surfaces)
        notes.append(f"Hatched: no finite loss at {bad} of {total} grid points.")
    width, height = x_range[1] - x_range[0], y_range[1] - y_range[0]
    if not 0.8 <= width / height <= 1.25:
        notes.append("The two axes are drawn at different scales.")
    return notes + [note for surface in surfaces for note in surface.measured.notes()]


def _path_notes(surfaces: Sequence[SurfaceData]) -> list[str]:
    paths = [path for surface in surfaces for path in surface.paths]
    if not paths:
        return []
    band = ", band ±1 standard error over examples" if any(path.standard_error is not None for path in paths) else ""
    first = (
        "The path is a projection: the run lies off the plane, so the colors under the path are not its loss. "
        f"Panels of the path: solid, the run's own loss{band}; dotted, the {ON_SURFACE}."
    )
    marks = ", diamond: named snapshots" if any(path.marks for path in paths) else ""
    notes = [f"{first} Open circle: first snapshot, filled: last{marks}; numbers are optimizer steps."]
    shares = [
        f"{path.explained_variance:.0%} ({path.label}{f', {surface.title}' if len(surfaces) > 1 else ''})"
        for surface in surfaces
        for path in surface.paths
        if path.explained_variance is not None
    ]
    values = {path.explained_variance for path in paths}
    if shares:
        said = f"{paths[0].explained_variance:.0%}" if len(values) == 1 else ", ".join(shares)
        notes.append(f"The plane holds {said} of the snapshots' squared distance from its origin.")
    return notes


def surface_table(result: SurfaceSet) -> pd.DataFrame:
    """The numbers drawn: one row a grid point (series ``surface``) and a snapshot (series ``path``).

    Columns: surface (its number from 0), title, series, label (of the path), step, x, y, loss (at the grid point or the
    snapshot itself; not finite where it is not), standard_error (over examples), spread (standard deviation over
    planes), evaluated (False where the loss is interpolated), surface_loss, distance.
    """
    parts = []
    for number, surface in enumerate(result.surfaces):
        same = {"surface": number, "title": surface.title}
        x, y = np.meshgrid(surface.x, surface.y, indexing="ij")
        optional = {name: getattr(surface, name) for name in ("standard_error", "spread")}
        columns = {name: np.full(x.shape, np.nan) if grid is None else grid for name, grid in optional.items()}
        columns |= {"x": x, "y": y, "loss": surface.loss}
        columns["evaluated"] = np.ones(x.shape, bool) if surface.evaluated is None else surface.evaluated
        grid = {name: values.ravel() for name, values in columns.items()}
        parts.append(pd.DataFrame({**same, "series": "surface", "label": "", **grid}))
        for path in surface.paths:
            places = {"step": path.steps, "x": path.coordinates[:, 0], "y": path.coordinates[:, 1]}
            error = np.full(len(path.steps), np.nan) if path.standard_error is None else path.standard_error
            losses = {"loss": path.loss, "standard_error": error, "surface_loss": path.surface_loss}
            series = {"series": "path", "label": path.label, "evaluated": True}
            parts.append(pd.DataFrame({**same, **series, **places, **losses, "distance": path.distance}))
    order = ["surface", "title", "series", "label", "step", "x", "y", "loss", "standard_error", "spread", "evaluated"]
    return pd.concat(parts, ignore_index=True).reindex(columns=[*order, "surface_loss", "distance"])
