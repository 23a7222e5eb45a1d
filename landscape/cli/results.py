"""``figures``, ``report``, ``export-adapter``, ``methods`` and ``demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

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

_METHOD_COLUMNS = {
    "name": "method",
    "summary": "what it does",
    "perturbs": "perturbs",
    "passes": "passes",
    "extra_memory": "extra memory",
    "arguments": "arguments",
    "source": "source",
}


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
    """Every method with what it perturbs, what it costs, its arguments and where it comes from."""
    rows = _method_rows()
    if as_json:
        print_json({"methods": rows})
        return
    if markdown:
        typer.echo(methods_table())
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in _METHOD_COLUMNS.values():
        table.add_column(title)
    for row in rows:
        table.add_row(*_method_cells(row))
    stdout().print(table, markup=False)


def methods_table() -> str:
    """The methods as a Markdown table."""
    lines = [list(_METHOD_COLUMNS.values()), ["---"] * len(_METHOD_COLUMNS), *map(_method_cells, _method_rows())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _method_cells(row: dict[str, Any]) -> list[str]:
    spelled = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row["arguments"].items()}
    arguments = ", ".join(f"{key}={value}" for key, value in spelled.items())
    return [arguments or "-" if key == "arguments" else str(row[key]) for key in _METHOD_COLUMNS]


def _method_rows() -> list[dict[str, Any]]:
    """Those that perturb nothing first, then by name."""
    from landscape.methods import METHODS

    ordered = sorted(METHODS.values(), key=lambda method: (method.perturbation is not None, method.name))
    return [_method_row(method) for method in ordered]


def _method_row(method: Any) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "adapter": method.adapter,
        "perturbs": method.perturbs,
        "passes": method.passes,
        "extra_memory": method.extra_memory,
        "arguments": method.arguments().model_dump(mode="json"),
    }


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
