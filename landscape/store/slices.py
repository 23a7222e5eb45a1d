"""Slices of the loss as files of an ``analysis`` folder: plain arrays, and what they are as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.store.arrays import read_arrays
from landscape.store.atomic import replacing

if TYPE_CHECKING:
    import numpy as np

FLATNESS = ("width", "anisotropy", "nonconvexity")
SPACES, NORMALIZATIONS = ("adapter", "merged", "tangent"), ("filter", "layer", "none")
"""What a slice's settings may name; `landscape.slices` says what they are. Reading slices does not need torch."""

_TRAJECTORY_ARRAYS = ("steps", "coordinates", "distance", "loss", "standard_error", "surface_loss")


@dataclass(frozen=True, eq=False)
class SliceTrajectory:
    """Where a run's snapshots lie on the plane of a slice; their loss is not the surface's."""

    run: str
    """Id of the run."""
    steps: np.ndarray
    """(snapshots,) int64."""
    coordinates: np.ndarray
    """(snapshots, dims), in those of the slice; NaN where the parameters had diverged."""
    distance: np.ndarray
    """(snapshots,) Euclidean, from the plane."""
    loss: np.ndarray
    """(snapshots,) at the snapshots themselves."""
    standard_error: np.ndarray
    """(snapshots,) of ``loss``, over examples."""
    surface_loss: np.ndarray
    """(snapshots,) at their projections."""
    explained_variance: float
    """Share of the snapshots' squared distances from the origin that lies in the plane."""


@dataclass(frozen=True, eq=False)
class SliceFile:
    """A slice of one captured run, or of several on one plane, as it is kept on disk."""

    axes: tuple[np.ndarray, ...]
    """Coordinates along each direction, (points,) each, ascending."""
    loss: np.ndarray
    """(draws, points) or (draws, points, points) float64, in nats a counted label; not finite where the loss is not,
    and NaN where it is still to be measured."""
    standard_error: np.ndarray
    """Over examples, in the shape of ``loss``; NaN where the loss is interpolated."""
    evaluated: np.ndarray
    """Where ``loss`` was measured, bool in its shape; elsewhere it is interpolated."""
    origin_loss: float
    """At coordinate 0, by the model's own forward pass."""
    trajectories: tuple[SliceTrajectory, ...]
    """One a run; none where none was asked for. In a slice that is still being measured, of those that are done."""
    flatness: Mapping[str, tuple[float, float, float]] | None
    """By name (`FLATNESS`): value, standard error over draws, and number of draws."""
    info: Mapping[str, Any]
    """Run, steps, settings, and how it was measured; JSON values."""

    @property
    def dims(self) -> int:
        """1 or 2."""
        return len(self.axes)

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of the runs that it is of."""
        return tuple(self.info.get("runs") or ([self.info["run"]] if "run" in self.info else []))

    @property
    def mean(self) -> np.ndarray:
        """Over draws; (points,) or (points, points)."""
        return self.loss.mean(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation over draws; NaN of one."""
        import numpy as np

        if len(self.loss) < 2:
            return np.full(self.loss.shape[1:], np.nan)
        with np.errstate(invalid="ignore"):
            return self.loss.std(axis=0, ddof=1)


def joint_slices_dir(store: Path) -> Path:
    """Where a store keeps the slices of several runs; those of one run are in its own ``analysis`` folder."""
    return store / "analysis"


def slice_path(folder: Path, dims: int, identity: str, *, finished: bool = True) -> Path:
    """Where a slice is kept; unfinished ones have names that `slice_files` leaves out."""
    return folder / f"{'' if finished else 'partial-'}slice{dims}d-{identity}.npz"


def slice_files(folder: Path, dims: int | None = None) -> list[Path]:
    """The finished slices in the ``analysis`` folder of a run, or of a store, by name."""
    return sorted(folder.glob(f"slice{dims or '[12]'}d-*.npz"))


