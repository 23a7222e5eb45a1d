"""``train``, ``sweep`` and ``status``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import (
    EXIT_FAILED_RUNS,
    EXIT_INTERRUPTED,
    JsonOption,
    SetOption,
    StoreOption,
    errors_as_exits,
    print_json,
    stderr,
)
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.config import RunConfig
    from landscape.store import Run
    from landscape.sweeps import SweepPlan, SweepResult
    from landscape.sweeps.engines import Resources

_LISTED = 20
_COLUMNS = ("run_id", "method", "rank", "learning_rate", "seed", "state", "step", "max_steps", "loss", "error")
_URGENCY = {"damaged": 0, "failed": 0, "running": 1, "interrupted": 2, "queued": 3, "diverged": 4, "done": 5}
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file.")]
ValuesOption = list[str] | None
EngineOption = Annotated[str, typer.Option(help="Where runs are run: local or ray.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes at a time (default: as many as fit); 0: in this one.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, e.g. auto (default: RAY_ADDRESS, or one of our own).")
]
GpusOption = Annotated[
    float | None, typer.Option(help="Ray: of a GPU for each run, e.g. 0.25 (default: 1 where there are any).")
]
CpusOption = Annotated[float, typer.Option(help="Ray: cores for each run.")]


@errors_as_exits
def train(
    *,
    store: StoreOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one run, or go on with it where it stopped; a finished one is left alone."""
    from landscape.config.overrides import load_run, parse_assignments

    run_config = load_run(config, parse_assignments(set_ or []))
    from landscape.training import train as train_run

    try:
        result = train_run(run_config, store, progress=not as_json)
    except UsageError:
        raise
    except Exception as error:
        run = _failed_run(run_config, store)
        if run is None:
            raise
        if as_json:
            print_json({"run_id": run.id, "run_dir": run.path, "state": "failed", "error": run.status.error})
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        typer.echo(f"error: run {run.id} failed: {reason} (more in {run.path / 'status.json'})", err=True)
        raise typer.Exit(EXIT_FAILED_RUNS) from None
    if as_json:
        print_json({"run_id": result.run_id, "run_dir": result.run_dir, "state": result.state, "step": result.step})
    else:
        typer.echo(f"{result.state} at step {result.step}: {result.run_dir}")


def _failed_run(config: RunConfig, store: Path) -> Run | None:
    """The run, if it is in the store as one that failed in this process; else the error came before it started."""
    from landscape.store import Store
    from landscape.training import identify

    try:
        run = Store.open(store).get(identify(config)[0])
    except StoreError:
        return None
    status = run.status
    return run if status.state == "failed" and status.pid == os.getpid() else None


