"""The ``landscape`` command. Each command parses, calls and prints; nothing heavy is imported before it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from landscape import __version__
from landscape.cli import (
    analysis,
    dashboard,
    detect,
    doctor,
    evaluate,
    importing,
    maintenance,
    reproduce,
    results,
    runs,
    status,
    worker,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Loss landscapes and double descent in LoRA fine-tuning: capture every step, measure sharpness, see it.",
)

app.command()(runs.train)
app.command()(runs.sweep)
app.command()(worker.resume)
app.command()(worker.worker)
app.command()(status.status)
app.command()(maintenance.verify)
app.command()(maintenance.prune)
app.command()(maintenance.pack)
app.command()(maintenance.merge)
app.add_typer(analysis.app, name="analyze")
app.command()(evaluate.evaluate)
app.command()(detect.detect)
app.command("import")(importing.import_)
app.command()(results.figures)
app.command()(reproduce.reproduce)
app.command()(results.report)
app.command("app")(dashboard.app)
app.command("export-adapter")(results.export_adapter)
app.command()(results.methods)
app.command()(doctor.doctor)
app.command()(results.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lora-landscape {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    app(prog_name="landscape")
