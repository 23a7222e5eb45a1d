"""``verify``, ``prune``, ``pack`` and ``merge``: keeping a store sound and small, and bringing several together."""

from __future__ import annotations

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
    printable,
    stderr,
    stdout,
)
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.store.findings import Finding, Verification
    from landscape.store.merge import Merging
    from landscape.store.pack import Packing
    from landscape.store.prune import Pruning

_LISTED = 50


@errors_as_exits
def verify(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Cut off torn ends, make stale copies again, remove leftovers.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every file of a store, compare every checksum, and say exactly what is damaged or was lost.

    Exit code 3 where something is wrong and stays so. What is damaged is reported and never dropped.
    """
    from landscape.cli.selection import select_runs
    from landscape.store import Store
    from landscape.store.verify import verify as verify_store

    opened = Store.open(store)
    runs = None if where is None else select_runs(store, where)
    result = verify_store(opened, repair=repair, runs=runs, progress=_telling("checking", as_json))
    if as_json:
        print_json(
            {
                "store": store,
                **{key: value for key, value in vars(result).items() if key != "findings"},
                "is_sound": result.is_sound,
                "counts": result.counts,
                "findings": [vars(item) for item in result.findings],
            }
        )
    else:
        _print_verification(result, repair)
    if not result.is_sound:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _print_verification(result: Verification, repair: bool) -> None:
    for item in result.findings:
        typer.echo(printable(str(item)))
    size = _size(result.bytes)
    typer.echo(f"{result.runs} runs, {result.files} files, {result.records} records, {size} read")
    if result.unchecked:
        typer.echo(f"{result.unchecked} configs carry no checksum: they were written by an older version")
    if result.busy:
        typer.echo(f"{len(result.busy)} runs are being worked on; what they are writing was not judged")
    lost = [item for item in result.findings if item.records_lost]
    if lost:
        records = sum(item.records_lost for item in lost)
        lost_bytes = sum(item.bytes_lost for item in lost)
        typer.echo(f"lost: {records} records that were being written ({lost_bytes} bytes)")
    if result.is_sound:
        typer.echo(
            "sound" if not result.findings else "sound now" if repair else "sound; what is left over does no harm"
        )
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in result.counts.items())
    advice = "; --repair mends what can be mended" if not repair and any(map(_is_mendable, result.findings)) else ""
    typer.echo(f"not sound: {counts}{advice}")


def _is_mendable(item: Finding) -> bool:
    return item.repairable and not item.repaired


@errors_as_exits
def prune(
    *,
    store: StoreArgument,
    policy: Annotated[
        str, typer.Option(help="Snapshots to keep: every:N, log:N, events:N, first, last, all, none; e.g. log:50,last.")
    ],
    where: WhereOption = None,
    drop_checkpoints: Annotated[
        bool, typer.Option("--drop-checkpoints", help="The resumable states too: these runs end where they are.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be dropped (the default).")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Drop snapshots that a policy does not keep, and what superseded attempts left. Says what, unless --yes."""
    from landscape.cli.selection import select_runs
    from landscape.store.keeping import Policy
    from landscape.store.prune import plan_pruning
    from landscape.store.prune import prune as prune_run

    if dry_run and yes:
        raise UsageError("--dry-run and --yes: one of them")
    rules = Policy.parse(policy)
    tell = _telling("pruning", as_json)
    plans: list[Pruning] = []
    problems: dict[str, str] = {}
    for run in select_runs(store, where):
        tell(run.id)
        try:
            plans.append((prune_run if yes else plan_pruning)(run, rules, keep_checkpoint=not drop_checkpoints))
        except StoreError as error:
            problems[run.id] = str(error)
    if as_json:
        freed = sum(plan.freed_bytes for plan in plans)
        runs = [vars(plan) for plan in plans]
        print_json({"store": store, "done": yes, "freed_bytes": freed, "runs": runs, "problems": problems})
    else:
        _print_prunings(plans, problems, yes)
    if problems:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _print_prunings(plans: list[Pruning], problems: dict[str, str], done: bool) -> None:
    from rich.table import Table

    acting = [plan for plan in plans if plan.skipped is None]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "snapshots", "kept", "freed"):
        table.add_column(title, justify="left" if title == "run" else "right", no_wrap=True)
    for plan in acting[:_LISTED]:
        held, kept = sum(plan.steps.values()), sum(map(len, plan.kept.values()))
        table.add_row(plan.run_id, str(held), str(kept), _size(plan.freed_bytes))
    if acting:
        stdout().print(table)
    if len(acting) > _LISTED:
        typer.echo(f"... and {len(acting) - _LISTED} more")
    for run_id, problem in problems.items():
        typer.echo(f"error: {run_id}: {printable(problem)}", err=True)
    for reason in sorted({plan.skipped for plan in plans if plan.skipped}):
        typer.echo(f"{sum(plan.skipped == reason for plan in plans)} runs left alone: {reason}")
    freed = _size(sum(plan.freed_bytes for plan in acting))
    typer.echo(f"{freed} freed" if done else f"{freed} would be freed; --yes does it")


