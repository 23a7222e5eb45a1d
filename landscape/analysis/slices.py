"""Slices of the loss at captured steps of a run, kept with it row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.analysis.checks import check_counts
from landscape.analysis.restored import RestoredRun, check_steps, open_run
from landscape.analysis.slice_measurement import RunPath, measure_slice
from landscape.analysis.slice_planes import Batches, Placement, place
from landscape.analysis.slice_settings import SliceSettings
from landscape.analysis.slice_summary import results_of, summary
from landscape.analysis.spaces import CapturedSpace
from landscape.errors import StoreError, UsageError
from landscape.store.slices import SliceFile, read_slice, slice_path

if TYPE_CHECKING:
    from landscape.store import Run

__all__ = ["Target", "analyze_slice", "results_of", "spread", "summary", "targets"]


@dataclass(frozen=True)
class Target:
    """One slice to be made of a run.

    Attributes:
        anchors: steps that it goes through; the last is where the model is, and others are those of a line.
        fitted: steps of the snapshots that ``pca`` is of.
        trajectory: steps whose snapshots are projected on it.
        snapshot: CRC-32s, in hex, of the anchors.
        identity: names the file.
        plane: what slices have in common that lie along the same directions; None of a slice on its own.
    """

    anchors: tuple[int, ...]
    fitted: tuple[int, ...]
    trajectory: tuple[int, ...]
    snapshot: str
    identity: str
    plane: str | None = None


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

    Every finished row of a grid, every draw of a line or of an adaptive grid, and every projected run is on disk,
    atomically, before the next is measured: an interrupted slice goes on where it stopped. A slice that is known, with
    the same settings on the same snapshots, is only read.

    With ``settings.common`` all slices have the directions and axes of that step, so that they compare, and
    ``info["common"]``: ``step``, and ``id``, which is equal for slices that have them in common. Planes of ``pca`` are
    then parallel, each through its snapshot at the coordinates ``info["center"]``, and a projected run lies at the same
    place on all; others have their snapshot at 0.

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
        batches = restored.examples(settings.split, settings.num_examples, batch_size)
        common = _common_placement(run, restored, batches, settings, goals[0])
        problems = [_measure(run, restored, batches, settings, goal, common, progress) for goal in missing]
        if found := [problem for problem in problems if problem is not None]:
            raise found[0]
    return [read_slice(files[goal]) for goal in goals]


def targets(run: Run, settings: SliceSettings, steps: Iterable[int] | None = None) -> list[Target]:
    """The slices that `analyze_slice` makes, with checked settings.

    Raises:
        UsageError: a number of steps that no line or plane goes through.
        StoreError: no such snapshot, or no snapshots.
    """
    snapshots = run.snapshots()
    available = [int(step) for step in snapshots.steps]
    if not available:
        raise StoreError(f"run {run.id}: no snapshots")
    count = settings.num_anchors
    chosen = (available[-1:] if count == 1 else spread(available, count)) if steps is None else check_steps(run, steps)
    if count > 1 and len(chosen) != count:
        raise UsageError(f"steps: {len(chosen)} with directions='line'; a {settings.dims}D slice goes through {count}")
    if settings.common is not None:
        check_steps(run, [settings.common])
    space = CapturedSpace(run, "adapter")
    examples = settings.num_examples or getattr(run.config, f"{settings.split}_examples")
    made = []
    for anchors in [tuple(chosen)] if count > 1 else [(step,) for step in chosen]:
        last = anchors[-1] if settings.common is None or settings.directions != "pca" else settings.common
        before = [step for step in available if step <= last]
        fitted = tuple(spread(before, settings.trajectory)) if settings.trajectory else ()
        # Every snapshot that decides the plane decides the slice, too.
        decisive = {"fitted": "-".join(map(snapshots.checksum, fitted))} if settings.directions == "pca" else {}
        shown, plane = fitted, None
        if settings.common is not None:
            shown = tuple(sorted({*fitted, *anchors})) if fitted else ()
            plane = settings.identity(
                fitted_steps=fitted if decisive else (), snapshot=space.checksum(settings.common),
                run=run.id, num_examples=examples, **decisive,
            )  # fmt: skip
        snapshot = "-".join(space.checksum(step) for step in anchors)
        more = decisive if plane is None else {**decisive, "plane": plane}
        identity = settings.identity(
            anchors=anchors, trajectory_steps=shown, snapshot=snapshot, num_examples=examples, **more
        )
        made.append(Target(anchors, fitted, shown, snapshot, identity, plane))
    return made


def spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of these steps, evenly spaced, the first and the last among them; of one, the last."""
    if count >= len(steps):
        return list(steps)
    if count == 1:
        return [steps[-1]]
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def _common_placement(
    run: Run, restored: RestoredRun, batches: Batches, settings: SliceSettings, goal: Target
) -> Placement | None:
    """Directions and axes at the step from which all slices have them."""
    if (step := settings.common) is None:
        return None
    restored.load(step)
    try:
        return place(restored, batches, settings, (step,), goal.fitted)
    except UsageError as error:
        raise UsageError(f"run {run.id}, step {step}: {error}") from error


def _measure(
    run: Run,
    restored: RestoredRun,
    batches: Batches,
    settings: SliceSettings,
    goal: Target,
    common: Placement | None,
    progress: bool,
) -> UsageError | None:
    """Measure a slice, with the model moved to it, and write it.

    Returns:
        Why this one cannot be measured, so that others still are.
    """
    from landscape.measurement import NonFiniteLossError

    step = goal.anchors[-1]
    restored.load(step)
    info: dict[str, Any] = {
        "id": goal.identity, "run": run.id, "runs": [run.id], "step": step, "anchors": list(goal.anchors),
        "snapshot": goal.snapshot,
    }  # fmt: skip
    if common is not None:
        info["common"] = {"id": goal.plane, "step": settings.common}
    paths = [RunPath(run.id, restored.snapshots, goal.trajectory)] if goal.trajectory else []
    label = f"slice{settings.dims}d, step {step}" if progress else None
    try:
        placement = common.moved(restored.model) if common is not None else None
        placement = placement or place(restored, batches, settings, goal.anchors, goal.fitted)
        measure_slice(restored.model, batches, settings, placement, paths, run.analysis_dir, info, label)
    except (UsageError, NonFiniteLossError) as error:
        return UsageError(f"run {run.id}, step {step}: {error}")
    return None
