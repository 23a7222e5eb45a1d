"""``figures``, ``report``, ``export-adapter``, ``methods`` and ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.console import (
    EXIT_FAILED_RUNS,
    EXIT_INTERRUPTED,
    JsonOption,
    StoreArgument,
    WhereOption,
    errors_as_exits,
    print_json,
    stderr,
    stdout,
)
from landscape.errors import StoreError, UsageError, unknown


@errors_as_exits
def figures(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    figure: Annotated[list[str] | None, typer.Option("--figure", help="Names, e.g. mgpo2 (default: all).")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    formats: Annotated[str, typer.Option("--format", help="e.g. pdf,svg,png,csv,html")] = "svg",
    as_json: JsonOption = False,
) -> None:
    """Draw figures from what a store holds."""
    from landscape.figures import FIGURES, render
    from landscape.store import Store

    names = [name for item in figure or [] for name in _names(item)]
    for name in names:
        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
    opened = Store.open(store)
    written: list[Path] = []
    remarks: dict[str, list[str]] = {}
    for name in names or FIGURES:
        try:
            done = render(opened, name, output, _names(formats), where)
        except StoreError as error:
            if names:
                raise
            remarks[name] = [f"left out: {error}"]  # nobody's store holds what every figure shows
            continue
        written += done.files
        remarks[name] = list(done.remarks)
    if not written:
        raise UsageError(
            f"{store} holds none of the figures: {'; '.join(line for item in remarks.values() for line in item)}"
        )
    if as_json:
        print_json({"store": store, "files": written, "remarks": remarks})
        return
    for path in written:
        typer.echo(path)
    for name, lines in remarks.items():
        for line in lines:
            typer.echo(f"{name}: {line}", err=True)


@errors_as_exits
def report(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file that shows a store and can be sent to somebody."""
    from landscape.report import write_report
    from landscape.store import Store

    options = {} if title is None else {"title": title}
    path = write_report(Store.open(store), output, where=where, **options)
    if as_json:
        print_json({"store": store, "report": path})
    else:
        typer.echo(path)


@errors_as_exits
def export_adapter(
    *,
    store: StoreArgument,
    run: Annotated[str, typer.Argument(help="Run id, or the beginning of one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    step: Annotated[int | None, typer.Option(help="Snapshot's step (default: the last one).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one snapshot as an adapter folder that peft loads."""
    from landscape.store import Store, export_adapter

    chosen = Store.open(store).get(run)
    if step is None:
        steps = chosen.snapshots().steps
        if not len(steps):
            raise UsageError(f"{chosen.id} has no snapshots; it was trained with capture: none")
        step = int(steps[-1])
    path = export_adapter(chosen, step, output)
    if as_json:
        print_json({"run_id": chosen.id, "step": step, "path": path})
    else:
        typer.echo(f"{chosen.id} after step {step}: {path}")


@errors_as_exits
def methods(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of the documentation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Every method with its adapter, what it perturbs, what it costs, its arguments and where it comes from."""
    from landscape.methods.table import COLUMNS, method_cells, method_rows, methods_table

    if as_json:
        print_json({"methods": method_rows()})
        return
    if markdown:
        typer.echo(methods_table())
        return
    from rich.table import Table

    columns = {key: title for key, title in COLUMNS.items() if key != "summary"}  # which would take half the width
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in columns.values():
        table.add_column(title, overflow="fold")
    for row in method_rows():
        table.add_row(*method_cells(row, columns))
    stdout().print(table, markup=False)


@errors_as_exits
def demo(
    *,
    store: Annotated[Path, typer.Option("--store", help="Folder of the run store; made if absent.")] = Path("demo"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Report to write (default: report.html in the store).")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes at a time (default: cores).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a dozen small runs, measure them and write a report: a few minutes on two cores, no download."""
    from landscape.demo import run_demo

    result = run_demo(store, output or store / "report.html", workers=workers, console=stderr(quiet=as_json))
    if as_json:
        print_json(
            {
                "store": store,
                "report": result.report,
                "counts": result.sweep.counts,
                "errors": {**result.sweep.errors, **result.analysis_errors},
                "seconds": result.seconds,
            }
        )
    else:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(result.sweep.counts.items()))
        typer.echo(f"{counts} in {result.seconds:.0f} s")
        typer.echo(f"report: {result.report or 'not written: interrupted'}")
    if result.sweep.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if result.sweep.errors or result.analysis_errors:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{text!r}: no name given")
    return names
