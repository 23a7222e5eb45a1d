"""How ``landscape analyze`` goes about an analysis: which runs and snapshots, what it will cost, what came out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import EXIT_FAILED_RUNS, print_json, stderr
from landscape.errors import StoreError, UsageError, unknown

if TYPE_CHECKING:
    from landscape.store import Run
    from landscape.sweeps.analyses import AnalysisResult
    from landscape.sweeps.engines import Engine

DEFAULT_SNAPSHOTS = 8

Rows = list[dict[str, Any]]
Line = Callable[[Rows], str]
"""One run's rows in one line."""

ENGINES = ("local", "ray", "worker")
EngineOption = Annotated[
    str, typer.Option(help="Where it is measured: local, ray, or worker: by landscape worker STORE, wherever it runs.")
]
AddressOption = Annotated[str | None, typer.Option(help="Of a Ray cluster, e.g. auto.")]


@dataclass(frozen=True)
class Workplace:
    """Where an analysis is measured: the store that it is of, one of `ENGINES`, and how many processes at a time."""

    store: Path
    engine: str = "local"
    workers: int | None = None
    address: str | None = None


def analyze_snapshots(
    analysis: str,
    line: Line,
    options: dict[str, Any],
    *,
    where: str | None,
    every: int | None,
    steps: str | None,
    place: Workplace,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask one question of the chosen snapshots of the chosen runs: say what it will cost, measure, print.

    Args:
        analysis: one of `landscape.analysis.questions.QUESTIONS`, and its ``options``.
        line: prints a run.
        place: of the work.
        dry_run: stop after the estimate.

    Raises:
        UsageError: an option out of range, nothing to measure, or too little memory, before anything is measured.
        typer.Exit: some runs failed.
    """
    from landscape.analysis.cost import check_memory
    from landscape.analysis.questions import QUESTIONS
    from landscape.config.values import parse_values
    from landscape.sweeps.analyses import ALONG_RUNS, estimate_analyses, run_analyses

    question, store = QUESTIONS[analysis](**options), place.store
    wanted = None if steps is None else whole_numbers(parse_values(steps, "--steps"))
    arguments, skipped = _choose(store, where, question.variant.space, every, wanted)
    for values in arguments.values():
        values["options"] = options
    console = stderr(quiet=as_json)
    with engine_for(len(arguments), place) as engine:
        check_anything_left(store, len(arguments), skipped)
        estimate = estimate_analyses(analysis, arguments, options, engine)
        if dry_run:
            _print_estimate(store, estimate.sentence(), estimate.to_json(), skipped, as_json)
            return
        console.print(f"{analysis}: {estimate.sentence()}", markup=False, soft_wrap=True)
        check_memory(estimate)
        shown = console
        if engine.num_workers == 0 and len(arguments) == 1 and console.is_terminal and not as_json:
            # A bar over the snapshots of the run says more than one over one run.
            arguments, shown = {run_id: {**values, "progress": True} for run_id, values in arguments.items()}, None
        result = run_analyses(analysis, ALONG_RUNS[analysis], arguments, engine, shown, question)
        if shown is None:
            for run_id, error in result.errors.items():
                console.print(f"failed {run_id}: {error.strip().splitlines()[-1]}", markup=False, soft_wrap=True)
    finish(store, result, line, skipped, as_json, estimate=estimate.to_json())


@contextlib.contextmanager
def engine_for(num_jobs: int, place: Workplace) -> Iterator[Engine]:
    """The engine that was asked for; the local one works in this process where another could not be faster.

    Raises:
        UsageError: an unknown engine, or options that do not go together.
    """
    from landscape.sweeps.engines import check_engine, make_engine

    if place.engine not in ENGINES:
        raise unknown("--engine", place.engine, ENGINES)
    if place.engine == "worker":
        from landscape.sweeps.engines.queued import QueueEngine

        if place.workers is not None:
            raise UsageError("--workers: with --engine worker as many measure as you start: landscape worker STORE")
        with contextlib.closing(QueueEngine(place.store)) as engine:
            yield engine
        return
    workers = place.workers
    check_engine(place.engine, workers)
    if num_jobs <= 1 and workers is None and place.engine == "local":
        workers = 0
    made = make_engine(place.engine, workers, num_jobs=num_jobs, address=place.address)
    with contextlib.closing(made) as engine:
        yield engine


def check_anything_left(store: Path, count: int, skipped: dict[str, str]) -> None:
    """Refuse a selection of which nothing can be analyzed.

    Raises:
        UsageError: says why everything was skipped.
    """
    if not count:
        reasons = "; ".join(dict.fromkeys(skipped.values()))
        raise UsageError(f"{store}: nothing to analyze: all of its {len(skipped)} runs were skipped ({reasons})")


def finish(
    store: Path, result: AnalysisResult, line: Line, skipped: dict[str, str], as_json: bool, **more: Any
) -> None:
    """Print what came out; ``skipped`` holds why, by run id, and ``more`` goes into the JSON object.

    Raises:
        typer.Exit: some runs failed.
    """
    if as_json:
        answer = {"results": result.results, "errors": result.errors, "skipped": list(skipped)}
        print_json({"store": store, **more, **answer})
    else:
        for run_id, rows in result.results.items():
            typer.echo(f"{run_id}: {line(rows)}")
        _print_skipped(skipped)
    if result.errors:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _choose(
    store: Path, where: str | None, space: str, every: int | None, wanted: list[int] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Arguments of the runs that can be analyzed, and why the others cannot."""
    from landscape.analysis import captured_steps
    from landscape.cli.selection import choose_steps, select_runs

    arguments: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for run in select_runs(store, where):
        try:
            available = captured_steps(run, space)
        except StoreError as error:
            skipped[run.id] = _reason(run, error)
            continue
        if not available:
            skipped[run.id] = "no snapshots"
            continue
        chosen = choose_steps(available, every, wanted, DEFAULT_SNAPSHOTS)
        arguments[run.id] = {"store": str(store.absolute()), "run_id": run.id, "steps": chosen}
    return arguments, skipped


def _reason(run: Run, error: StoreError) -> str:
    """The same words for all runs that lack the same."""
    try:
        if not run.streams():
            return "no snapshots"
    except StoreError:
        return "no snapshots"
    return str(error).removeprefix(f"run {run.id}: ")


def _print_estimate(
    store: Path, sentence: str, estimate: dict[str, Any], skipped: dict[str, str], as_json: bool
) -> None:
    if as_json:
        print_json({"store": store, "estimate": estimate, "skipped": list(skipped)})
        return
    typer.echo(sentence)
    _print_skipped(skipped)


def _print_skipped(skipped: dict[str, str]) -> None:
    for reason in dict.fromkeys(skipped.values()):
        runs = ", ".join(run_id for run_id, other in skipped.items() if other == reason)
        typer.echo(f"skipped ({reason}): {runs}", err=True)


def whole_numbers(values: list[Any]) -> list[int]:
    """Steps from `parse_values`; `UsageError` for one that is no whole number."""
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"--steps: {value!r} is not a whole number")
    return values
