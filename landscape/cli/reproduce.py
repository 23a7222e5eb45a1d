"""``landscape reproduce``: a figure or table of a paper, from its experiment file to a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import EXIT_FAILED_RUNS, JsonOption, errors_as_exits, print_json, stderr
from landscape.errors import UsageError

if TYPE_CHECKING:
    from landscape.reproduction import Experiment
    from landscape.reproduction.reproduce import Outcome

_SCALE_HELP = "paper, one-gpu, cpu or smoke."


@errors_as_exits
def reproduce(
    *,
    name: Annotated[str | None, typer.Argument(help="Experiment, e.g. mgpo2, or a YAML file of your own.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the experiments and what each scale runs.")] = False,
    scale: Annotated[str, typer.Option(help=_SCALE_HELP)] = "cpu",
    store: Annotated[Path | None, typer.Option("--store", help="Folder of the run store; made if absent.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", envvar="LANDSCAPE_DATA_DIR", help="Folder with one folder of Parquet files a task."),
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Instead of the file's seeds, e.g. 0..5.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop in order after so long; call again to go on.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for result and figure (default: in the store)."),
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Of the figure, e.g. pdf,svg,png,csv,html")] = "svg,png,csv",
    workers: Annotated[int | None, typer.Option(help="Processes at a time (default: cores); 0: in this one.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Judge what has ended, though runs are left.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train, analyze, draw and judge a figure or table of the papers at a scale that you can afford."""
    from landscape.config.values import parse_values
    from landscape.reproduction import load_experiment
    from landscape.sweeps.engines import check_engine

    if list_:
        _print_list(as_json)
        return
    if name is None:
        raise UsageError("name an experiment, such as mgpo2; landscape reproduce --list names them all")
    check_engine("local", workers)
    if max_minutes is not None and max_minutes < 0:
        raise UsageError(f"--max-minutes: {max_minutes:g} is negative")
    experiment = load_experiment(name)
    seeds = None if seed is None else [_whole(value) for value in parse_values(seed, "--seed")]
    if dry_run:
        _print_plan(experiment, scale, data_dir, seeds, as_json)
        return
    if store is None:
        raise UsageError("--store DIR: where the runs are kept; the same folder goes on where it stopped")
    kinds = _formats(formats)
    from landscape.reproduction.reproduce import reproduce as run

    outcome = run(
        experiment, scale, store, data_dir=data_dir, seeds=seeds, max_minutes=max_minutes, out=output, formats=kinds,
        workers=workers, partial=partial, console=stderr(quiet=as_json),
    )  # fmt: skip
    _print_outcome(experiment, outcome, as_json)
    if outcome.errors:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _print_list(as_json: bool) -> None:
    from landscape.reproduction import load_experiment, names

    experiments = [load_experiment(name) for name in names()]
    if as_json:
        rows = [
            {"name": e.name, "title": e.title, "source": e.source, "place": e.place, "claim": e.claim,
             "scales": {name: scale.about for name, scale in e.scales.items()}}
            for e in experiments
        ]  # fmt: skip
        print_json({"experiments": rows})
        return
    for one in experiments:
        typer.echo(f"{one.name:<12} {one.source}, {one.place}: {one.title}")
        for name, scale in one.scales.items():
            typer.echo(f"{'':<12}   {name}: {' '.join(scale.about.split())}")


def _print_plan(
    experiment: Experiment, scale: str, data_dir: Path | None, seeds: list[int] | None, as_json: bool
) -> None:
    cells = experiment.cells(scale, data_dir=data_dir, seeds=seeds)
    steps = sum(cell.config.max_steps for cell in cells)
    needed = experiment.needed_data(scale)
    if as_json:
        print_json({"experiment": experiment.name, "scale": scale, "cells": len(cells), "steps": steps, "data": needed})
        return
    typer.echo(f"{experiment.name} at scale {scale}: {len(cells)} runs, {steps} optimizer steps")
    for cell in cells:
        config = cell.config
        rank = f" r={config.rank}" if config.method != "full" else ""
        typer.echo(f"  {cell.variant}: {config.task}{rank} lr={config.learning_rate:g} seed={config.seed}")
    if needed:
        typer.echo(f"data: {', '.join(f'{name}/train.parquet' for name in needed.values())}")


def _print_outcome(experiment: Experiment, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "experiment": experiment.name,
                "complete": outcome.result is not None and outcome.ended == outcome.planned,
                "ended": outcome.ended,
                "planned": outcome.planned,
                "interrupted": outcome.interrupted,
                "files": list(outcome.files),
                "rows": [row.plain() for row in outcome.rows],
                "errors": outcome.errors,
            }
        )
        return
    for row in outcome.rows:
        typer.echo(f"{row.verdict}: {row.quantity}")
        typer.echo(f"    {row.sentence}")
    for path in outcome.files:
        typer.echo(path)
    for line in outcome.remarks:
        typer.echo(line, err=True)
    for run_id, error in outcome.errors.items():
        typer.echo(f"failed {run_id}: {error.strip().splitlines()[-1] if error.strip() else ''}", err=True)
    if outcome.result is None:
        why = "stopped" if outcome.interrupted else "not all runs ended"
        partly = " (--partial judges what there is)" if outcome.ended else ""
        typer.echo(
            f"{why}: {outcome.ended} of {outcome.planned} runs have ended; the same command goes on from here{partly}"
        )


def _formats(text: str) -> list[str]:
    from landscape.errors import unknown
    from landscape.figures import FORMATS

    kinds: list[Any] = [item.strip() for item in text.split(",") if item.strip()]
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    return kinds


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"--seed: {value!r} is not a whole number of at least 0")
    return value
