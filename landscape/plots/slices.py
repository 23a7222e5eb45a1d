"""Slices of the loss and the paths of runs on them, as plain data.

A 1D slice becomes a `CurveSet`, drawn as all others. 2D slices become a `SurfaceSet`, drawn by `surfaces_to_plotly`,
`surfaces_to_matplotlib` and `surface_3d`, and printed by `surface_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from landscape.errors import UsageError
from landscape.plots.build import join_notes, with_ranges
from landscape.plots.curves import Curve, CurveSet, End, FloatArray, IntArray, Panel
from landscape.plots.slice_levels import Levels, loss_levels
from landscape.plots.style import INK, MUTED

MOST_SURFACES = 4
"""Side by side; more are too small to be read."""

ON_SURFACE = "surface at the projection"


@dataclass(frozen=True)
class Measured:
    """How a slice was measured, for the words under it.

    ``space`` and ``normalization`` as in `landscape.slices`; ``metric`` is ``loss`` (nats a counted label) or a name.
    """

    space: str
    normalization: str
    num_examples: int
    num_labels: int
    metric: str = "loss"
    precision: str = ""

    @property
    def label(self) -> str:
        """Of an axis."""
        return "loss (nats/token)" if self.metric == "loss" else self.metric

    def notes(self) -> list[str]:
        """Space, normalization, size of the evaluation set, and what the picture depends on."""
        precision = f", {self.precision}" if self.precision else ""
        size = f"{self.num_examples} examples ({self.num_labels} labels{precision})"
        first = f"Space: {self.space}. Normalization: {self.normalization}. Measured on {size}."
        if self.space != "adapter":
            return [first, "The picture does not depend on the gauge, i.e. on how BA is factored."]
        free = (
            "rescaling a layer's factors to cA and B/c changes nothing, but " if self.normalization == "filter" else ""
        )
        return [first, f"The picture depends on the gauge: {free}other factors of the same BA give another picture."]


@dataclass(frozen=True, eq=False)
class LineSlice:
    """The loss along one or several random directions.

    ``x`` (points,) ascending; ``loss`` (points,) of one direction or (directions, points), where values may be NaN or
    infinite. ``standard_error`` (points,) over examples is the band of a single direction.
    """

    x: FloatArray
    loss: FloatArray
    measured: Measured
    label: str = "loss"
    color: str = INK
    dash: str = "solid"
    standard_error: FloatArray | None = None

    def __post_init__(self) -> None:
        _check_axis("x", self.x)
        if self.loss.ndim not in (1, 2) or self.loss.shape[-1] != len(self.x) or not self.loss.size:
            raise UsageError(f"loss: shape {self.loss.shape}; x has {len(self.x)} points")
        _check_shape("standard_error", self.standard_error, (len(self.x),))


@dataclass(frozen=True, eq=False)
class PathData:
    """A run's snapshots on a plane; the fields of `landscape.slices.Trajectory`, and when and what they are.

    ``steps`` (snapshots,) ascending, ``coordinates`` (snapshots, 2), ``loss`` and its ``standard_error`` at the
    snapshots themselves, their ``distance`` from the plane and the ``surface_loss`` at their projections
    (snapshots,); NaN where a snapshot had diverged. ``marks`` (step, name), such as an episode's peak, are drawn at the
    nearest snapshot.
    """

    steps: IntArray
    coordinates: FloatArray
    loss: FloatArray
    distance: FloatArray
    surface_loss: FloatArray
    standard_error: FloatArray | None = None
    explained_variance: float | None = None
    label: str = "run"
    color: str = INK
    marks: tuple[tuple[float, str], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.steps)
        if not count or (np.diff(self.steps) <= 0).any():
            raise UsageError(f"steps: {count} snapshots; allowed: at least 1, ascending")
        _check_shape("coordinates", self.coordinates, (count, 2))
        for name in ("loss", "distance", "surface_loss", "standard_error"):
            _check_shape(name, getattr(self, name), (count,))

    @property
    def seen(self) -> IntArray:
        """Indices of the snapshots that have a place on the plane."""
        return np.flatnonzero(np.isfinite(self.coordinates).all(axis=1))

    def nearest(self, step: float) -> int | None:
        """Index of the snapshot on the plane nearest to a step; None where there is none."""
        seen = self.seen
        return int(seen[np.abs(self.steps[seen] - step).argmin()]) if len(seen) else None


@dataclass(frozen=True, eq=False)
class SurfaceData:
    """The loss on a grid of a plane: ``loss`` (n, m) at ``x`` (n,) and ``y`` (m,), both ascending.

    ``loss`` and its ``standard_error`` (n, m) are kept as they are where they are NaN or infinite.
    """

    x: FloatArray
    y: FloatArray
    loss: FloatArray
    measured: Measured
    title: str = ""
    standard_error: FloatArray | None = None
    paths: tuple[PathData, ...] = ()
    x_label: str = "direction 1"
    y_label: str = "direction 2"

    def __post_init__(self) -> None:
        _check_axis("x", self.x)
        _check_axis("y", self.y)
        shape = (len(self.x), len(self.y))
        _check_shape("loss", self.loss, shape)
        _check_shape("standard_error", self.standard_error, shape)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Where the loss is a number, (n, m)."""
        return np.isfinite(self.loss)

    def unknown_cells(self) -> list[tuple[float, float, float, float]]:
        """Rectangles (left, right, bottom, top) between grid points where a corner has no finite loss."""
        good = self.finite
        whole = good[:-1, :-1] & good[1:, :-1] & good[:-1, 1:] & good[1:, 1:]
        cells = []
        for row in range(whole.shape[1]):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], ~whole[:, row], [0]])))
            for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                cells.append((float(self.x[start]), float(self.x[stop]), float(self.y[row]), float(self.y[row + 1])))
        return cells


