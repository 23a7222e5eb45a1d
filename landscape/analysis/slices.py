"""Slices of the loss at captured steps, kept with the run row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.analysis.checks import check_counts
from landscape.analysis.restored import RestoredRun, check_steps, open_run
from landscape.analysis.series import SPLIT
from landscape.analysis.slice_planes import Batches, Placement, Snapshots, place
from landscape.analysis.slice_settings import THROUGH_SNAPSHOTS, SliceSettings
from landscape.analysis.spaces import CapturedSpace
from landscape.errors import StoreError, UsageError
from landscape.store.slices import FLATNESS, SliceFile, SliceTrajectory, read_slice, slice_path, write_slice

if TYPE_CHECKING:
    import numpy as np

    from landscape.slices import Row, SliceResult
    from landscape.store import Run


@dataclass(frozen=True)
class Target:
    """One slice to be made of a run.

    Attributes:
        anchors: steps that it goes through; the last is where the model is, and others are those of a line.
        trajectory: steps whose snapshots are projected on it.
        snapshot: CRC-32s, in hex, of the anchors.
    """

    anchors: tuple[int, ...]
    trajectory: tuple[int, ...]
    snapshot: str
    identity: str


def analyze_slice(
    run: Run,
    settings: SliceSettings,
    steps: Iterable[int] | None = None,
    *,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> list[SliceFile]:
    """Slices of the probe loss at captured steps, one file each: ``analysis/slice2d-<id>.npz`` (``slice1d-``).

    Every finished row of a grid, and every draw of a line or of an adaptive grid, is on disk, atomically, before the
    next is measured: an interrupted slice goes on where it stopped. A slice that is known, with the same settings on
    the same snapshots, is only read.

    Args:
        run: a run with snapshots.
        settings: what to measure.
        steps: captured steps, a slice each; with ``directions="line"`` the two (1D) or three snapshots that one slice
            goes through. Default: the last snapshot; the first and the last, and one between them.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``.
        device: default: CUDA where there is one.
        progress: show a progress bar over points.

    Returns:
        In the order of the steps, as `landscape.store.slices.read_slice` gives them.

    Raises:
        UsageError: a setting out of range, directions that are not defined at a snapshot (such as ``filter`` in the
            adapter space where B = 0), diverged parameters, or the model or data cannot be found.
        StoreError: no such snapshot, a damaged one, or one that does not fit the model; changed model or data.
        LandscapeError: too little memory.
    """
    settings = settings.checked()
    check_counts(batch_size=batch_size)
    goals = targets(run, settings, steps)
    files = {goal: slice_path(run.analysis_dir, settings.dims, goal.identity) for goal in goals}
    if missing := [goal for goal in goals if not files[goal].is_file()]:
        restored = open_run(run, device=device)
        batches = restored.probe(settings.num_examples, batch_size)
        problems = [_measure(run, restored, batches, settings, goal, progress) for goal in missing]
        if found := [problem for problem in problems if problem is not None]:
            raise found[0]
    return [read_slice(files[goal]) for goal in goals]


def targets(run: Run, settings: SliceSettings, steps: Iterable[int] | None = None) -> list[Target]:
    """The slices that `analyze_slice` makes, with checked settings.

    Raises:
        UsageError: a number of steps that no line or plane goes through.
        StoreError: no such snapshot, or no snapshots.
    """
    available = [int(step) for step in run.snapshots().steps]
    if not available:
        raise StoreError(f"run {run.id}: no snapshots")
    count = settings.num_anchors
    chosen = (available[-1:] if count == 1 else spread(available, count)) if steps is None else check_steps(run, steps)
    if count > 1 and len(chosen) != count:
        raise UsageError(f"steps: {len(chosen)} with directions='line'; a {settings.dims}D slice goes through {count}")
    space = CapturedSpace(run, "adapter")
    examples = settings.num_examples or run.config.probe_examples
    made = []
    for anchors in [tuple(chosen)] if count > 1 else [(step,) for step in chosen]:
        before = [step for step in available if step <= anchors[-1]]
        trajectory = tuple(spread(before, settings.trajectory)) if settings.trajectory else ()
        snapshot = "-".join(space.checksum(step) for step in anchors)
        identity = settings.identity(
            anchors=anchors, trajectory_steps=trajectory, snapshot=snapshot, split=SPLIT, num_examples=examples
        )
        made.append(Target(anchors, trajectory, snapshot, identity))
    return made


def spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of these steps, evenly spaced, the first and the last among them; of one, the last."""
    if count >= len(steps):
        return list(steps)
    if count == 1:
        return [steps[-1]]
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def results_of(item: SliceFile) -> list[SliceResult]:
    """A slice on disk as the results that `landscape.slices` works with, one a draw; without directions."""
    from landscape.slices import SliceResult

    settings = item.info["settings"]
    is_random = settings["directions"] == "random"
    same = {key: item.info[key] for key in ("metric", "num_examples", "num_labels", "num_parameters", "precision")}
    return [
        SliceResult(
            axes=item.axes,
            loss=item.loss[draw],
            standard_error=item.standard_error[draw],
            origin_loss=item.origin_loss,
            space=settings["space"],
            normalization=settings["normalization"],
            seed=settings["seed"] if is_random else None,
            draw=draw if is_random else None,
            directions=None,
            cosine=facts["cosine"],
            evaluation=facts["evaluation"],
            seconds_a_point={},
            seconds=facts["seconds"],
            **same,
        )
        for draw, facts in enumerate(item.info["draws"])
    ]


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


