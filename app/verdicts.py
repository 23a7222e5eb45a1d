"""The table of a reproduction: a paper's values beside ours."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from landscape.errors import StoreError, UsageError
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
MOST_BYTES = 5_000_000


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