def write_slice(path: Path, item: SliceFile) -> None:
    """Replace the file atomically.

    Raises:
        StoreError: the disk is full or refuses; the old file is then still there.
    """
    import numpy as np

    arrays: dict[str, Any] = {f"axis{index}": axis for index, axis in enumerate(item.axes)}
    arrays |= {name: getattr(item, name) for name in ("loss", "standard_error", "evaluated", "origin_loss")}
    for index, trajectory in enumerate(item.trajectories):
        names = ("run", *_TRAJECTORY_ARRAYS, "explained_variance")
        arrays |= {f"trajectory{index}_{name}": getattr(trajectory, name) for name in names}
    if item.flatness is not None:
        arrays["flatness"] = np.array([item.flatness[name] for name in FLATNESS], dtype=np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, info=np.array(json.dumps(item.info, allow_nan=False)), **arrays)


def read_slice(path: Path) -> SliceFile:
    """What `write_slice` wrote; nothing in the file is ever unpickled.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        arrays = read_arrays(path)
    except StoreError as error:
        raise StoreError(f"{error}; delete it to measure again" if path.is_file() else str(error)) from error
    try:
        info = json.loads(str(arrays["info"]))
        _check_info(info)
        axes = tuple(arrays[f"axis{index}"] for index in range(2) if f"axis{index}" in arrays)
        item = SliceFile(
            axes=axes,
            **{name: arrays[name] for name in ("loss", "standard_error", "evaluated")},
            origin_loss=float(arrays["origin_loss"]),
            trajectories=tuple(_read_trajectories(arrays, info)),
            flatness=_read_flatness(arrays["flatness"]) if "flatness" in arrays else None,
            info=info,
        )
        if any(array.dtype.kind not in "fiub" for name, array in arrays.items() if not _is_text(name)):
            raise ValueError("an array of something else than numbers")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        detail = f"no array {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise StoreError(f"{path} is damaged ({detail}); delete it to measure again") from error
    shape = (*item.loss.shape[:1], *(axis.size for axis in item.axes))
    surfaces = (item.loss, item.standard_error, item.evaluated)
    fits = all(axis.ndim == 1 for axis in axes) and all(array.shape == shape for array in surfaces)
    for trajectory in item.trajectories:
        places = (trajectory.steps.size, len(axes))
        columns = (getattr(trajectory, name) for name in _TRAJECTORY_ARRAYS if name != "coordinates")
        fits &= trajectory.coordinates.shape == places and all(column.shape == places[:1] for column in columns)
    if not axes or not fits:
        raise StoreError(f"{path} is damaged (its arrays do not fit each other); delete it to measure again")
    return item


def _is_text(name: str) -> bool:
    return name == "info" or name.endswith("_run")


def _check_info(info: Any) -> None:
    """`ValueError` where it is no mapping, or its runs have no names; the rest is looked at by whoever shows it."""
    runs = [info.get("run", ""), *(info.get("runs") or ())] if isinstance(info, dict) else [None]
    if not all(isinstance(run, str) for run in runs):
        raise ValueError("info is no mapping that names its runs")


def _read_trajectories(arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> Iterator[SliceTrajectory]:
    # Files from before there could be several have one, of their run, under names without a number.
    old = [("trajectory", str(info["run"]))] if "trajectory_steps" in arrays else []
    count = sum(name.startswith("trajectory") and name.endswith("_run") for name in arrays)
    for prefix, run in old or [(f"trajectory{i}", str(arrays[f"trajectory{i}_run"])) for i in range(count)]:
        columns = {name: arrays[f"{prefix}_{name}"] for name in _TRAJECTORY_ARRAYS}
        yield SliceTrajectory(run, **columns, explained_variance=float(arrays[f"{prefix}_explained_variance"]))


def _read_flatness(rows: np.ndarray) -> dict[str, tuple[float, float, float]]:
    return {name: (float(row[0]), float(row[1]), float(row[2])) for name, row in zip(FLATNESS, rows, strict=True)}