def _measure(
    run: Run, restored: RestoredRun, batches: Batches, settings: SliceSettings, goal: Target, progress: bool
) -> UsageError | None:
    """Measure a slice, with the model moved to it, and write it; what was finished earlier is not measured again.

    Returns:
        Why this one cannot be measured, so that others still are.
    """
    from tqdm import tqdm

    from landscape.measurement import NonFiniteLossError

    step = goal.anchors[-1]
    restored.load(step)
    info = {
        "id": goal.identity, "run": run.id, "step": step, "anchors": list(goal.anchors), "snapshot": goal.snapshot,
        "split": SPLIT, "settings": asdict(settings), "draws": [],
    }  # fmt: skip
    unfinished = slice_path(run.analysis_dir, settings.dims, goal.identity, finished=False)
    try:
        placement = place(restored, batches, settings, goal.anchors, goal.trajectory)
        sheet = _Sheet(unfinished, settings, placement, {**info, **placement.facts})
        with tqdm(
            total=settings.num_points[1], desc=f"slice{settings.dims}d, step {step}", disable=not progress
        ) as bar:
            bar.update(sheet.num_finished)
            for draw in range(len(sheet.item.info["draws"]), settings.draws):
                drawn = _draw(restored, batches, settings, placement, sheet, draw, bar)
                first = draw == 0 and len(goal.trajectory) > 0
                sheet.finish(
                    draw,
                    drawn,
                    _trajectory(restored, batches, placement, drawn.result, goal.trajectory) if first else None,
                )
    except (UsageError, NonFiniteLossError) as error:
        return UsageError(f"run {run.id}, step {step}: {error}")
    write_slice(slice_path(run.analysis_dir, settings.dims, goal.identity), _completed(sheet.item))
    unfinished.unlink(missing_ok=True)
    return None


def _draw(
    restored: RestoredRun,
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
    options |= {"axes": placement.axes, "directions": placement.directions, "origin": placement.origin, "draw": draw}
    if settings.tolerance is not None:
        filling = adaptive_slice(restored.model, batches, tolerance=settings.tolerance, **options)
        bar.update(filling.slice.loss.size)
        facts = {key: getattr(filling.filled, key) for key in ("error_bound", "num_held_out", "converged")}
        return _Draw(filling.slice, filling.filled.evaluated, facts)

    def keep(index: int, row: Row) -> None:
        sheet.put_row(draw, index, row)
        bar.update(len(row.loss))

    return _Draw(loss_slice(restored.model, batches, finished=sheet.rows(draw), on_row=keep, **options), True, {})


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
            trajectory=None,
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

    def finish(self, draw: int, drawn: _Draw, trajectory: SliceTrajectory | None) -> None:
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
        self.item = replace(
            self.item, info=info, origin_loss=result.origin_loss, trajectory=trajectory or self.item.trajectory
        )
        write_slice(self._path, self.item)


def _trajectory(
    restored: RestoredRun, batches: Batches, placement: Placement, result: SliceResult, steps: Sequence[int]
) -> SliceTrajectory:
    """The run on the plane of a slice, with the model at the last anchor."""
    import numpy as np

    from landscape.slices import Coordinates, Plane, trace_trajectory

    assert result.directions is not None
    origin = Coordinates(restored.model).flatten() if placement.origin is None else placement.origin
    plane = Plane(origin, result.directions)
    traced = trace_trajectory(restored.model, batches, plane, Snapshots(restored.snapshots, steps))
    arrays = {
        key: getattr(traced, key) for key in ("coordinates", "distance", "loss", "standard_error", "surface_loss")
    }
    return SliceTrajectory(np.array(steps, np.int64), explained_variance=traced.explained_variance, **arrays)


def _completed(item: SliceFile) -> SliceFile:
    """With what is read off the whole of it."""
    from landscape.slices import Interpolation, flatness

    results = results_of(item)
    settings = item.info["settings"]
    info = {**item.info, "num_evaluations": int(item.evaluated.sum())}
    if settings["directions"] == "line" and item.dims == 1 and settings["radius"] is None:
        barrier = Interpolation(results[0]).barrier
        info["barrier"] = barrier if math.isfinite(barrier) else None
    if settings["directions"] in THROUGH_SNAPSHOTS or any(len(axis) < 5 or not (axis == 0).any() for axis in item.axes):
        return replace(item, info=info)
    numbers = flatness(results, settings["delta"])
    estimates = {name: getattr(numbers, name) for name in FLATNESS}
    rows = {name: (e.value, e.standard_error, float(e.num_draws)) for name, e in estimates.items()}
    return replace(item, info=info, flatness=rows)


def summary(item: SliceFile) -> dict[str, Any]:
    """One slice as one row of plain values: what was measured, and the numbers read off it."""
    import numpy as np

    finite = item.loss[np.isfinite(item.loss)]
    settings, facts = item.info["settings"], item.info["draws"]
    row: dict[str, Any] = {
        "step": item.info["step"], "file": slice_path(Path(), item.dims, item.info["id"]).name,
        **{key: settings[key] for key in ("dims", "directions", "space", "normalization", "draws", "seed")},
        "anchors": item.info["anchors"], "points": item.loss[0].size, "num_evaluations": item.info["num_evaluations"],
        "num_examples": item.info["num_examples"], "origin_loss": item.origin_loss,
        "smallest": float(finite.min(initial=math.inf)), "largest": float(finite.max(initial=-math.inf)),
        "not_finite": int(item.loss.size - finite.size), "barrier": item.info.get("barrier"),
        "error_bound": max((draw["error_bound"] for draw in facts if "error_bound" in draw), default=None),
        "explained_variance": None if item.trajectory is None else item.trajectory.explained_variance,
        "seconds": sum(draw["seconds"] for draw in facts),
    }  # fmt: skip
    for name in FLATNESS if item.flatness is not None else ():
        row[name], row[f"{name}_error"] = (item.flatness or {})[name][:2]
    return row