@errors_as_exits
def pack(
    *,
    store: StoreArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    where: WhereOption = None,
    keep: Annotated[
        str | None, typer.Option(help="Snapshots to take along, as for prune (default: none), e.g. last.")
    ] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Take the resumable states along.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a store without its snapshots: metrics, analyses and slices, small enough to send."""
    from landscape.cli.selection import select_runs
    from landscape.store import Store
    from landscape.store.keeping import Policy
    from landscape.store.pack import pack as pack_store

    policy = None if keep is None else Policy.parse(keep)
    runs = select_runs(store, where)
    done = pack_store(
        Store.open(store),
        output,
        runs=runs,
        policy=policy,
        checkpoints=checkpoints,
        progress=_telling("packing", as_json),
    )
    if as_json:
        print_json({"store": store, **vars(done)})
    else:
        _print_packing(done)
    if done.left_out:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _print_packing(done: Packing) -> None:
    for run_id, reason in done.left_out.items():
        typer.echo(f"error: {run_id} is left out: {printable(reason)}", err=True)
    sizes = f"{_size(done.bytes_before)} before, {_size(done.bytes_after)} now"
    typer.echo(f"{done.path}: {done.runs} runs, {done.snapshots} snapshots, {sizes}")


@errors_as_exits
def merge(
    *,
    stores: Annotated[list[Path], typer.Argument(help="Folders of run stores.")],
    into: Annotated[Path, typer.Option("--into", "-o", help="Store to copy to; made if absent.")],
    as_json: JsonOption = False,
) -> None:
    """Copy the runs of several stores into one; of two copies the finished, longer, newer one stays."""
    from landscape.store import Store
    from landscape.store.merge import merge as merge_stores

    done = merge_stores([Store.open(path) for path in stores], into, progress=_telling("merging", as_json))
    left_out = [item for item in done.runs if item.action == "left out"]
    if as_json:
        runs = [vars(item) for item in done.runs]
        print_json({"store": into, "runs": runs, "shared": done.shared, "conflicts": done.conflicts})
    else:
        _print_merging(done)
    if left_out:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _print_merging(done: Merging) -> None:
    from collections import Counter

    for line in done.conflicts:
        typer.echo(f"conflict: {printable(line)}", err=True)
    counts = Counter(item.action for item in done.runs)
    words = ", ".join(f"{count} {action}" for action, count in sorted(counts.items())) or "no runs"
    typer.echo(f"{done.path}: {words}")


def _telling(verb: str, quiet: bool) -> Callable[[str], Any]:
    """Progress on a terminal; nothing elsewhere."""
    console = stderr(quiet=quiet)
    if quiet or not console.is_terminal:
        return lambda run_id: None
    return lambda run_id: console.print(f"{verb} {run_id}", end="\r", markup=False, overflow="crop", no_wrap=True)


def _size(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
