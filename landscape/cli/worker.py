"""``worker`` and ``resume``: what is left of a store's sweeps, by any number of processes or by one more driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
from landscape.cli.runs import AddressOption, CpusOption, EngineOption, GpusOption, WorkersOption, report, resources
from landscape.errors import UsageError

if TYPE_CHECKING:
    from landscape.store import Run


@errors_as_exits
def worker(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    idle_timeout: Annotated[
        float | None,
        typer.Option(help="Leave after so many seconds without a run to take (default: when none is left)."),
    ] = None,
    max_runs: Annotated[int | None, typer.Option(help="Take so many runs at most.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take runs from a store until none is left, then analyses that wait there (``analyze --engine worker``).

    Start any number of these, on any machine that sees the store.
    """
    from landscape.cli.selection import run_values
    from landscape.config.where import Where
    from landscape.store import Store

    for name, value in (("--idle-timeout", idle_timeout), ("--max-runs", max_runs)):
        if value is not None and value < 0:
            raise UsageError(f"{name}: {value:g} is negative")
    expression = Where.parse(where) if where is not None else None
    Store.open(store)
    from landscape.sweeps.worker import work

    def choose(run: Run) -> bool:
        values = run_values(run)
        return values is not None and (expression is None or expression.matches(values))

    def told(run_id: str, state: str, error: str | None) -> None:
        if not as_json:
            typer.echo(f"{state:<11} {run_id}")
            if error:
                typer.echo(f"    {error.strip().splitlines()[-1]}", err=True)

    result = work(store, choose=choose, idle_timeout=idle_timeout, max_runs=max_runs, told=told)
    if as_json:
        print_json(
            {
                "store": store,
                "states": result.states,
                "errors": result.errors,
                "analyses": result.analyses,
                "left": result.left,
                "stopped": result.stopped,
            }
        )
    else:
        reason = f"{result.stopped}; {result.left} runs are left" if result.stopped else "nothing is left"
        analyses = f", {result.analyses} analyses" if result.analyses else ""
        typer.echo(f"{len(result.states)} runs taken ({len(result.errors)} failed){analyses}; {reason}: {store}")
    if result.errors:
        raise typer.Exit(EXIT_FAILED_RUNS)


@errors_as_exits
def resume(
    *,
    store: StoreArgument,
    failed_only: Annotated[bool, typer.Option("--failed-only", help="Only the runs that failed.")] = False,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_run: GpusOption = None,
    cpus_per_run: CpusOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Run what is left of everything that was begun in a store, each run from its newest checkpoint."""
    from landscape.store import Store
    from landscape.sweeps.engines import check_engine

    check_engine(engine, workers)
    Store.open(store)
    from landscape.sweeps import run_sweep
    from landscape.sweeps.plan import plan_store

    plan = plan_store(store, failed_only=failed_only)
    result = run_sweep(
        plan,
        engine=engine,
        workers=workers,
        console=stderr(quiet=as_json),
        address=address,
        resources=resources(cpus_per_run, gpus_per_run),
    )
    report(plan, result, as_json)
