"""``landscape analyze slice1d`` and ``slice2d``: the loss around captured snapshots, and where the run went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.along_runs import Rows, check_anything_left, engine_for, finish
from landscape.cli.console import JsonOption, StoreArgument, WhereOption, errors_as_exits, print_json, stderr
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.analysis.slice_cost import SliceEstimate
    from landscape.analysis.slice_settings import SliceSettings
    from landscape.sweeps.engines import Engine

TOLERANCE = 0.01

StepsOption = Annotated[
    str | None,
    typer.Option("--steps", "--step", help="A slice at each of these snapshots, e.g. 0,50 (default: the last)."),
]
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
DrawsOption = Annotated[int, typer.Option(min=1, help="So many independent random directions or pairs.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the random directions.")]
ExamplesOption = Annotated[int | None, typer.Option(min=1, help="Only so many of the probe split's examples.")]
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


@errors_as_exits
def slice1d(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    steps: StepsOption = None,
    points: Annotated[int, typer.Option(min=2, help="Of the line; odd: the snapshot is among them.")] = 51,
    radius: RadiusOption = None,
    normalization: NormalizationOption = None,
    space: SpaceOption = "adapter",
    directions: DirectionsOption = None,
    draws: DrawsOption = 1,
    seed: SeedOption = 0,
    num_examples: ExamplesOption = None,
    adaptive: AdaptiveOption = False,
    tolerance: ToleranceOption = None,
    trajectory: TrajectoryOption = None,
    delta: DeltaOption = 0.1,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """The loss along a line through captured snapshots (default: the last)."""
    options = {
        "dims": 1, "points": points, "radius": radius, "normalization": normalization, "space": space,
        "directions": directions, "draws": draws, "seed": seed, "num_examples": num_examples,
        "tolerance": _tolerance(adaptive, tolerance), "trajectory": trajectory, "delta": delta,
    }  # fmt: skip
    _slices(store, options, where=where, steps=steps, workers=workers, dry_run=dry_run, as_json=as_json)


@errors_as_exits
def slice2d(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    steps: StepsOption = None,
    points: Annotated[int, typer.Option(min=2, help="Of each axis; odd: the snapshot is among them.")] = 21,
    radius: RadiusOption = None,
    normalization: NormalizationOption = None,
    space: SpaceOption = "adapter",
    directions: DirectionsOption = None,
    draws: DrawsOption = 1,
    seed: SeedOption = 0,
    num_examples: ExamplesOption = None,
    adaptive: AdaptiveOption = False,
    tolerance: ToleranceOption = None,
    trajectory: TrajectoryOption = None,
    delta: DeltaOption = 0.1,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """The loss on a plane through captured snapshots (default: the last), resumable by rows."""
    options = {
        "dims": 2, "points": points, "radius": radius, "normalization": normalization, "space": space,
        "directions": directions, "draws": draws, "seed": seed, "num_examples": num_examples,
        "tolerance": _tolerance(adaptive, tolerance), "trajectory": trajectory, "delta": delta,
    }  # fmt: skip
    _slices(store, options, where=where, steps=steps, workers=workers, dry_run=dry_run, as_json=as_json)


def _tolerance(adaptive: bool, tolerance: float | None) -> float | None:
    return TOLERANCE if adaptive and tolerance is None else tolerance


def _slices(
    store: Path,
    options: dict[str, Any],
    *,
    where: str | None,
    steps: str | None,
    workers: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Slices of the chosen runs: say what they will cost, measure, print.

    Raises:
        UsageError: an option out of range or nothing to measure, before anything is measured.
        typer.Exit: some runs failed.
    """
    from landscape.analysis.slice_settings import SliceSettings
    from landscape.sweeps.analyses import SLICE, run_analyses

    settings = SliceSettings(**options).checked()
    arguments, skipped = _choose(store, where, settings, steps)
    for values in arguments.values():
        values["options"] = options
    name, console = f"slice{settings.dims}d", stderr(quiet=as_json)
    with engine_for(len(arguments), workers) as engine:
        check_anything_left(store, len(arguments), skipped)
        estimate = _estimate(settings, arguments, engine)
        if dry_run:
            if as_json:
                print_json({"store": store, "estimate": estimate.to_json(), "skipped": list(skipped)})
            else:
                typer.echo(estimate.sentence())
            return
        console.print(f"{name}: {estimate.sentence()}", markup=False, soft_wrap=True)
        shown = console
        if engine.num_workers == 0 and len(arguments) == 1 and console.is_terminal and not as_json:
            # A bar over the points of the run says more than one over one run.
            arguments, shown = {run_id: {**values, "progress": True} for run_id, values in arguments.items()}, None
        result = run_analyses(name, SLICE, arguments, engine, shown)
        if shown is None:
            for run_id, error in result.errors.items():
                console.print(f"failed {run_id}: {error.strip().splitlines()[-1]}", markup=False, soft_wrap=True)
    finish(store, result, _line, skipped, as_json, estimate=estimate.to_json())


