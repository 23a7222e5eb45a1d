"""``landscape analyze slice1d`` and ``slice2d``: the loss around captured snapshots, and where runs went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.along_runs import (
    AddressOption,
    EngineOption,
    Rows,
    Workplace,
    check_anything_left,
    engine_for,
    finish,
)
from landscape.cli.console import JsonOption, StoreArgument, WhereOption, errors_as_exits, print_json, stderr
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.analysis.slice_cost import SliceEstimate
    from landscape.analysis.slice_settings import SliceSettings
    from landscape.store import Run
    from landscape.sweeps.engines import Engine

TOLERANCE = 0.01

StepsOption = Annotated[
    str | None,
    typer.Option("--steps", "--step", help="A slice at each of these snapshots, e.g. 0,50 (default: the last)."),
]
PointsOption = Annotated[int, typer.Option(min=2, help="An axis; an odd number has the snapshot among them.")]
RadiusOption = Annotated[
    float | None,
    typer.Option(
        help="Axes end at ± this (default: 1; gradient, top: about 1 nat off; pca, line: around the snapshots)."
    ),
]
NormalizationOption = Annotated[
    str | None, typer.Option(help="filter, layer or none (default: filter for random directions, else none).")
]
SpaceOption = Annotated[str, typer.Option(help="adapter; merged (W' = W + sBA); tangent (of W', where A and B lead).")]
DirectionsOption = Annotated[
    str | None,
    typer.Option(
        help="random (default); update, from the snapshot before; gradient; top eigenvectors; pca of the run's "
        "snapshots; line (or plane) through the --steps."
    ),
]
CommonOption = Annotated[
    int | None,
    typer.Option(help="Directions and axes of the slice at this step for the slices at all --steps, which compare."),
]
JointOption = Annotated[
    bool,
    typer.Option(
        "--joint",
        help="One slice of all chosen runs, each with its trajectory: on their principal plane (pca, default), or on "
        "the line (plane) through 2 (3) runs; --steps N: up to that snapshot.",
    ),
]
DrawsOption = Annotated[int, typer.Option(min=1, help="So many independent random directions or pairs.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the random directions.")]
SplitOption = Annotated[str, typer.Option(help="Measure on the probe split (training examples) or on eval (held out).")]
ExamplesOption = Annotated[int | None, typer.Option(min=1, help="Only so many of the split's examples.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="bfloat16 or float16: forward passes under autocast (default: the model's own).")
]
AdaptiveOption = Annotated[bool, typer.Option("--adaptive", help="Interpolate where that is good enough.")]
ToleranceOption = Annotated[
    float | None,
    typer.Option(help=f"Largest error of --adaptive, as a share of the losses' range (default: {TOLERANCE})."),
]
TrajectoryOption = Annotated[
    int | None,
    typer.Option("--trajectory", min=0, help="Project so many snapshots, with their true loss (default: 32 of pca)."),
]
DeltaOption = Annotated[float, typer.Option(help="Rise of the loss, in nats, at which widths are measured.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes at a time (default: cores); 0: everything in this one.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]


def _command(dims: int, points: int, summary: str) -> Callable[..., None]:
    """One command; the two differ in the number of dimensions alone."""

    @errors_as_exits
    def command(
        *,
        store: StoreArgument,
        where: WhereOption = None,
        steps: StepsOption = None,
        points: PointsOption = points,
        radius: RadiusOption = None,
        normalization: NormalizationOption = None,
        space: SpaceOption = "adapter",
        directions: DirectionsOption = None,
        common: CommonOption = None,
        joint: JointOption = False,
        draws: DrawsOption = 1,
        seed: SeedOption = 0,
        split: SplitOption = "probe",
        num_examples: ExamplesOption = None,
        precision: PrecisionOption = None,
        adaptive: AdaptiveOption = False,
        tolerance: ToleranceOption = None,
        trajectory: TrajectoryOption = None,
        delta: DeltaOption = 0.1,
        engine: EngineOption = "local",
        address: AddressOption = None,
        workers: WorkersOption = None,
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
    ) -> None:
        options = {
            "dims": dims, "points": points, "radius": radius, "normalization": normalization, "space": space,
            "directions": directions, "draws": draws, "seed": seed, "num_examples": num_examples,
            "tolerance": TOLERANCE if adaptive and tolerance is None else tolerance, "trajectory": trajectory,
            "delta": delta, "common": common, "split": split, "precision": precision,
        }  # fmt: skip
        request = _Request(store, where, steps, options, joint)
        _slices(request, Workplace(store, engine, workers, address), dry_run=dry_run, as_json=as_json)

    command.__name__, command.__doc__ = f"slice{dims}d", summary
    return command


slice1d = _command(1, 51, "The loss along a line through captured snapshots (default: the last).")
slice2d = _command(2, 21, "The loss on a plane through captured snapshots (default: the last), resumable by rows.")


@dataclass(frozen=True)
class _Request:
    """What the command was asked for.

    Attributes:
        options: of `SliceSettings`.
    """

    store: Path
    where: str | None
    steps: str | None
    options: dict[str, Any]
    joint: bool

    @property
    def settings(self) -> SliceSettings:
        """Checked; `UsageError` for an option out of range."""
        from landscape.analysis.slice_settings import SliceSettings

        return SliceSettings(**self.options).checked(joint=self.joint)

    @property
    def wanted(self) -> list[int] | None:
        """The steps that were asked for."""
        from landscape.config.values import parse_values

        if self.steps is None:
            return None
        values = parse_values(self.steps, "--steps")
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"--steps: {value!r} is not a whole number")
        return values


@dataclass(frozen=True)
class _Job:
    """What a worker is told, and what it will make.

    Attributes:
        arguments: of the cell.
        run: whose model it is measured on.
        first_step: a snapshot of this run.
        files: of the slices, and how many snapshots are projected on each.
    """

    arguments: dict[str, Any]
    run: Run
    first_step: int
    files: dict[Path, int]


def _slices(request: _Request, place: Workplace, *, dry_run: bool, as_json: bool) -> None:
    """Slices of the chosen runs: say what they will cost, measure, print.

    Raises:
        UsageError: an option out of range or nothing to measure, before anything is measured.
        typer.Exit: some runs failed.
    """
    from landscape.sweeps.analyses import JOINT_SLICE, SLICE, run_analyses

    settings = request.settings
    runs, skipped = _captured(request)
    jobs, problems = (_joint_job if request.joint else _jobs_by_run)(request, settings, runs)
    name, console = f"slice{settings.dims}d", stderr(quiet=as_json)
    with engine_for(len(jobs), place) as engine:
        estimate = _estimate(settings, jobs, problems, engine)
        if request.joint and estimate.slices:
            estimate = replace(estimate, runs=len(runs))
        if dry_run:
            if as_json:
                print_json({"store": request.store, "estimate": estimate.to_json(), "skipped": list(skipped)})
            else:
                typer.echo(estimate.sentence())
            return
        console.print(f"{name}: {estimate.sentence()}", markup=False, soft_wrap=True)
        arguments, shown = {key: job.arguments for key, job in jobs.items()}, console
        if engine.num_workers == 0 and len(arguments) == 1 and console.is_terminal and not as_json:
            # A bar over the points of the run says more than one over one run.
            arguments, shown = {key: {**values, "progress": True} for key, values in arguments.items()}, None
        result = run_analyses(name, JOINT_SLICE if request.joint else SLICE, arguments, engine, shown)
        if shown is None:
            for key, error in result.errors.items():
                console.print(f"failed {key}: {error.strip().splitlines()[-1]}", markup=False, soft_wrap=True)
    finish(request.store, result, _line, skipped, as_json, estimate=estimate.to_json())


def _captured(request: _Request) -> tuple[list[Run], dict[str, str]]:
    """The chosen runs with snapshots, and why the others cannot be sliced."""
    from landscape.analysis import captured_steps
    from landscape.cli.selection import select_runs

    runs: list[Run] = []
    skipped: dict[str, str] = {}
    for run in select_runs(request.store, request.where):
        try:
            available = captured_steps(run, "adapter")
        except StoreError:
            available = []
        if available:
            runs.append(run)
        else:
            skipped[run.id] = "no snapshots"
    check_anything_left(request.store, len(runs), skipped)
    return runs, skipped


def _jobs_by_run(request: _Request, settings: SliceSettings, runs: list[Run]) -> tuple[dict[str, _Job], dict[str, str]]:
    """A job a run, and what is wrong with runs, which their own jobs will meet again."""
    from landscape.analysis import captured_steps
    from landscape.analysis.restored import check_steps
    from landscape.analysis.slices import targets
    from landscape.cli.selection import choose_steps
    from landscape.store.slices import slice_path

    jobs, problems = {}, {}
    for run in runs:
        steps = choose_steps(captured_steps(run, "adapter"), None, request.wanted, settings.num_anchors)
        check_steps(run, [] if settings.common is None else [settings.common])
        files: dict[Path, int] = {}
        try:
            for goal in targets(run, settings, steps):
                files[slice_path(run.analysis_dir, settings.dims, goal.identity)] = len(goal.trajectory)
        except StoreError as error:
            problems[run.id] = str(error)
        arguments = {"store": str(request.store.absolute()), "run_id": run.id, "steps": steps}
        jobs[run.id] = _Job({**arguments, "options": request.options}, run, steps[0], files)
    return jobs, problems


def _joint_job(request: _Request, settings: SliceSettings, runs: list[Run]) -> tuple[dict[str, _Job], dict[str, str]]:
    """One job of all runs; what is wrong with them is an error right away."""
    from landscape.analysis.slice_joint import joint_target
    from landscape.store.slices import joint_slices_dir, slice_path

    wanted = request.wanted or [None]
    if len(wanted) > 1:
        raise UsageError(f"--steps: {len(wanted)} with --joint; allowed: one, the last whose snapshots count")
    goal = joint_target(runs, settings, wanted[0])
    path = slice_path(joint_slices_dir(request.store), settings.dims, goal.identity)
    arguments = {"store": str(request.store.absolute()), "run_ids": [run.id for run in goal.runs], "until": wanted[0]}
    arguments["options"] = request.options
    return {"joint": _Job(arguments, goal.runs[0], goal.anchors[0], {path: sum(map(len, goal.paths))})}, {}


def _estimate(
    settings: SliceSettings, jobs: dict[str, _Job], problems: dict[str, str], engine: Engine
) -> SliceEstimate:
    """What the slices will cost, from a forward pass timed on one run of each model and task."""
    from landscape.analysis.slice_cost import estimate_slices, forwards
    from landscape.sweeps.analyses import TIME_FORWARD, run_analyses

    passes: dict[str, list[tuple[int, int]]] = {}
    same_cost: dict[tuple[Any, ...], list[str]] = {}
    for key, job in jobs.items():
        passes[key] = [forwards(settings, projected) for path, projected in job.files.items() if not path.is_file()]
        if passes[key]:
            config = job.run.config
            kind = (config.model, config.task, config.dtype, config.rank)
            same_cost.setdefault(kind, []).append(key)
    stands_for = {key: jobs[keys[0]].run.id for keys in same_cost.values() for key in keys}
    timings = {
        job.run.id: {
            "store": job.arguments["store"],
            "run_id": job.run.id,
            "step": job.first_step,
            "split": settings.split,
            "num_examples": settings.num_examples,
        }
        for job in (jobs[keys[0]] for keys in same_cost.values())
    }
    timed = run_analyses("timing", TIME_FORWARD, timings, engine)
    untimed = {run_id: error.strip().splitlines()[-1] for run_id, error in timed.errors.items()}
    known = sum(path.is_file() for job in jobs.values() for path in job.files)
    return estimate_slices(
        passes, known, timed.results, stands_for, max(1, engine.num_workers), {**problems, **untimed}
    )


def _line(rows: Rows) -> str:
    return "; ".join(map(_slice, rows))


def _slice(row: dict[str, Any]) -> str:
    anchors = row["anchors"]
    place = f"step {row['step']}" if len(anchors) == 1 else f"steps {', '.join(map(str, anchors))}"
    if len(row["runs"]) > 1:
        place = f"{len(row['runs'])} runs"
    elif row["common"] is not None:
        place += f" (as at {row['common']['step']})"
    parts = [f"{place}: loss {row['origin_loss']:.4g}, {row['smallest']:.4g} to {row['largest']:.4g}"]
    if row.get("width") is not None:
        parts.append(f"width {row['width']:.3g}")
    if row["barrier"] is not None:
        parts.append(f"barrier {row['barrier']:.3g}")
    if row["explained_variance"] is not None:
        of = "trajectory" if len(row["explained_by_run"]) == 1 else "trajectories"
        parts.append(f"the plane explains {row['explained_variance']:.1%} of the {of}")
    if row["error_bound"] is not None:
        parts.append(
            f"{row['num_evaluations']} of {row['points'] * row['draws']} points, error ≤ {row['error_bound']:.2g}"
        )
    if row["not_finite"]:
        parts.append(f"{row['not_finite']} points not finite")
    return f"{', '.join(parts)} ({row['file']})"
