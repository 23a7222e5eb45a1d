"""Where a slice of captured runs lies: its directions and axes, from the runs' own snapshots where these say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from landscape.analysis.slice_settings import DEFAULT_RADIUS, SliceSettings
from landscape.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from landscape.analysis.restored import RestoredRun
    from landscape.slices import Plane
    from landscape.store import SnapshotReader

Batches = list[dict[str, Any]]


@dataclass(frozen=True)
class Placement:
    """Directions and axes as `landscape.slices.loss_slice` takes them.

    Attributes:
        axes: coordinates along each direction.
        directions: of a draw, normalized; none in spaces whose points are no vectors.
        origin: none for where the model is.
        facts: what they are, for the file: JSON values.
    """

    axes: tuple[np.ndarray, ...]
    directions: Callable[[int], list[Tensor]] | None = None
    origin: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def plane(self, model: nn.Module) -> Plane:
        """That of the first draw, with the model where it was placed."""
        import torch

        from landscape.slices import Coordinates, Plane

        assert self.directions is not None
        origin = Coordinates(model).flatten() if self.origin is None else self.origin
        return Plane(origin, torch.stack(self.directions(0)).to(origin))

    def moved(self, model: nn.Module) -> Placement:
        """The same directions and axes through where the model is now.

        Coordinate 0 is there; but a plane with an origin of its own keeps its coordinates, so that whatever is
        projected on it stays in its place.
        """
        from landscape.slices import Coordinates

        if self.origin is None:
            return replace(self, facts={**self.facts, "center": [0.0] * len(self.axes)})
        plane, point = self.plane(model), Coordinates(model).flatten()
        center, _ = plane.project(point)
        inside = plane.at(center).double() - plane.origin.double()
        facts = {**self.facts, "center": center.tolist()}
        return replace(self, origin=(point.double() - inside).to(point), facts=facts)


class Snapshots(Sequence["dict[str, Tensor]"]):
    """Snapshots of one or several runs, each read from disk when it is looked at."""

    def __init__(self, places: Sequence[tuple[SnapshotReader, int]]) -> None:
        self._places = list(places)

    @classmethod
    def of(cls, reader: SnapshotReader, steps: Sequence[int]) -> Snapshots:
        """Those of one run."""
        return cls([(reader, step) for step in steps])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        reader, step = self._places[index]
        return reader.tensors(step)

    def finite(self) -> Snapshots:
        """Those at which the parameters had not diverged."""
        import torch

        return Snapshots(
            [
                (reader, step)
                for reader, step in self._places
                if all(bool(torch.isfinite(tensor).all()) for tensor in reader.tensors(step).values())
            ]
        )


def place(
    restored: RestoredRun, batches: Batches, settings: SliceSettings, anchors: Sequence[int], fitted: Sequence[int]
) -> Placement:
    """Where the slice lies, with the model at the last anchor.

    Args:
        anchors: steps that it goes through.
        fitted: steps of the snapshots that ``pca`` is of.

    Raises:
        UsageError: directions that are not defined at this snapshot.
    """
    match settings.directions:
        case "pca":
            return principal(restored.model, settings, Snapshots.of(restored.snapshots, fitted))
        case "line":
            return through(restored.model, settings, Snapshots.of(restored.snapshots, anchors))
        case "update":
            return _update(restored, settings, anchors[-1])
        case "gradient":
            return _gradient(restored, batches, settings, anchors[-1])
        case "top":
            return _top(restored, batches, settings)
    return _random(restored, settings)


def principal(model: nn.Module, settings: SliceSettings, snapshots: Snapshots, center: str = "last") -> Placement:
    """Along the principal components of the snapshots, over their extent.

    Raises:
        UsageError: too few of them are finite, they do not span the plane, or are of another adapter.
    """
    from landscape.slices import principal_plane

    finite = snapshots.finite()
    plane = principal_plane(model, finite, dims=settings.dims, center=center)
    assert plane.explained is not None
    axes = _covering(model, plane, finite, settings)
    return Placement(axes, lambda draw: list(plane.directions), plane.origin, {"explained": plane.explained.tolist()})


def through(model: nn.Module, settings: SliceSettings, snapshots: Snapshots) -> Placement:
    """The line through two snapshots, or the plane through three.

    Raises:
        UsageError: they are equal or on a line, not finite, or of another adapter.
    """
    import numpy as np

    from landscape.slices import line_through, plane_through

    if settings.dims == 2:
        plane = plane_through(model, *snapshots)
        axes = _covering(model, plane, snapshots, settings)
    else:
        plane = line_through(model, *snapshots)
        # It ends at its snapshots, so that they are among its points: a barrier is measured against them.
        axes = (np.linspace(0, 1, settings.points),) if settings.radius is None else _regular(settings)
    return Placement(axes, lambda draw: list(plane.directions), plane.origin)


def _random(restored: RestoredRun, settings: SliceSettings) -> Placement:
    from landscape.slices import Coordinates
    from landscape.slices.directions import drawn

    if settings.space != "adapter":
        return Placement(_regular(settings))
    coordinates = Coordinates(restored.model)
    origin, normalization = coordinates.flatten(), settings.normalization or "none"

    def directions(draw: int) -> list[Tensor]:
        keys = [(settings.seed, draw, axis) for axis in range(settings.dims)]
        return [drawn(coordinates, origin, normalization, key) for key in keys]

    return Placement(_regular(settings), directions)


def _given(
    restored: RestoredRun,
    settings: SliceSettings,
    axes: tuple[np.ndarray, ...],
    vectors: Sequence[Tensor],
    facts: dict[str, Any],
) -> Placement:
    """Along these vectors, normalized where the model is."""
    from landscape.slices import Coordinates
    from landscape.slices.directions import normalized

    coordinates = Coordinates(restored.model)
    origin, normalization = coordinates.flatten(), settings.normalization or "none"
    made = [normalized(vector, coordinates, origin, normalization) for vector in vectors]
    return Placement(axes, lambda draw: made, facts=facts)


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
    return _given(restored, settings, _regular(settings), directions, {"since": before[-1]})


def _gradient(restored: RestoredRun, batches: Batches, settings: SliceSettings, step: int) -> Placement:
    from landscape.slices import loss_gradient

    gradient = loss_gradient(restored.model, batches)
    norm = float(gradient.norm())
    if not 0 < norm < float("inf"):
        raise UsageError(f"directions: the gradient at step {step} has norm {norm}")
    axes = _regular(settings, *(1 / norm,) * settings.dims)
    directions = _with_random(restored, gradient / norm, settings)
    return _given(restored, settings, axes, directions, {"gradient_norm": norm})


def _top(restored: RestoredRun, batches: Batches, settings: SliceSettings) -> Placement:
    from landscape.curvature import top_eigenvalues

    found = top_eigenvalues(restored.model, batches, k=settings.dims, seed=settings.seed, return_vectors=True)
    facts = {"eigenvalues": found.values.tolist(), "converged": bool(found.converged)}
    assert found.vectors is not None
    radii = (math.sqrt(2 / value) if value > 0 else DEFAULT_RADIUS for value in found.values.tolist())
    return _given(restored, settings, _regular(settings, *radii), list(found.vectors), facts)


def _with_random(restored: RestoredRun, first: Tensor, settings: SliceSettings) -> list[Tensor]:
    from landscape.slices import random_direction

    if settings.dims == 1:
        return [first]
    second = random_direction(restored.model, "none", seed=settings.seed, axis=1)
    return [first, second * (first.norm() / second.norm())]


def _covering(model: nn.Module, plane: Plane, snapshots: Snapshots, settings: SliceSettings) -> tuple[np.ndarray, ...]:
    import numpy as np

    from landscape.slices import Coordinates, covering_axes

    if settings.radius is not None:
        return _regular(settings)
    coordinates = Coordinates(model)
    places = [plane.project(coordinates.vector(item, "snapshots"))[0] for item in snapshots]
    return covering_axes(np.stack(places), settings.points)
