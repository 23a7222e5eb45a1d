"""``landscape analyze``: measure what was captured; results go into each run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import (
    EXIT_FAILED_RUNS,
    JsonOption,
    StoreArgument,
    WhereOption,
    errors_as_exits,
    print_json,
    stderr,
)
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.store import Run
    from landscape.sweeps.analyses import AnalysisResult

DEFAULT_SNAPSHOTS = 8

app = typer.Typer(no_args_is_help=True, help="Measure what was captured; results go into each run's folder.")

WorkersOption = Annotated[
    int | None, typer.Option(help="Processes at a time (default: cores); 0: everything in this one.")
]


@app.command()
@errors_as_exits
def sharpness(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    space: Annotated[str, typer.Option(help="Coordinates of the Hessian: adapter.")] = "adapter",
    every: Annotated[int | None, typer.Option(min=1, help="Snapshots at multiples of so many steps.")] = None,
    steps: Annotated[str | None, typer.Option(help="Snapshots at these steps, e.g. 0,50,100 or 0..9.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many of the largest eigenvalues.")] = 1,
    tol: Annotated[float, typer.Option(min=0, max=1, help="Stop at this residual, relative to the eigenvalue.")] = 1e-3,
    max_matvecs: Annotated[int, typer.Option(min=1, help="Hessian-vector products a snapshot, at most.")] = 200,
    num_examples: Annotated[int | None, typer.Option(min=1, help="Only so many of the probe split's examples.")] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Largest Hessian eigenvalues at captured steps (default: eight, evenly spaced)."""
    from landscape.cli.selection import choose_steps, select_runs
    from landscape.config.values import parse_values
    from landscape.curvature import check_space
    from landscape.sweeps.analyses import SHARPNESS

    check_space(space)
    wanted = None if steps is None else _whole_numbers(parse_values(steps, "--steps"))
    arguments: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    for run in select_runs(store, where):
        available = _snapshot_steps(run)
        if not available:
            skipped.append(run.id)
            continue
        arguments[run.id] = {
            "store": str(store.absolute()),
            "run_id": run.id,
            "steps": choose_steps(available, every, wanted, DEFAULT_SNAPSHOTS),
            "options": {"space": space, "k": k, "tol": tol, "max_matvecs": max_matvecs, "num_examples": num_examples},
        }
    result = _analyze("sharpness", SHARPNESS, arguments, workers, as_json)
    _finish(store, result, _sharpness_line, skipped, "no snapshots", as_json)


@app.command()
@errors_as_exits
def gap(*, store: StoreArgument, where: WhereOption = None, as_json: JsonOption = False) -> None:
    """Generalization gap: loss on the eval split minus loss on the probe split, at every evaluation."""
    from landscape.cli.selection import select_runs
    from landscape.sweeps.analyses import GAP

    runs = select_runs(store, where)
    ready = [run for run in runs if _is_started(run)]
    arguments = {run.id: {"store": str(store.absolute()), "run_id": run.id} for run in ready}
    # It only reads the metrics, so it is done before a worker would have started.
    result = _analyze("gap", GAP, arguments, 0, as_json)
    _finish(store, result, _gap_line, [run.id for run in runs if run not in ready], "not started", as_json)


def _analyze(
    title: str, function: str, arguments: dict[str, dict[str, Any]], workers: int | None, as_json: bool
) -> AnalysisResult:
    from landscape.sweeps.analyses import run_analyses
    from landscape.sweeps.engines import check_engine, make_engine

    check_engine("local", workers)
    if len(arguments) <= 1 and workers is None:
        workers = 0  # another process could not be faster
    with contextlib.closing(make_engine("local", workers, num_jobs=len(arguments))) as engine:
        return run_analyses(title, function, arguments, engine, stderr(quiet=as_json))


def _finish(
    store: Path,
    result: AnalysisResult,
    line: Callable[[list[dict[str, Any]]], str],
    skipped: list[str],
    reason: str,
    as_json: bool,
) -> None:
    if not result.results and not result.errors:
        raise UsageError(f"{store}: nothing to analyze: all of its {len(skipped)} runs were skipped ({reason})")
    if as_json:
        print_json({"store": store, "results": result.results, "errors": result.errors, "skipped": skipped})
    else:
        for run_id, rows in result.results.items():
            typer.echo(f"{run_id}: {line(rows)}")
        if skipped:
            typer.echo(f"skipped ({reason}): {', '.join(skipped)}", err=True)
    if result.errors:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _sharpness_line(rows: list[dict[str, Any]]) -> str:
    largest = [row for row in rows if row["index"] == 0]
    values = "  ".join(f"{row['step']}: {row['value']:.4g}{'' if row['converged'] else '?'}" for row in largest)
    open_ones = sum(not row["converged"] for row in largest)
    return f"λ_max at step {values}" + (f"  (? {open_ones} not converged)" if open_ones else "")


def _gap_line(rows: list[dict[str, Any]]) -> str:
    last = rows[-1]
    return f"gap {last['gap']:.4f} ± {last['standard_error']:.4f} at step {last['step']} ({len(rows)} evaluations)"


def _is_started(run: Run) -> bool:
    try:
        return run.status.attempt > 0
    except StoreError:
        return True  # the analysis will say what is wrong


def _snapshot_steps(run: Run) -> list[int]:
    try:
        return [int(step) for step in run.snapshots().steps]
    except StoreError:
        return []


def _whole_numbers(values: list[Any]) -> list[int]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"--steps: {value!r} is not a whole number")
    return values
