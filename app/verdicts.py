"""The table of a reproduction: a paper's values beside ours."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from landscape.errors import StoreError, UsageError
from landscape.reproduction import read_results
from landscape.resources import folder

FILE = "reproduction.csv"
COLUMNS = {
    "paper": "which paper, such as MGPO",
    "place": "figure or table, such as Table 2",
    "quantity": "what is compared, with its unit",
    "paper_value": "the paper's number; empty where it reports none",
    "our_value": "the number measured here",
    "our_sd": "its standard deviation over seeds",
    "scale": "model, task, steps and seeds of ours",
    "verdict": "agrees, differs or not comparable, in plain words",
}
SYMBOLS = {"confirmed": "✓", "not confirmed": "–", "contradicted": "✕", "undecided": "?", "not comparable": "≠"}
"""Verdicts told apart without color."""
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class Packed:
    """One of the results that ship with the toolkit: its scale, what was run in words, and its figure, if any."""

    scale: str
    about: str
    picture: Path | None


def packed_results() -> dict[str, list[Packed]]:
    """By experiment. None where an installation has no results.

    Raises:
        StoreError: one of the files is damaged.
    """
    with contextlib.suppress(UsageError):
        results = folder("experiments") / "results"
        found: dict[str, list[Packed]] = {}
        for result in read_results(results) if results.is_dir() else ():
            picture = results / f"{result.experiment}-{result.scale}.png"
            about = " ".join(f"{result.about} {result.sentence()}.".split())
            kept = picture if picture.name in result.figures and picture.is_file() else None
            found.setdefault(result.experiment, []).append(Packed(result.scale, about, kept))
        return found
    return {}


def find_table(store: Path) -> Path | None:
    """The store's own table, else the shipped one; None where there is neither."""
    places = [store / FILE]
    with contextlib.suppress(UsageError):
        places.append(folder("experiments") / FILE)
    root = store.resolve()
    return next((p for p in places if p.is_file() and (p != places[0] or p.resolve().is_relative_to(root))), None)


def read_verdicts(path: Path) -> pd.DataFrame:
    """The table, with every column of `COLUMNS`.

    Raises:
        StoreError: it is no CSV with those columns.
    """
    if path.stat().st_size > MOST_BYTES:
        raise StoreError(f"{path}: larger than {MOST_BYTES / 1e6:g} MB, which is no table of verdicts")
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise StoreError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise StoreError(f"{path} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    return table
