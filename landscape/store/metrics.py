"""What a run measured: checked records on their way in, one Arrow table on their way out.

``metrics.jsonl`` holds two kinds of records in the order in which they were measured: optimizer steps (no ``split``)
and evaluations (with ``split``). ``metrics.parquet`` is the same as one table with nullable columns, so that DuckDB and
Arrow read many runs at once::

    select run_id, step, loss_clean from read_parquet('STORE/runs/*/metrics.parquet', union_by_name = true)
    where split is null

In it NaN is a value that was measured and null one that was not; in a DataFrame both are NaN.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from landscape.errors import StoreError
from landscape.store.lines import NON_FINITE, Lines, read_lines
from landscape.store.tables import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

STEP_COLUMNS = (
    "step",
    "epoch",
    "tokens",
    "learning_rate",
    "loss_clean",
    "loss_perturbed",
    "loss_base",
    "grad_norm",
    "perturbation_norm",
    "adapter_norm",
    "seconds",
)
EVALUATION_COLUMNS = ("step", "split", "loss", "standard_error", "num_examples", "num_labels")

MOST_COLUMNS = 4096
"""Of a run's metrics; methods log a dozen of their own."""

RESERVED_KEYS = frozenset({"crc", "run_id"})
_NUMBERS = {*STEP_COLUMNS, *EVALUATION_COLUMNS} - {"step", "split"}
_STRING_COLUMNS = frozenset({"run_id", "split"})
_ATTEMPT_KEY = b"landscape.attempt"

Kind = Literal["step", "evaluation"]
_COLUMNS: dict[Kind, tuple[str, ...]] = {"step": STEP_COLUMNS, "evaluation": EVALUATION_COLUMNS}


def checked_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with plain Python values; one-element tensors and NumPy scalars become numbers.

    Raises:
        StoreError: no integer ``step`` of at least 0, a reserved key, or a value that is no number, string or null.
    """
    plain = {key: _plain(key, value) for key, value in record.items()}
    step = plain.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise StoreError(f"metrics: step must be an integer of at least 0, not {step!r}")
    if reserved := RESERVED_KEYS & plain.keys():
        raise StoreError(f"metrics: the key {min(reserved)!r} is reserved; choose another name")
    if not isinstance(plain.get("split", ""), str):
        raise StoreError(f"metrics: split must be a name such as 'eval', not {plain['split']!r}")
    return plain


def _plain(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        value = value.item()
    except (AttributeError, ValueError, RuntimeError):
        pass
    else:
        if isinstance(value, bool | int | float | str):
            return value
    raise StoreError(f"metrics: {key} must be one number, a string or null, not a {type(value).__name__}")


def read_records(path: Path) -> Lines:
    """The records of a ``metrics.jsonl``, without a torn last line.

    Raises:
        StoreError: the file is missing, or a line is damaged or is no record of metrics.
    """
    if not path.is_file():
        raise StoreError(f"{path} is missing")
    lines = read_lines(path)
    check_records(path, lines.records)
    return lines


def check_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """`StoreError` where a line of the file, whole as it may be, is no record of metrics."""
    for number, record in enumerate(records, 1):
        step = record.get("step")
        if not isinstance(step, int) or not 0 <= step < 1 << 62:
            raise StoreError(f"{path}, line {number}: not a record of metrics, it has no step")
        if not isinstance(record.get("split"), str | None):
            raise StoreError(f"{path}, line {number}: not a record of metrics, its split is no name")


def to_table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One table of both kinds, ordered by step: ``step`` int64, ``split`` string, everything else float64.

    A column with a string other than the three non-finite numbers is a string column.
    """
    import pyarrow as pa

    ordered = sorted(records, key=lambda record: record["step"])  # stable: within a step, the order of measuring
    known = dict.fromkeys(("step", "split", *STEP_COLUMNS, *EVALUATION_COLUMNS))
    names = (*known, *sorted(set().union(*ordered) - known.keys()))
    if len(names) > MOST_COLUMNS or any(_text(name) != name for name in names):
        raise StoreError(f"metrics: {len(names)} columns (at most {MOST_COLUMNS}), or names that are no text")
    return pa.table({name: _column(name, [record.get(name) for record in ordered]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    import pyarrow as pa

    if name == "step":
        return pa.array(values, pa.int64())
    if name not in _STRING_COLUMNS:
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # nearly all columns are plain numbers
            return pa.array(values, pa.float64())
        if all(value is None or _is_number(value) for value in values):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        if name in _NUMBERS:  # of ours, and no number: measured, and not to be shown as one
            plain = [None if value is None else float(value) if _is_number(value) else math.nan for value in values]
            return pa.array(plain, pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in NON_FINITE
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 1000)


def _text(value: Any) -> str:
    """Of a scalar; Arrow's strings have no lone surrogates, and nobody logs lists."""
    plain = str(value) if isinstance(value, str | int | float) else f"<{type(value).__name__}>"
    return plain.encode("utf-8", "replace").decode()


def to_frame(table: pa.Table, kind: Kind) -> pd.DataFrame:
    """The rows of one kind: its standard columns, then whatever else at least one of the rows holds, by name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_step = pc.is_null(table["split"])  # type: ignore[attr-defined]
    rows = table.filter(is_step if kind == "step" else pc.invert(is_step))  # type: ignore[attr-defined]
    standard = _COLUMNS[kind]
    others = set(rows.column_names) - {*standard, "run_id", "split"}
    held = sorted(name for name in others if rows[name].null_count < rows.num_rows)
    absent = pa.nulls(rows.num_rows, pa.float64())
    columns = {name: rows[name] if name in rows.column_names else absent for name in (*standard, *held)}
    return pa.table(columns).to_pandas()


def write_parquet(path: Path, records: Iterable[Mapping[str, Any]], run_id: str, attempt: int) -> None:
    """Write ``metrics.parquet`` atomically; its metadata says which attempt it was made from.

    Raises:
        StoreError: the disk is full or refuses.
    """
    import pyarrow as pa

    table = to_table(list(records))
    ids = pa.array([run_id] * table.num_rows, pa.string())
    write_table(path, table.add_column(0, "run_id", ids), {_ATTEMPT_KEY: str(attempt).encode()})


def read_parquet(path: Path, attempt: int) -> pa.Table | None:
    """The table, or None where the file is missing or was made from another attempt.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        table = read_table(path)
    except StoreError as error:
        raise StoreError(f"{error}; without it metrics.jsonl is read instead") from error
    if table is None or (table.schema.metadata or {}).get(_ATTEMPT_KEY) != str(attempt).encode():
        return None
    for name, kind in (("step", "int64"), ("split", "string")):
        if name not in table.column_names or str(table.schema.field(name).type) != kind:
            problem = f"no column {name!r} of {kind}"
            raise StoreError(f"{path} is damaged ({problem}); without it metrics.jsonl is read instead")
    return table
