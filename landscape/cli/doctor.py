"""``doctor``: what this machine and this installation can do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.console import JsonOption, errors_as_exits, print_json, stdout

_STYLES = {"ok": "green", "limited": "yellow", "missing": "red"}


@errors_as_exits
def doctor(
    *,
    store: Annotated[Path, typer.Option("--store", help="Folder of the run store, whose disk is looked at.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Say what this machine and installation can do, each thing tried, and what to install for what is missing."""
    from landscape.doctor import examine

    findings = examine(store)
    counts = Counter(item.status for item in findings)
    if as_json:
        print_json({"counts": dict(counts), "findings": [vars(item) for item in findings]})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    group = ""
    for item in findings:
        shown = "" if item.group == group else item.group
        group = item.group
        mark = Text(item.status, _STYLES[item.status])
        table.add_row(shown, item.name, mark, Text(item.detail), Text(item.advice))
    stdout().print(table)
    typer.echo(", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status]))