@errors_as_exits
def sweep(
    *,
    store: StoreOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    method: Annotated[ValuesOption, typer.Option(help="e.g. lora,ggpo,mgpo")] = None,
    rank: Annotated[ValuesOption, typer.Option(help="e.g. 8,32,128")] = None,
    lr: Annotated[ValuesOption, typer.Option(help="e.g. 1e-4,5e-4 or log:1e-5:1e-3:5")] = None,
    seed: Annotated[ValuesOption, typer.Option(help="e.g. 0..4")] = None,
    alpha: Annotated[ValuesOption, typer.Option(help="number or rule, e.g. r,2r,16")] = None,
    grid: Annotated[ValuesOption, typer.Option(help="any config key, e.g. --grid label_noise=0,0.1")] = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_run: GpusOption = None,
    cpus_per_run: CpusOption = 1.0,
    queue: Annotated[
        bool, typer.Option("--queue", help="Only queue the runs, for `landscape worker` to take.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train every cell of a grid that is not finished yet; flags replace the file's values of their key."""
    from landscape.config.overrides import parse_assignments
    from landscape.config.run import read_yaml
    from landscape.config.sweep import SweepConfig
    from landscape.sweeps import plan_sweep, run_sweep
    from landscape.sweeps.engines import check_engine
    from landscape.sweeps.runner import enqueue

    check_engine(engine, workers)
    flags = {"method": method, "rank": rank, "learning_rate": lr, "seed": seed, "alpha": alpha}
    values = read_yaml(config) if config is not None else {}
    configs = SweepConfig.parse(
        values, assignments=parse_assignments(set_ or []), grid=_grid_of_flags(flags, grid or [])
    ).expand()
    plan = plan_sweep(configs, store)
    if dry_run:
        _print_plan(plan, as_json)
        return
    if queue:
        enqueue(plan)
        _print_queued(plan, as_json)
        return
    result = run_sweep(
        plan,
        engine=engine,
        workers=workers,
        console=stderr(quiet=as_json),
        address=address,
        resources=resources(cpus_per_run, gpus_per_run),
    )
    report(plan, result, as_json)


def resources(cpus: float, gpus: float | None) -> Resources:
    """What each run of a sweep gets on a cluster.

    Raises:
        UsageError: a negative share, or no core at all.
    """
    from landscape.sweeps.engines import Resources

    if cpus <= 0:
        raise UsageError(f"--cpus-per-run: {cpus:g} must be more than 0")
    if gpus is not None and gpus < 0:
        raise UsageError(f"--gpus-per-run: {gpus:g} is negative")
    return Resources(cpus, gpus)


def report(plan: SweepPlan, result: SweepResult, as_json: bool) -> None:
    """Print how a sweep ended.

    Raises:
        typer.Exit: it was interrupted, or some runs failed.
    """
    _print_result(plan, result, as_json)
    if result.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if result.errors or result.stopped:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _grid_of_flags(flags: dict[str, list[str] | None], grid: list[str]) -> dict[str, list[Any]]:
    """Canonical keys and values; a repeated flag adds its values."""
    from landscape.config.overrides import split_assignment
    from landscape.config.values import parse_values

    result: dict[str, list[Any]] = {}
    named = [(key, text) for key, texts in flags.items() for text in texts or []]
    for key, text in named + [split_assignment(item, "--grid") for item in grid]:
        result.setdefault(key, []).extend(parse_values(text, key))
    return result


def _print_plan(plan: SweepPlan, as_json: bool) -> None:
    from landscape.sweeps.plan import gigabytes

    finished = len(plan.cells) - len(plan.pending)
    if as_json:
        print_json(
            {
                "store": plan.store,
                "cells": len(plan.cells),
                "duplicates": plan.duplicates,
                "finished": finished,
                "steps": plan.steps,
                "snapshot_bytes": plan.snapshot_bytes,
                "free_bytes": plan.free_bytes,
                "run_ids": [cell.run_id for cell in plan.cells],
            }
        )
        return
    typer.echo(f"{len(plan.cells)} runs ({finished} finished, {plan.duplicates} duplicate cells dropped)")
    typer.echo(f"{plan.steps} optimizer steps to take")
    typer.echo(f"about {gigabytes(plan.snapshot_bytes)} of disk; {gigabytes(plan.free_bytes)} free at {plan.store}")
    for cell in plan.cells[:_LISTED]:
        typer.echo(f"  {cell.state:<11} {cell.run_id}")
    if len(plan.cells) > _LISTED:
        typer.echo(f"  ... and {len(plan.cells) - _LISTED} more")


def _print_queued(plan: SweepPlan, as_json: bool) -> None:
    queued = [cell.run_id for cell in plan.pending]
    if as_json:
        print_json({"store": plan.store, "cells": len(plan.cells), "queued": queued})
    else:
        typer.echo(f"{len(queued)} of {len(plan.cells)} runs are queued; take them with: landscape worker {plan.store}")


def _print_result(plan: SweepPlan, result: SweepResult, as_json: bool) -> None:
    finished = len(plan.cells) - len(plan.pending)
    if as_json:
        print_json(
            {
                "store": plan.store,
                "cells": len(plan.cells),
                "duplicates": plan.duplicates,
                "finished_before": finished,
                "counts": result.counts,
                "errors": result.errors,
                "warnings": result.warnings,
                "preparation_errors": result.preparation_errors,
                "seconds": result.seconds,
                "interrupted": result.interrupted,
                "stopped": result.stopped,
                "states": result.states,
            }
        )
        return
    counts = ", ".join(f"{count} {state}" for state, count in sorted(result.counts.items()))
    typer.echo(
        f"{len(plan.cells)} runs: {counts} ({finished} finished before, {plan.duplicates} duplicate cells dropped) "
        f"in {result.seconds:.0f} s: {plan.store}"
    )
    for run_id, error in result.errors.items():
        typer.echo(f"failed {run_id}: {_last_line(error)}", err=True)
    for run_id, messages in list(result.warnings.items())[:_LISTED]:
        typer.echo(f"warning {run_id}: {messages[0]}", err=True)
    for error in result.preparation_errors:
        typer.echo(f"base loss: {_last_line(error)}", err=True)
    if result.stopped:
        typer.echo(f"stopped: {result.stopped}; the same command goes on from here", err=True)
    if result.interrupted:
        typer.echo("interrupted; the same command goes on from here", err=True)


def _last_line(text: str | None) -> str:
    return text.strip().splitlines()[-1] if text and text.strip() else ""
