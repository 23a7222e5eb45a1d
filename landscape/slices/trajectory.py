"""Where a run went, beside the surface that it is drawn on; and the barrier between two points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.errors import UsageError
from landscape.measurement import Batch
from landscape.slices.adapter_space import at_point
from landscape.slices.coordinates import Coordinates, Vector
from landscape.slices.evaluation import EvaluationSet, evaluating
from landscape.slices.examples import Metric, loss
from landscape.slices.grid import loss_slice
from landscape.slices.planes import Plane, line_through
from landscape.slices.result import SliceResult


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Snapshots projected on a plane: a snapshot lies ``distance`` off the plane, and its loss is not the contour's."""

    coordinates: np.ndarray
    """(snapshots, dims), in those of the plane."""
    distance: np.ndarray
    """(snapshots,) Euclidean, from the plane."""
    loss: np.ndarray
    """(snapshots,) at the snapshots themselves; NaN where the parameters had diverged."""
    standard_error: np.ndarray
    """(snapshots,) of ``loss``, over examples."""
    surface_loss: np.ndarray
    """(snapshots,) at the projections: what the contour shows there."""
    explained_variance: float
    """Share of the squared distances of the (finite) snapshots from the plane's origin that lies in the plane."""
    metric: str
    num_examples: int
    num_labels: int
    precision: str


def trace_trajectory(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    plane: Plane,
    snapshots: Sequence[Vector],
    *,
    metric: Metric = loss,
    autocast: torch.dtype | None = None,
) -> Trajectory:
    """Project snapshots on a plane and measure the loss where they are and where they appear to be.

    Two forward passes over the batches a snapshot; one snapshot is held at a time.

    Raises:
        UsageError: snapshots or a plane of another adapter, none at all, or batches that cannot be measured.
    """
    coordinates = Coordinates(model)
    if not len(snapshots):
        raise UsageError("snapshots: none")
    coordinates.vector(plane.origin, "plane")
    data = EvaluationSet.of(model, batches, metric, autocast)
    rows: list[tuple[np.ndarray, float, float, float, float]] = []
    inside = total = 0.0
    for index in range(len(snapshots)):
        point = coordinates.vector(snapshots[index], f"snapshots[{index}]")
        if not bool(torch.isfinite(point).all()):
            rows.append((np.full(plane.dims, np.nan), np.nan, np.nan, np.nan, np.nan))
            continue
        place, distance = plane.project(point)
        with evaluating(data.model, autocast):
            with at_point(coordinates, point):
                true = data.means(data.sums())[0]
            with at_point(coordinates, coordinates.vector(plane.at(place), "plane")):
                shown = data.means(data.sums())[0]
        squared = float((point.double() - plane.origin.double()).square().sum())
        total += squared
        inside += squared - distance**2
        rows.append((place, distance, true.value, true.standard_error, shown.value))
    places, *columns = zip(*rows, strict=True)
    distances, losses, errors, surface = (np.array(column) for column in columns)
    return Trajectory(
        coordinates=np.stack(places),
        distance=distances,
        loss=losses,
        standard_error=errors,
        surface_loss=surface,
        explained_variance=inside / total if total > 0 else 1.0,
        metric=getattr(metric, "__name__", type(metric).__name__),
        num_examples=data.num_examples,
        num_labels=data.num_labels,
        precision=data.precision,
    )


def covering_axes(coordinates: np.ndarray, points: int = 21, margin: float = 0.25) -> tuple[np.ndarray, ...]:
    """Axes for a slice on which all of a trajectory's coordinates (snapshots, dims) are seen.

    Args:
        coordinates: rows that are not finite are left out.
        points: an axis.
        margin: added on either side, as a share of the extent; an axis without extent takes that of the other.

    Raises:
        UsageError: nothing finite, no extent, or arguments out of range.
    """
    finite = coordinates[np.isfinite(coordinates).all(axis=1)]
    if not len(finite) or points < 2 or not 0 <= margin < np.inf:
        raise UsageError(f"{len(finite)} finite points, points {points}, margin {margin}; allowed: from 1, 2 and 0 on")
    low, high = finite.min(axis=0), finite.max(axis=0)
    extent = high - low
    if not extent.any():
        raise UsageError("coordinates: all in one place; choose axes yourself")
    padding = np.where(extent > 0, margin * extent, (0.5 + margin) * extent.max())
    return tuple(np.linspace(*ends, points) for ends in zip(low - padding, high + padding, strict=True))


@dataclass(frozen=True, eq=False)
class Interpolation:
    """The loss on the line between two snapshots, 0 at the first and 1 at the second."""

    slice: SliceResult

    @property
    def barrier(self) -> float:
        """Largest excess of the loss over the straight line between its ends (Frankle et al., Linear Mode
        Connectivity, 2020); at least 0, and NaN or infinite where the loss is.
        """
        t, values = self.slice.coordinates, self.slice.loss
        between = (t >= 0) & (t <= 1)
        line = (1 - t) * values[t == 0] + t * values[t == 1]
        return float(np.max((values - line)[between]))


def interpolate(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    first: Vector,
    second: Vector,
    points: int = 21,
    **options: Any,
) -> Interpolation:
    """The loss from one snapshot to another, in the space of the trainable parameters.

    Args:
        points: with both ends.
        options: ``metric``, ``autocast`` and ``evaluation``, as `landscape.slices.loss_slice`.

    Raises:
        UsageError: equal, diverged or foreign snapshots, fewer than 3 points, or as `loss_slice`.
    """
    if points < 3:
        raise UsageError(f"points: {points}; allowed: from 3")
    line = line_through(model, first, second)
    chosen = {"directions": [line.directions[0]], "origin": line.origin, "axes": [np.linspace(0, 1, points)]}
    return Interpolation(loss_slice(model, batches, dims=1, **chosen, **options))
