"""Where a slice of a captured run lies: its directions and axes, from the run's own snapshots where these say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from landscape.analysis.slice_settings import DEFAULT_RADIUS, SliceSettings
from landscape.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from landscape.analysis.restored import RestoredRun
    from landscape.slices import Plane
    from landscape.store import SnapshotReader

Batches = list[dict[str, Any]]


@dataclass(frozen=True)
class Placement:
    """Directions and axes as `landscape.slices.loss_slice` takes them.

    Attributes:
        axes: coordinates along each direction.
        directions: none for random ones.
        origin: none for where the model is.
        facts: what they are, for the file: JSON values.
    """

    axes: tuple[np.ndarray, ...]
    directions: list[Tensor] | None = None
    origin: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Snapshots(Sequence["dict[str, Tensor]"]):
    """Snapshots of these steps, each read from disk when it is looked at."""

    def __init__(self, reader: SnapshotReader, steps: Sequence[int]) -> None:
        self._reader, self._steps = reader, list(steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: Any) -> Any:
        return self._reader.tensors(self._steps[index])


def place(
    restored: RestoredRun, batches: Batches, settings: SliceSettings, anchors: Sequence[int], trajectory: Sequence[int]
) -> Placement:
    """Where the slice lies, with the model at the last anchor.

    Args:
        anchors: steps that it goes through.
        trajectory: steps of the snapshots that ``pca`` is of.

    Raises:
        UsageError: directions that are not defined at this snapshot.
    """
    match settings.directions:
        case "pca":
            return _principal(restored, settings, trajectory)
        case "line":
            return _through(restored, settings, anchors)
        case "update":
            return _update(restored, settings, anchors[-1])
        case "gradient":
            return _gradient(restored, batches, settings, anchors[-1])
        case "top":
            return _top(restored, batches, settings)
    return Placement(_regular(settings))


def _regular(settings: SliceSettings, *default: float) -> tuple[np.ndarray, ...]:
    """Axes to the radius that was asked for, or to each axis' own."""
    from landscape.slices.grid import regular_axes

    radius: Any = (settings.radius,) * settings.dims if settings.radius is not None else default
    return regular_axes(settings.dims, settings.points, radius)


def _update(restored: RestoredRun, settings: SliceSettings, step: int) -> Placement:
    from landscape.slices import update_direction

    before = [int(other) for other in restored.snapshots.steps if other < step]
    if not before:
        raise UsageError(f"directions: 'update' at step {step}, the first snapshot; there is none before it")
    first = update_direction(restored.model, restored.snapshots.tensors(before[-1]), restored.snapshots.tensors(step))
    directions = _with_random(restored, first, settings)
    return Placement(_regular(settings), directions, facts={"since": before[-1]})


def _gradient(restored: RestoredRun, batches: Batches, settings: SliceSettings, step: int) -> Placement:
    from landscape.slices import loss_gradient

    gradient = loss_gradient(restored.model, batches)
    norm = float(gradient.norm())
    if not 0 < norm < float("inf"):
        raise UsageError(f"directions: the gradient at step {step} has norm {norm}")
    axes = _regular(settings, *(1 / norm,) * settings.dims)
    return Placement(axes, _with_random(restored, gradient / norm, settings), facts={"gradient_norm": norm})


def _top(restored: RestoredRun, batches: Batches, settings: SliceSettings) -> Placement:
    from landscape.curvature import top_eigenvalues

    found = top_eigenvalues(restored.model, batches, k=settings.dims, seed=settings.seed, return_vectors=True)
    facts = {"eigenvalues": found.values.tolist(), "converged": bool(found.converged)}
    assert found.vectors is not None
    radii = (math.sqrt(2 / value) if value > 0 else DEFAULT_RADIUS for value in found.values.tolist())
    return Placement(_regular(settings, *radii), list(found.vectors), facts=facts)


def _with_random(restored: RestoredRun, first: Tensor, settings: SliceSettings) -> list[Tensor]:
    from landscape.slices import random_direction

    if settings.dims == 1:
        return [first]
    second = random_direction(restored.model, "none", seed=settings.seed, axis=1)
    return [first, second * (first.norm() / second.norm())]


def _principal(restored: RestoredRun, settings: SliceSettings, trajectory: Sequence[int]) -> Placement:
    from landscape.slices import principal_plane

    snapshots = Snapshots(restored.snapshots, _finite(restored.snapshots, trajectory))
    plane = principal_plane(restored.model, snapshots, dims=settings.dims)
    assert plane.explained is not None
    axes = _covering(restored, plane, snapshots, settings)
    return Placement(axes, list(plane.directions), plane.origin, {"explained": plane.explained.tolist()})


def _through(restored: RestoredRun, settings: SliceSettings, anchors: Sequence[int]) -> Placement:
    import numpy as np

    from landscape.slices import line_through, plane_through

    snapshots = Snapshots(restored.snapshots, anchors)
    if settings.dims == 2:
        plane = plane_through(restored.model, *snapshots)
        axes = _covering(restored, plane, snapshots, settings)
    else:
        plane = line_through(restored.model, *snapshots)
        # It ends at its snapshots, so that they are among its points: a barrier is measured against them.
        axes = (np.linspace(0, 1, settings.points),) if settings.radius is None else _regular(settings)
    return Placement(axes, list(plane.directions), plane.origin)


def _covering(
    restored: RestoredRun, plane: Plane, snapshots: Snapshots, settings: SliceSettings
) -> tuple[np.ndarray, ...]:
    import numpy as np

    from landscape.slices import Coordinates, covering_axes

    if settings.radius is not None:
        return _regular(settings)
    coordinates = Coordinates(restored.model)
    places = [plane.project(coordinates.vector(item, "snapshots"))[0] for item in snapshots]
    return covering_axes(np.stack(places), settings.points)


def _finite(reader: SnapshotReader, steps: Sequence[int]) -> list[int]:
    """Those of the steps at which the parameters had not diverged."""
    import torch

    return [step for step in steps if all(bool(torch.isfinite(t).all()) for t in reader.tensors(step).values())]
