"""Slices of the loss and the paths of runs on them, as plain data.

1D slices become a `CurveSet`, drawn as all others (`line_slices`). 2D slices become a `SurfaceSet` (`surface_figure`),
drawn by `surfaces_to_plotly`, `surfaces_to_matplotlib` and `surface_3d`, and printed by `surface_table`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from landscape.errors import UsageError
from landscape.plots.curves import CurveSet, FloatArray, IntArray
from landscape.plots.slice_levels import Levels
from landscape.plots.style import INK


@dataclass(frozen=True)
class Measured:
    """How a slice was measured, for the words under it.

    ``space`` and ``normalization`` as in `landscape.slices`; ``metric`` is ``loss`` (nats a counted label) or a name.
    ``has_gauge`` is False where every weight is trained itself, without a BA.
    """

    space: str
    normalization: str
    num_examples: int
    num_labels: int
    metric: str = "loss"
    precision: str = ""
    split: str = ""
    has_gauge: bool = True

    @property
    def label(self) -> str:
        """Of an axis."""
        return "loss (nats/token)" if self.metric == "loss" else self.metric

    def notes(self) -> list[str]:
        """Space, normalization, size of the evaluation set, and what the picture depends on."""
        precision = f", {self.precision}" if self.precision else ""
        of = f" of the {self.split} split" if self.split else ""
        size = f"{self.num_examples} examples{of} ({self.num_labels} labels{precision})"
        first = f"Space: {self.space}. Normalization: {self.normalization}. Measured on {size}."
        if not self.has_gauge:
            return [first]
        if self.space != "adapter":
            return [first, "The picture does not depend on the gauge, i.e. on how BA is factored."]
        free = (
            "rescaling a layer's factors to cA and B/c changes nothing, but " if self.normalization == "filter" else ""
        )
        return [first, f"The picture depends on the gauge: {free}other factors of the same BA give another picture."]


@dataclass(frozen=True, eq=False)
class LinePath:
    """A run's snapshots on a line: ``steps``, ``coordinates``, their own ``loss`` with its ``standard_error``, and
    their ``distance`` from the line, (snapshots,) each; NaN where a snapshot had diverged.
    """

    steps: IntArray
    coordinates: FloatArray
    loss: FloatArray
    distance: FloatArray
    standard_error: FloatArray | None = None

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        for name in ("coordinates", "loss", "distance", "standard_error"):
            _check_shape(name, getattr(self, name), (len(self.steps),))


@dataclass(frozen=True, eq=False)
class LineSlice:
    """The loss along one or several random directions.

    ``x`` (points,) ascending; ``loss`` (points,) of one direction or (directions, points), where values may be NaN or
    infinite. ``standard_error`` (points,) over examples is the band of a single direction. ``notes`` go under the
    figure.
    """

    x: FloatArray
    loss: FloatArray
    measured: Measured
    label: str = "loss"
    color: str = INK
    dash: str = "solid"
    standard_error: FloatArray | None = None
    path: LinePath | None = None
    notes: tuple[str, ...] = ()

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
        _check_steps(self.steps)
        count = len(self.steps)
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

    ``loss`` and its ``standard_error`` (n, m) are kept as they are where they are NaN or infinite. ``spread`` (n, m) is
    the standard deviation over planes where ``loss`` is a mean over several; ``evaluated`` (n, m) is False where the
    loss is interpolated. ``center`` is where the snapshot lies through which the plane goes. ``notes`` go under the
    figure.
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
    spread: FloatArray | None = None
    evaluated: NDArray[np.bool_] | None = None
    center: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_axis("x", self.x)
        _check_axis("y", self.y)
        shape = (len(self.x), len(self.y))
        for name in ("loss", "standard_error", "spread", "evaluated"):
            _check_shape(name, getattr(self, name), shape)

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


def _check_steps(steps: IntArray) -> None:
    if not len(steps) or (np.diff(steps) <= 0).any():
        raise UsageError(f"steps: {len(steps)} snapshots; allowed: at least 1, ascending")


def _check_axis(name: str, axis: FloatArray) -> None:
    if axis.ndim != 1 or len(axis) < 2 or not np.isfinite(axis).all() or (np.diff(axis) <= 0).any():
        raise UsageError(f"{name}: shape {axis.shape}; allowed: at least 2 finite coordinates, ascending")


def _check_shape(name: str, values: NDArray | None, shape: tuple[int, ...]) -> None:
    if values is not None and values.shape != shape:
        raise UsageError(f"{name}: shape {values.shape}; allowed: {shape}")
