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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from landscape.errors import StoreError
from landscape.store.atomic import replacing
from landscape.store.lines import NON_FINITE, Lines, read_lines

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

RESERVED_KEYS = frozenset({"crc", "run_id"})
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
    for number, record in enumerate(lines.records, 1):
        if not isinstance(record.get("step"), int):
            raise StoreError(f"{path}, line {number}: not a record of metrics, it has no step")
    return lines


def to_table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One table of both kinds, ordered by step: ``step`` int64, ``split`` string, everything else float64.

    A column with a string other than the three non-finite numbers is a string column.
    """
    import pyarrow as pa

    ordered = sorted(records, key=lambda record: record["step"])  # stable: within a step, the order of measuring
    known = dict.fromkeys(("step", "split", *STEP_COLUMNS, *EVALUATION_COLUMNS))
    names = (*known, *sorted(set().union(*ordered) - known.keys()))
    return pa.table({name: _column(name, [record.get(name) for record in ordered]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    import pyarrow as pa

    if name == "step":
        return pa.array(values, pa.int64())
    if name not in _STRING_COLUMNS:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowTypeError):  # nearly all columns are plain numbers
            return pa.array(values, pa.float64())
        if not any(_is_text(value) for value in values):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value not in NON_FINITE


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
    import pyarrow.parquet as pq

    table = to_table(list(records))
    ids = pa.array([run_id] * table.num_rows, pa.string())
    table = table.add_column(0, "run_id", ids).replace_schema_metadata({_ATTEMPT_KEY: str(attempt).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_parquet(path: Path, attempt: int) -> pa.Table | None:
    """The table, or None where the file is missing or was made from another attempt.

    Raises:
        StoreError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
        return pq.read_table(path) if metadata.get(_ATTEMPT_KEY) == str(attempt).encode() else None
    except (pa.ArrowException, OSError) as error:
        detail = " ".join(str(error).split())
        raise StoreError(f"{path} is damaged ({detail}); without it metrics.jsonl is read instead") from error