def _choose(
    store: Path, where: str | None, settings: SliceSettings, steps: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Arguments of the runs that can be sliced, and why the others cannot."""
    from landscape.analysis import captured_steps
    from landscape.cli.selection import choose_steps, select_runs
    from landscape.config.values import parse_values

    wanted = None if steps is None else parse_values(steps, "--steps")
    for value in wanted or ():
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"--steps: {value!r} is not a whole number")
    arguments: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for run in select_runs(store, where):
        try:
            available = captured_steps(run, "adapter")
        except StoreError:
            available = []
        if not available:
            skipped[run.id] = "no snapshots"
            continue
        chosen = choose_steps(available, None, wanted, settings.num_anchors)
        arguments[run.id] = {"store": str(store.absolute()), "run_id": run.id, "steps": chosen}
    return arguments, skipped


def _estimate(settings: SliceSettings, arguments: dict[str, dict[str, Any]], engine: Engine) -> SliceEstimate:
    """What the slices will cost, from a forward pass timed on one run of each model and task."""
    from landscape.analysis.slice_cost import estimate_slices, forwards
    from landscape.analysis.slices import targets
    from landscape.store import Store
    from landscape.store.slices import slice_path
    from landscape.sweeps.analyses import TIME_FORWARD, run_analyses

    passes: dict[str, list[tuple[int, int]]] = {}
    problems: dict[str, str] = {}
    same_cost: dict[tuple[Any, ...], list[str]] = {}
    known = 0
    for run_id, values in arguments.items():
        run = Store.open(values["store"]).get(run_id)
        try:
            goals = targets(run, settings, values["steps"])
            config = run.config
        except StoreError as error:  # which the run's own job will meet again
            problems[run_id] = str(error)
            continue
        missing = [goal for goal in goals if not slice_path(run.analysis_dir, settings.dims, goal.identity).is_file()]
        known += len(goals) - len(missing)
        passes[run_id] = [forwards(settings, goal) for goal in missing]
        if missing:
            kind = (config.model, config.task, config.dtype, config.method == "full", config.rank)
            same_cost.setdefault(kind, []).append(run_id)
    jobs = {
        runs[0]: {
            **{key: arguments[runs[0]][key] for key in ("store", "run_id")},
            "step": arguments[runs[0]]["steps"][0],
            "num_examples": settings.num_examples,
        }
        for runs in same_cost.values()
    }
    timed = run_analyses("timing", TIME_FORWARD, jobs, engine)
    problems |= {run_id: error.strip().splitlines()[-1] for run_id, error in timed.errors.items()}
    stands_for = {run_id: runs[0] for runs in same_cost.values() for run_id in runs}
    return estimate_slices(passes, known, timed.results, stands_for, max(1, engine.num_workers), problems)


def _line(rows: Rows) -> str:
    return "; ".join(map(_slice, rows))


def _slice(row: dict[str, Any]) -> str:
    anchors = row["anchors"]
    place = f"step {row['step']}" if len(anchors) == 1 else f"steps {', '.join(map(str, anchors))}"
    parts = [f"{place}: loss {row['origin_loss']:.4g}, {row['smallest']:.4g} to {row['largest']:.4g}"]
    if row.get("width") is not None:
        parts.append(f"width {row['width']:.3g}")
    if row["barrier"] is not None:
        parts.append(f"barrier {row['barrier']:.3g}")
    if row["explained_variance"] is not None:
        parts.append(f"the plane explains {row['explained_variance']:.1%} of the trajectory")
    if row["error_bound"] is not None:
        parts.append(
            f"{row['num_evaluations']} of {row['points'] * row['draws']} points, error ≤ {row['error_bound']:.2g}"
        )
    if row["not_finite"]:
        parts.append(f"{row['not_finite']} points not finite")
    return f"{', '.join(parts)} ({row['file']})"