@dataclass(frozen=True, eq=False)
class SurfaceSet:
    """Surfaces side by side with one pair of axes and one color scale, over the panels of their paths.

    ``curves`` holds, below each surface, the loss along its paths and then their distance from the plane, in row-major
    order; it has no panels where there are no paths. It also has the title and the notes.
    """

    surfaces: tuple[SurfaceData, ...]
    levels: Levels
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    curves: CurveSet = field(repr=False)

    @property
    def metric_label(self) -> str:
        """Of the color scale."""
        return self.surfaces[0].measured.label


def line_slices(
    lines: Sequence[LineSlice],
    *,
    title: str = "Loss along random directions",
    x_label: str = "distance along the direction",
    log_y: bool = False,
) -> CurveSet:
    """1D slices in one panel: the mean over directions with a band of one standard deviation.

    A line has a gap where the loss along any of its directions is not finite, with × at the last finite points.

    Raises:
        UsageError: no slices, or of different metrics.
    """
    if not lines:
        raise UsageError("lines: none")
    if len({line.measured.metric for line in lines}) > 1:
        raise UsageError(f"lines: metrics {', '.join(sorted({line.measured.metric for line in lines}))}; allowed: one")
    curves = tuple(_line_curve(line, order) for order, line in enumerate(lines))
    panel = Panel("", curves, lines[0].measured.label, x_label, log_y=log_y)
    panels, cut = with_ranges([panel], [0])
    notes = [_line_note(line, len(lines) > 1) for line in lines]
    own = [note for line in lines for note in line.measured.notes()]
    return CurveSet(title, panels, notes=join_notes(*notes, *cut, *own))


def _line_curve(line: LineSlice, order: int) -> Curve:
    draws = np.atleast_2d(line.loss)
    draws = np.where(np.isfinite(draws), draws, np.nan)
    mean = draws.mean(axis=0)
    half, band = line.standard_error, "±1 standard error over examples"
    if len(draws) > 1:
        half, band = draws.std(axis=0, ddof=1), "±1 sd over directions"
    good = np.isfinite(mean)
    beside = good & ~(np.append(good[1:], True) & np.insert(good[:-1], 0, True))
    ends = tuple(
        End(float(line.x[i]), float(mean[i]), "diverged", f"not finite beyond {line.x[i]:.4g}")
        for i in np.flatnonzero(beside)
    )
    lower, upper = (None, None) if half is None else (mean - half, mean + half)
    n = np.full(len(mean), len(draws))
    return Curve(
        line.label, line.color, line.x, mean, line.dash, lower, upper, band if half is not None else "", n, ends=ends,
        order=order,
    )  # fmt: skip


def _line_note(line: LineSlice, named: bool) -> str:
    draws = np.atleast_2d(line.loss)
    name = f"{line.label}: " if named else ""
    if len(draws) > 1:
        note = f"{name}mean over {len(draws)} random directions, band ±1 sd over directions."
    else:
        note = f"{name}one direction" + (", band ±1 standard error over examples." if _has_error(line) else ".")
    bad = int((~np.isfinite(draws)).any(axis=0).sum())
    return note + (f" No finite loss at {bad} of {len(line.x)} points (gaps, × at their edges)." if bad else "")


def _has_error(line: LineSlice) -> bool:
    return line.standard_error is not None


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
    metric = surfaces[0].measured.metric
    scale = f"log({metric})" if levels.log else metric
    notes.append(f"Contours are evenly spaced in {scale}" + (", one scale for all." if len(surfaces) > 1 else "."))
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
    snapshot itself; not finite where it is not), standard_error, surface_loss, distance.
    """
    parts = []
    for number, surface in enumerate(result.surfaces):
        same = {"surface": number, "title": surface.title}
        x, y = np.meshgrid(surface.x, surface.y, indexing="ij")
        grid = {"series": "surface", "label": "", "x": x.ravel(), "y": y.ravel(), "loss": surface.loss.ravel()}
        error = np.full(x.size, np.nan) if surface.standard_error is None else surface.standard_error.ravel()
        missing = np.full(x.size, np.nan)
        blank = {"step": missing, "surface_loss": missing, "distance": missing}
        parts.append(pd.DataFrame({**same, **grid, "standard_error": error, **blank}))
        for path in surface.paths:
            columns = {"step": path.steps.astype(np.float64), "x": path.coordinates[:, 0], "y": path.coordinates[:, 1]}
            error = np.full(len(path.steps), np.nan) if path.standard_error is None else path.standard_error
            losses = {"loss": path.loss, "standard_error": error, "surface_loss": path.surface_loss}
            series = {"series": "path", "label": path.label}
            parts.append(pd.DataFrame({**same, **series, **columns, **losses, "distance": path.distance}))
    order = ["surface", "title", "series", "label", "step", "x", "y", "loss", "standard_error", "surface_loss"]
    return pd.concat(parts, ignore_index=True).reindex(columns=[*order, "distance"])


def _check_axis(name: str, axis: FloatArray) -> None:
    if axis.ndim != 1 or len(axis) < 2 or not np.isfinite(axis).all() or (np.diff(axis) <= 0).any():
        raise UsageError(f"{name}: shape {axis.shape}; allowed: at least 2 finite coordinates, ascending")


def _check_shape(name: str, values: FloatArray | None, shape: tuple[int, ...]) -> None:
    if values is not None and values.shape != shape:
        raise UsageError(f"{name}: shape {values.shape}; allowed: {shape}")
