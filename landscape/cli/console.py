"""What every command shares: exit codes, errors as one line, and ``--json``."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console

from landscape.errors import LandscapeError
from landscape.sweeps.runner import terminate_as_interrupt

EXIT_USAGE = 2
EXIT_FAILED_RUNS = 3
EXIT_INTERRUPTED = 130

P = ParamSpec("P")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, as the last line.")]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the run store; made if absent.")]
StoreArgument = Annotated[Path, typer.Argument(help="Folder of the run store.")]
WhereOption = Annotated[
    str | None, typer.Option("--where", help="Which runs, e.g. 'rank>=64 and lr==5e-4' (default: all).")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Config key, e.g. --set rank=64 --set method_args.rho=0.1.")
]


def errors_as_exits(command: Callable[P, None]) -> Callable[P, None]:
    """One line on stderr and exit code 2 for what the user can put right; 130 for Ctrl-C and SIGTERM."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with terminate_as_interrupt():
                command(*args, **kwargs)
        except LandscapeError as error:
            typer.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
            if kwargs.get("as_json"):
                print_json({"error": str(error)})
            raise typer.Exit(EXIT_USAGE) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on from here", err=True)
            if kwargs.get("as_json"):
                print_json({"error": "interrupted"})
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return wrapped


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or set its title: words of files may be somebody else's."""
    return "".join(character if character.isprintable() else "?" for character in text)


def print_json(payload: Mapping[str, Any]) -> None:
    """One line of strict JSON: what is not a finite number is null, a path is a string."""
    typer.echo(json.dumps(_plain(payload), allow_nan=False))


def write_json_file(path: Path, payload: Mapping[str, Any]) -> None:
    """The same object in a file, indented, replaced atomically; `StoreError` where the disk refuses."""
    from landscape.store.atomic import write_json

    write_json(path, _plain(payload))


def stdout() -> Console:
    """For tables; as wide as the terminal, and wide enough not to fold ids where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def stderr(quiet: bool = False) -> Console:
    """For progress."""
    return Console(stderr=True, quiet=quiet, highlight=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no place in JSON output")
