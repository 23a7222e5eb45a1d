"""Where a slice of a captured run lies: its directions and axes, from the run's own snapshots where these say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from landscape.analysis.slice_settings import SliceSettings
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
    """Directions and origin as `landscape.slices.loss_slice` takes them.

    Attributes:
        options: ``directions`` (none for random ones), ``origin`` and ``axes``.
        facts: what they are, for the file: JSON values.
    """

    options: dict[str, Any] = field(default_factory=dict)
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
    restored: RestoredRun, batches: Batches, settings: SliceSettings, anchors: Sequence[int], path: Sequence[int]
) -> Placement:
    """Where the slice lies, with the model at the last anchor.

    Args:
        anchors: steps that it goes through.
        path: steps of the snapshots that ``pca`` is of.

    Raises:
        UsageError: directions that are not defined at this snapshot.
    """
    makers = {"update": _update, "gradient": _gradient, "top": _top}
    if settings.directions == "random":
        return Placement()
    if settings.directions == "pca":
        return _principal(restored, settings, path)
    if settings.directions == "line":
        return _through(restored, settings, anchors)
    return makers[settings.directions or ""](restored, batches, settings, anchors[-1])


def _update(restored: RestoredRun, batches: Batches, settings: SliceSettings, step: int) -> Placement:
    from landscape.slices import update_direction

    before = [int(other) for other in restored.snapshots.steps if other < step]
    if not before:
        raise UsageError(f"directions: 'update' at step {step}, the first snapshot; there is none before it")
    first = update_direction(
        restored.model, restored.snapshots.tensors(before[-1]), restored.snapshots.tensors(step)
    )
    return _with_random(restored, first, settings, since=before[-1])


def _gradient(restored: RestoredRun, batches: Batches, settings: SliceSettings, step: int) -> Placement:
    from landscape.slices import loss_gradient

    gradient = loss_gradient(restored.model, batches)
    norm = float(gradient.norm())
    if not 0 < norm < float("inf"):
        raise UsageError(f"directions: the gradient at step {step} has norm {norm}")
    return _with_random(restored, gradient / norm, settings, gradient_norm=norm)


def _top(restored: RestoredRun, batches: Batches, settings: SliceSettings, step: int) -> Placement:
    from landscape.curvature import top_eigenvalues

    found = top_eigenvalues(restored.model, batches, k=settings.dims, seed=settings.seed, return_vectors=True)
    facts = {"eigenvalues": found.values.tolist(), "converged": bool(found.converged)}
    assert found.vectors is not None
    return Placement({"directions": list(found.vectors)}, facts)


def _with_random(restored: RestoredRun, first: Tensor, settings: SliceSettings, **facts: Any) -> Placement:
    from landscape.slices import random_direction

    directions = [first]
    if settings.dims == 2:
        second = random_direction(restored.model, "none", seed=settings.seed, axis=1)
        directions.append(second * (first.norm() / second.norm()))
    return Placement({"directions": directions}, facts)


def _principal(restored: RestoredRun, settings: SliceSettings, path: Sequence[int]) -> Placement:
    from landscape.slices import principal_plane

    snapshots = Snapshots(restored.snapshots, path)
    plane = principal_plane(restored.model, snapshots, dims=settings.dims)
    return _covering(restored, plane, snapshots, settings, 0.25)


def _through(restored: RestoredRun, settings: SliceSettings, anchors: Sequence[int]) -> Placement:
    from landscape.slices import line_through, plane_through

    snapshots = Snapshots(restored.snapshots, anchors)
    through: Any = line_through if settings.dims == 1 else plane_through
    plane = through(restored.model, *snapshots)
    # A line ends at its snapshots, so that they are among its points: a barrier is measured against them.
    return _covering(restored, plane, snapshots, settings, 0.0 if settings.dims == 1 else 0.25)


def _covering(
    restored: RestoredRun, plane: Plane, snapshots: Snapshots, settings: SliceSettings, margin: float
) -> Placement:
    import numpy as np

    from landscape.slices import Coordinates, covering_axes

    explained = {} if plane.explained is None else {"explained": plane.explained.tolist()}
    options: dict[str, Any] = {"directions": list(plane.directions), "origin": plane.origin}
    if settings.radius is None:
        coordinates = Coordinates(restored.model)
        places: np.ndarray = np.stack([plane.project(coordinates.vector(item, "snapshots"))[0] for item in snapshots])
        options["axes"] = covering_axes(_exact(places), settings.points, margin)
    return Placement(options, explained)


def _exact(places: np.ndarray) -> np.ndarray:
    """Coordinates of a line's own ends, 0 and 1, without what rounding adds."""
    import numpy as np

    nearest = np.round(places)
    return np.where(np.abs(places - nearest) < 1e-9, nearest, places)
