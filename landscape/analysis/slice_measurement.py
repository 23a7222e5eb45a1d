"""Measuring a slice of a captured model so that it can be interrupted, and projecting runs on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.analysis.slice_planes import Batches, Placement, Snapshots
from landscape.analysis.slice_settings import SliceSettings
from landscape.analysis.slice_summary import completed
from landscape.store.slices import SliceFile, SliceTrajectory, read_slice, slice_path, write_slice

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from landscape.slices import Row, SliceResult
    from landscape.store import SnapshotReader


@dataclass(frozen=True)
class RunPath:
    """Snapshots of a run that are projected on a slice."""

    run: str
    reader: SnapshotReader
    steps: tuple[int, ...]

    @property
    def places(self) -> list[tuple[SnapshotReader, int]]:
        """As `Snapshots` takes them."""
        return [(self.reader, step) for step in self.steps]


def measure_slice(
    model: nn.Module,
    batches: Batches,
    settings: SliceSettings,
    placement: Placement,
    paths: Sequence[RunPath],
    folder: Path,
    info: dict[str, Any],
    label: str | None = None,
) -> None:
    """Measure a slice and write it to ``folder``; what was finished earlier is not measured again.

    Args:
        settings: checked.
        paths: projected on the plane of the first draw.
        info: what the slice is of, with its ``id``; JSON values.
        label: of a progress bar over points; none without one.

    Raises:
        UsageError, NonFiniteLossError: it cannot be measured here.
        LandscapeError: too little memory.
    """
    from tqdm import tqdm

    unfinished = slice_path(folder, settings.dims, info["id"], finished=False)
    full = {**info, "split": settings.split, "settings": asdict(settings), "draws": [], **placement.facts}
    sheet = _Sheet(unfinished, settings, placement, full)
    with tqdm(total=settings.num_points[1], desc=label, disable=label is None) as bar:
        bar.update(sheet.num_finished)
        for draw in range(len(sheet.item.info["draws"]), settings.draws):
            sheet.finish(draw, _draw(model, batches, settings, placement, sheet, draw, bar))
        for path in paths[len(sheet.item.trajectories) :]:
            sheet.add(_projected(model, batches, settings, placement, path))
    write_slice(slice_path(folder, settings.dims, info["id"]), completed(sheet.item))
    unfinished.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Draw:
    """One draw, measured.

    Attributes:
        evaluated: bool, where the grid was not filled completely.
        facts: JSON values.
    """

    result: SliceResult
    evaluated: np.ndarray | bool
    facts: dict[str, Any]


def _draw(
    model: nn.Module,
    batches: Batches,
    settings: SliceSettings,
    placement: Placement,
    sheet: _Sheet,
    draw: int,
    bar: Any,
) -> _Draw:
    """One draw: row by row, or adaptively."""
    from landscape.slices import adaptive_slice, loss_slice

    options: dict[str, Any] = {name: getattr(settings, name) for name in ("dims", "normalization", "space", "seed")}
    options |= {"axes": placement.axes, "origin": placement.origin, "draw": draw, "autocast": autocast(settings)}
    if placement.directions is not None:
        options |= {"directions": placement.directions(draw), "normalization": "none"}
    if settings.tolerance is not None:
        filling = adaptive_slice(model, batches, tolerance=settings.tolerance, **options)
        bar.update(filling.slice.loss.size)
        filled = filling.filled
        facts = {
            "error_bound": float(filled.error_bound),
            "held_out_error": float(filled.held_out_error),
            "num_held_out": int(filled.num_held_out),
            "num_tests": int(filled.num_tests),
            "coverage": float(filled.coverage),
            "converged": bool(filled.converged),
        }
        return _Draw(filling.slice, filled.evaluated, facts)

    def keep(index: int, row: Row) -> None:
        sheet.put_row(draw, index, row)
        bar.update(len(row.loss))

    return _Draw(loss_slice(model, batches, finished=sheet.rows(draw), on_row=keep, **options), True, {})


def autocast(settings: SliceSettings) -> torch.dtype | None:
    """The settings' precision as `landscape.slices` takes it."""
    import torch

    return None if settings.precision is None else getattr(torch, settings.precision)


def _projected(
    model: nn.Module, batches: Batches, settings: SliceSettings, placement: Placement, path: RunPath
) -> SliceTrajectory:
    """A run on the plane of a slice, with the model where the slice was placed."""
    import numpy as np

    from landscape.slices import trace_trajectory

    traced = trace_trajectory(
        model, batches, placement.plane(model), Snapshots(path.places), autocast=autocast(settings)
    )
    names = ("coordinates", "distance", "loss", "standard_error", "surface_loss", "explained_variance")
    return SliceTrajectory(path.run, np.array(path.steps, np.int64), **{name: getattr(traced, name) for name in names})


class _Sheet:
    """A slice while it is measured, on disk after every row."""

    def __init__(self, path: Path, settings: SliceSettings, placement: Placement, info: dict[str, Any]) -> None:
        import numpy as np

        self._path = path
        shape = (settings.draws, *map(len, placement.axes))
        self.item = SliceFile(
            axes=placement.axes,
            loss=np.full(shape, np.nan),
            standard_error=np.full(shape, np.nan),
            evaluated=np.zeros(shape, bool),
            origin_loss=math.nan,
            trajectories=(),
            flatness=None,
            info=info,
        )
        if path.is_file():
            earlier = read_slice(path)
            # Rounding may differ where another machine began; a grid that differs by more was made by other code.
            same = zip(earlier.axes, placement.axes, strict=True)
            if all(
                len(old) == len(new) and np.allclose(old, new, rtol=0, atol=1e-6 * np.ptp(new)) for old, new in same
            ):
                self.item = earlier

    @property
    def num_finished(self) -> int:
        """Points that need no measurement any more."""
        complete = len(self.item.info["draws"])
        return self.item.loss[:complete].size + int(self.item.evaluated[complete:].sum())

    def rows(self, draw: int) -> dict[int, Row]:
        """The finished rows of a grid; a line is one."""
        from landscape.slices import Row

        loss, error, evaluated = (
            array[draw].reshape(-1, array.shape[-1])
            for array in (self.item.loss, self.item.standard_error, self.item.evaluated)
        )
        return {index: Row(loss[index], error[index]) for index in range(len(loss)) if evaluated[index].all()}

    def put_row(self, draw: int, index: int, row: Row) -> None:
        """Keep a row of a grid."""
        place = (draw, index) if self.item.dims == 2 else (draw,)
        self.item.loss[place], self.item.standard_error[place] = row.loss, row.standard_error
        self.item.evaluated[place] = True
        write_slice(self._path, self.item)

    def finish(self, draw: int, drawn: _Draw) -> None:
        """Keep a draw with what is known of it."""
        result = drawn.result
        self.item.loss[draw], self.item.standard_error[draw] = result.loss, result.standard_error
        self.item.evaluated[draw] = drawn.evaluated
        same = ("metric", "num_examples", "num_labels", "num_parameters", "precision")
        facts = {key: getattr(result, key) for key in ("evaluation", "cosine", "seconds")}
        info = {
            **self.item.info,
            **{key: getattr(result, key) for key in same},
            "draws": [*self.item.info["draws"], {**facts, **drawn.facts}],
        }
        self.item = replace(self.item, info=info, origin_loss=result.origin_loss)
        write_slice(self._path, self.item)

    def add(self, trajectory: SliceTrajectory) -> None:
        """Keep a run's path."""
        self.item = replace(self.item, trajectories=(*self.item.trajectories, trajectory))
        write_slice(self._path, self.item)
