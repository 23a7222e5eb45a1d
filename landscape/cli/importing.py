"""``landscape import``: somebody's training logs as runs of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import JsonOption, SetOption, StoreOption, errors_as_exits, print_json
from landscape.errors import UsageError

if TYPE_CHECKING:
    from landscape.importers.runs import ImportedRun

_OURS = ("capture", "clean_loss_every", "max_steps", "report_to", "save_steps")


@errors_as_exits
def import_(
    *,
    source: Annotated[
        Path,
        typer.Argument(help="What `landscape detect` reads: Trainer's, TensorBoard's, W&B's, MLflow's, CSV or JSONL."),
    ],
    store: StoreOption,
    run: Annotated[str | None, typer.Option(help="Only this run of the log (default: all).")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it (default: as in the log).")] = None,
    column: Annotated[str, typer.Option(help="The training loss.")] = "loss",
    set_: SetOption = None,
    perturbed: Annotated[
        bool | None,
        typer.Option(help="Whether the loss was taken at perturbed weights (default: as the method given says)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put the runs of a training log into a store, where status, figures, report and analyses read them like ours.

    What the log does not say of a run's settings stays unknown; --set method=lora --set rank=16 says it.
    """
    from landscape.config.overrides import parse_assignments
    from landscape.importers import read_log
    from landscape.importers.runs import import_log

    settings = parse_assignments(set_ or [])
    for key in settings:
        if key in _OURS or "." in key:
            raise UsageError(f"--set {key}: an imported run has no such setting.")
    log = read_log(source)
    done = import_log(
        log,
        store,
        run=run,
        name=name,
        column=column,
        settings=settings,
        perturbed=_perturbs(settings) if perturbed is None else perturbed,
    )
    if as_json:
        runs = [{**vars(one), "notes": one.notes} for one in done]
        print_json({"store": store, "source": source, "format": log.format, "notes": log.notes, "runs": runs})
        return
    for one in done:
        verb = "imported" if one.new else "there already"
        typer.echo(f"{verb}: {one.name}, {one.state} at step {one.step}: {one.run_id}")
    for note in _notes(log.notes, done):
        typer.echo(f"note: {note}")


def _perturbs(settings: Mapping[str, Any]) -> bool:
    """Whether the method that was named takes its loss at perturbed weights."""
    if "method" not in settings:
        return False
    from landscape.methods import METHODS

    method = METHODS.get(str(settings["method"]))
    return method is not None and (method.perturbation is not None or method.perturbs != "-")


def _notes(notes: Sequence[str], done: Sequence[ImportedRun]) -> list[str]:
    several = len(done) > 1
    return [*notes, *(f"{one.name}: {note}" if several else note for one in done for note in one.notes)]
