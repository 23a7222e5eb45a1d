"""Result tables in a run's ``analysis`` folder: Parquet, replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.store.tables import read_table
from landscape.store.tables import write_table as store_table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Row = dict[str, Any]

FLOATS = "floats"
"""A column that holds an array in every row; the other types are Arrow's names."""


def read_rows(path: Path, columns: Iterable[str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a table as dicts; none where there is no table yet.

    Args:
        columns: that the rows have.
        optional: of these, columns that an older table may lack; they are None then.

    Raises:
        StoreError: the file is damaged, or has not all of the columns that are not optional.
    """
    try:
        table = read_table(path)
    except StoreError as error:
        raise StoreError(f"{error}; delete it to measure again") from error
    if table is None:
        return []
    absent = [name for name in columns if name not in table.column_names]
    if required := [name for name in absent if name not in optional]:
        raise StoreError(f"{path} has no column {required[0]!r}; delete it to measure again")
    return [{**dict.fromkeys(absent), **row} for row in table.to_pylist()]


def write_rows(path: Path, rows: Iterable[Row], types: Mapping[str, str]) -> None:
    """Replace the table atomically by these rows.

    Raises:
        StoreError: the disk is full or refuses; the old table is then still there.
    """
    _write(path, _arrow(rows, types))


def to_frame(rows: Iterable[Row], types: Mapping[str, str]) -> pd.DataFrame:
    """The rows as `pandas.read_parquet` would give them back."""
    return _arrow(rows, types).to_pandas()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Replace the table atomically.

    Raises:
        StoreError: the disk is full or refuses; the old table is then still there.
    """
    import pyarrow as pa

    # Not DataFrame.to_parquet, which turns NaN, a value that was measured, into null, one that was not.
    _write(path, pa.table({name: pa.array(table[name].to_numpy(), from_pandas=False) for name in table}))


def _arrow(rows: Iterable[Row], types: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    known = {FLOATS: pa.list_(pa.float64())}
    fields = [(name, known.get(kind) or pa.type_for_alias(kind)) for name, kind in types.items()]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields))


def _write(path: Path, table: pa.Table) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create {path.parent}: {error.strerror}") from error
    store_table(path, table)
