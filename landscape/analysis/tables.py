"""Result tables in a run's ``analysis`` folder: Parquet, replaced as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.store.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a table as dicts; none where there is no table yet.

    Raises:
        StoreError: the file is damaged, or has not all of these columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return []
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{path} is damaged ({reason}); delete it to measure again") from error
    if absent := [name for name in columns if name not in table.column_names]:
        raise StoreError(f"{path} has no column {absent[0]!r}; delete it to measure again")
    return table.to_pylist()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Replace the table atomically.

    Raises:
        StoreError: the disk is full or refuses; the old table is then still there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create {path.parent}: {error.strerror}") from error
    with replacing(path) as temporary:
        # Not DataFrame.to_parquet, which turns NaN, a value that was measured, into null, one that was not.
        columns = {name: pa.array(table[name].to_numpy(), from_pandas=False) for name in table}
        pq.write_table(pa.table(columns), temporary)
