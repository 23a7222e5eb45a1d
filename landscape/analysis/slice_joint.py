"""One slice of several runs: the surface that all of them train on, and where each of them went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.analysis.checks import check_counts
from landscape.analysis.restored import check_steps, open_run
from landscape.analysis.slice_comparable import check_comparable, check_same_surface
from landscape.analysis.slice_measurement import RunPath, measure_slice
from landscape.analysis.slice_planes import Snapshots, principal, through
from landscape.analysis.slice_settings import SliceSettings
from landscape.analysis.slices import spread
from landscape.errors import LandscapeError, StoreError, UsageError
from landscape.store.slices import SliceFile, joint_slices_dir, read_slice, slice_path

if TYPE_CHECKING:
    from landscape.store import Run, Store


@dataclass(frozen=True)
class JointTarget:
    """A slice of several runs.

    Attributes:
        runs: ordered by id.
        anchors: of each run the last step that counts; a line or plane goes through these.
        paths: of each run the steps whose snapshots are projected, and which ``pca`` is of.
        snapshots: of each run the CRC-32s, in hex, of the snapshots that decide the plane.
        identity: names the file.
    """

    runs: tuple[Run, ...]
    anchors: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    snapshots: tuple[str, ...]
    identity: str


def analyze_joint_slice(
    store: Store,
    runs: Sequence[Run],
    settings: SliceSettings,
    until: int | None = None,
    *,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> SliceFile:
    """The probe loss on one plane (or line) of several runs, with each one's trajectory.

    With ``directions="pca"`` the plane is the principal plane of the snapshots of all runs through their mean, with
    ``"line"`` it goes through one snapshot of each of two (1D) or three runs, in the order of their ids. The loss
    surface is that of the model that the runs share; it is measured once. Runs of different seeds also differ in gauge
    (BA = (BR⁻¹)(RA)), so that a part of the distance and of a barrier between them may change no function.

    The result is kept in ``STORE/analysis``, row by row as `landscape.analysis.slices.analyze_slice` does.

    Args:
        store: where the result goes.
        runs: two or more, with snapshots, of the same model, probe and adapter shapes; methods may differ.
        settings: what to measure.
        until: only snapshots up to this step, which every run has; default: all.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``.
        device: default: CUDA where there is one.
        progress: show a progress bar over points.

    Raises:
        UsageError: a setting out of range, runs that do not share what they must (names the first difference), equal or
            diverged snapshots, or the model or data cannot be found.
        StoreError: no such snapshot, a damaged one, or one that does not fit the model; changed model or data.
        LandscapeError: too little memory.
    """
    from landscape.measurement import NonFiniteLossError

    settings = settings.checked(joint=True)
    check_counts(batch_size=batch_size)
    goal = joint_target(runs, settings, until)
    folder = joint_slices_dir(store.path)
    path = slice_path(folder, settings.dims, goal.identity)
    if path.is_file():
        return read_slice(path)
    restored = open_run(goal.runs[0], device=device)
    check_same_surface(goal.runs, restored, settings.split)
    ids = [run.id for run in goal.runs]
    info: dict[str, Any] = {
        "id": goal.identity, "run": ids[0], "runs": ids, "step": None, "anchors": list(goal.anchors),
        "snapshot": list(goal.snapshots),
    }  # fmt: skip
    paths = [RunPath(run.id, run.snapshots(), steps) for run, steps in zip(goal.runs, goal.paths, strict=True) if steps]
    model, batches = restored.model, restored.examples(settings.split, settings.num_examples, batch_size)
    try:
        if settings.directions == "pca":
            snapshots = Snapshots([place for path in paths for place in path.places])
            placement = principal(model, settings, snapshots, center="mean")
        else:
            ends = zip(goal.runs, goal.anchors, strict=True)
            placement = through(model, settings, Snapshots([(run.snapshots(), step) for run, step in ends]))
        label = f"slice{settings.dims}d, {len(ids)} runs" if progress else None
        measure_slice(model, batches, settings, placement, paths, folder, info, label)
    except NonFiniteLossError as error:
        raise LandscapeError(f"runs {', '.join(ids)}: {error}") from error
    return read_slice(path)


def joint_target(runs: Sequence[Run], settings: SliceSettings, until: int | None = None) -> JointTarget:
    """The slice that `analyze_joint_slice` makes, with checked settings.

    Raises:
        UsageError: too few runs, a number that no line or plane goes through, or runs that differ in what they must
            share, as far as their configs and snapshots say it.
        StoreError: a run without snapshots or without this one.
    """
    runs = sorted(runs, key=lambda run: run.id)
    count = settings.num_anchors
    if len(runs) < 2:
        raise UsageError(f"runs: {len(runs)}; one plane of several takes at least 2")
    if count > 1 and len(runs) != count:
        raise UsageError(
            f"runs: {len(runs)} with directions='line'; a {settings.dims}D slice goes through one snapshot each of "
            f"{count}"
        )
    check_comparable(runs)
    anchors, paths, checksums = [], [], []
    for run in runs:
        snapshots = run.snapshots()
        available = [int(step) for step in snapshots.steps]
        if not available:
            raise StoreError(f"run {run.id}: no snapshots")
        last = available[-1] if until is None else check_steps(run, [until])[0]
        before = [step for step in available if step <= last]
        path = tuple(spread(before, settings.trajectory)) if settings.trajectory else ()
        anchors.append(last)
        paths.append(path)
        checksums.append("-".join(snapshots.checksum(step) for step in (path if count == 1 else (last,))))
    identity = settings.identity(
        runs=[run.id for run in runs], anchors=anchors, trajectory_steps=paths, snapshot=checksums,
        num_examples=settings.num_examples or getattr(runs[0].config, f"{settings.split}_examples"),
    )  # fmt: skip
    return JointTarget(tuple(runs), tuple(anchors), tuple(paths), tuple(checksums), identity)
