"""CSV and JSONL with a row a step; several runs where a column names them, or as W&B exports them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import UsageError
from landscape.importers.curves import STEP_NAMES, Column, LogCurves, is_step, step_name
from landscape.importers.wandb import shared_column, split_name

_RUN_NAMES = ("run", "run_id", "run_name")

Record = tuple[int, Mapping[str, Any]]
"""Where an entry is in its file, and its cells."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one column that are there: row of each, and what is written in it."""

    rows: list[int]
    cells: list[Any]


@dataclass(frozen=True, eq=False)
class Table:
    """A file's columns before anything is taken for a number."""

    columns: dict[str, Cells]
    places: list[int]
    word: str


def flattened(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records with their keys joined by ``/``."""
    result: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            result.update(flattened(value, f"{prefix}{key}/"))
        else:
            result[f"{prefix}{key}"] = value
    return result


def read_jsonl(text: str, path: Path) -> tuple[list[LogCurves], list[str]]:
    """One JSON object a line; a last line that is cut off is left out, and said.

    Raises:
        UsageError: another line that is no object, or none that is.
    """
    records: list[Record] = []
    notes: list[str] = []
    lines = text.split("\n")
    last = max((n for n, line in enumerate(lines, 1) if line.strip()), default=0)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == last and records:
                notes.append(f"line {number}, the last, is cut off and was left out")
                continue
            raise UsageError(f"{path}: line {number} is not JSON ({error.msg} at column {error.colno}).") from None
        except (RecursionError, ValueError):
            raise UsageError(f"{path}: line {number} is nested too deeply, or has a number that is too long.") from None
        if not isinstance(entry, dict):
            raise UsageError(f"{path}: line {number} is {type(entry).__name__}, not an object with a key a column.")
        records.append((number, flattened(entry)))
    runs, more = numbers_of_records(records, "line", path.stem)
    return runs, notes + more


def numbers_of_records(records: Sequence[Record], word: str, name: str) -> tuple[list[LogCurves], list[str]]:
    """Runs of entries that may each have other keys."""
    columns: dict[str, Cells] = {}
    for row, (_, record) in enumerate(records):
        for key, cell in record.items():
            column = columns.setdefault(key, Cells([], []))
            column.rows.append(row)
            column.cells.append(cell)
    return runs_of_table(Table(columns, [place for place, _ in records], word), name)


def read_csv(text: str, path: Path) -> tuple[list[LogCurves], list[str]]:
    """A header and a row a step, separated by commas, semicolons or tabs; a last row that is cut off is left out.

    Raises:
        UsageError: no header, a name twice, or a row with another number of cells.
    """
    header_line = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, places, notes = [], [], []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(cells)
                places.append(reader.line_num)
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: {error}.") from None
    header, rows, places = [cell.strip() for cell in rows[0]], rows[1:], places[1:]
    _check_header(header, path)
    if rows and len(rows[-1]) < len(header) and not text.endswith("\n"):
        notes.append(f"line {places[-1]}, the last, is cut off and was left out")
        rows, places = rows[:-1], places[:-1]
    for cells, place in zip(rows, places, strict=True):
        if len(cells) != len(header):
            raise UsageError(f"{path}: line {place} has {len(cells)} cells, the header {len(header)}.")
    columns = {
        name: Cells(list(range(len(rows))), list(cells))
        for name, cells in zip(header, zip(*rows, strict=True), strict=True)
    } if rows else {name: Cells([], []) for name in header}  # fmt: skip
    runs, more = runs_of_table(Table(columns, places, "line"), path.stem)
    return runs, notes + more


def _check_header(header: Sequence[str], path: Path) -> None:
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise UsageError(f"{path}: the header has {twice[0]!r} twice.")
    if all(_looks_numeric(name) for name in header):
        raise UsageError(f"{path}: line 1 has numbers only; a header such as 'step,loss' must name the columns.")
    if len(header) == 1 and " " in header[0]:
        raise UsageError(
            f"{path}: line 1 ({header[0][:40]!r}) is no header of a CSV; known: CSV, JSONL, trainer_state.json, "
            "logs of TensorBoard, W&B and MLflow."
        )


def _looks_numeric(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return name == ""
    return True


def runs_of_table(table: Table, name: str) -> tuple[list[LogCurves], list[str]]:
    """One run, or one for each name in the run column, or one for each that W&B's headers name."""
    names = [one for one in table.columns if one]
    if any(split_name(one) for one in names):
        return _wandb_runs(table)
    run_name = next((n for wanted in _RUN_NAMES for n in names if n.lower().replace(" ", "_") == wanted), None)
    step = step_name(names)
    notes = [] if step is not None else [_no_step("row")]
    if run_name is None:
        return [_run(name, table, {n: n for n in names if n != step}, step, None)], notes
    owners = dict(zip(table.columns[run_name].rows, table.columns[run_name].cells, strict=True))
    members: dict[str, list[int]] = {}
    for row in range(len(table.places)):
        owner = owners.get(row)
        members.setdefault("" if owner is None else str(owner).strip(), []).append(row)
    if "" in members:
        at = table.places[members[""][0]]
        notes.append(f"{len(members[''])} rows, first {table.word} {at}, name no run in {run_name!r}: a run called ''")
    kept = {n: n for n in names if n not in (step, run_name)}
    return [_run(owner, table, kept, step, rows) for owner, rows in members.items()], notes


def _wandb_runs(table: Table) -> tuple[list[LogCurves], list[str]]:
    """The header names run and metric; the first column is shared."""
    members: dict[str, dict[str, str]] = {}
    ranges = False
    for header in table.columns:
        parts = split_name(header)
        if parts is None:
            continue
        run, metric = parts
        if metric.endswith(("__MIN", "__MAX")):
            ranges = True
            continue
        members.setdefault(run, {})[metric] = header
    shared = shared_column(list(table.columns))
    notes = ["columns __MIN and __MAX are the range of what W&B drew, and no curves"] if ranges else []
    result = []
    for run, columns in members.items():
        step = shared if shared is not None and is_step(shared) else None
        own = step_name(list(columns)) if step is None else None
        if step is None and own is None:
            notes.append(_no_step(f"row (not {shared!r})" if shared else "row"))
        kept = {metric: header for metric, header in columns.items() if not is_step(metric)}
        result.append(_run(run, table, kept, columns[own] if own else step, None))
    return result, list(dict.fromkeys(notes))


def _no_step(instead: str) -> str:
    return f"no step column ({', '.join(STEP_NAMES)}): the number of the {instead} stands for the step"


def _run(name: str, table: Table, names: Mapping[str, str], step: str | None, rows: Sequence[int] | None) -> LogCurves:
    """The columns of one run; ``names`` from their name to the file's, ``rows`` those of the run (None: all)."""
    chosen = range(len(table.places)) if rows is None else rows
    places = [table.places[row] for row in chosen]
    new = None if rows is None else {row: number for number, row in enumerate(rows)}

    def column(header: str) -> Column:
        cells = table.columns[header]
        if new is None:
            return Column.of(cells.rows, cells.cells, places, table.word)
        own = [(new[row], cell) for row, cell in zip(cells.rows, cells.cells, strict=True) if row in new]
        return Column.of([row for row, _ in own], [cell for _, cell in own], places, table.word)

    steps = np.arange(len(places), dtype=np.float64)
    if step is not None:
        counted = column(step)
        if counted.problem:
            raise UsageError(f"step column {step!r}: {counted.problem}.")
        steps = np.full(len(places), np.nan)
        steps[counted.rows] = counted.values
    columns = {n: column(header) for n, header in names.items()}
    if rows is not None:  # What only other runs have is no column of this one.
        columns = {n: found for n, found in columns.items() if len(found.rows)}
    return LogCurves(name, steps, np.array(places, np.int64), columns, table.word)
