"""Parquet files of the store: written with checksums of their pages and of their content, read within bounds."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import StoreError
from landscape.store.atomic import replacing
from landscape.store.files import open_plain

if TYPE_CHECKING:
    import pyarrow as pa

MOST_CELLS = 200_000_000
"""Of one table: a million steps with a hundred columns are half of it. A kilobyte can declare a billion."""
MOST_BYTES = 1 << 31
"""Of the table's columns, as the file declares them."""

_CHECKSUM = b"landscape.crc32"


def write_table(path: Path, table: pa.Table, metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Replace a Parquet file atomically.

    Raises:
        StoreError: the disk is full or refuses.
    """
    import pyarrow.parquet as pq

    sealed = table.replace_schema_metadata({**(metadata or {}), _CHECKSUM: b"%d" % table_checksum(table)})
    with replacing(path) as temporary:
        pq.write_table(sealed, temporary, compression="zstd", write_page_checksum=True)


def read_table(path: Path) -> pa.Table | None:
    """The table, its schema's metadata included; None where there is no file.

    Raises:
        StoreError: the file is damaged, declares more than a table may have, or is no plain file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with os.fdopen(open_plain(path), "rb") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            held = parquet.metadata
            size = sum(held.row_group(index).total_byte_size for index in range(held.num_row_groups))
            if held.num_rows * held.num_columns > MOST_CELLS or size > MOST_BYTES:
                raise StoreError(
                    f"{path} declares {held.num_rows} rows of {held.num_columns} columns: too large to read"
                )
            table = parquet.read()
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, RecursionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise StoreError(f"{path} is damaged ({detail})") from error
    wanted = (table.schema.metadata or {}).get(_CHECKSUM)
    if wanted is not None and wanted != b"%d" % table_checksum(table):
        raise StoreError(f"{path} is damaged (its checksum does not match its content)")
    return table


def table_checksum(table: pa.Table) -> int:
    """CRC-32 over names, types, nulls and values, column by column: what a reader gets, however it was encoded."""
    result = 0
    for name, column in zip(table.column_names, table.columns, strict=True):
        result = zlib.crc32(f"{name}\0{_type_name(column.type)}\0{len(column)}\0".encode(), result)
        result = _column_checksum(column, result)
    return result


def _type_name(kind: pa.DataType) -> str:
    """Of a list without the name of its items, which Parquet changes."""
    import pyarrow as pa

    return f"list<{_type_name(kind.value_type)}>" if pa.types.is_list(kind) else str(kind)


def _column_checksum(column: pa.ChunkedArray, start: int) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    result = zlib.crc32(column.is_null().to_numpy().tobytes(), start)
    kind = column.type
    if pa.types.is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0)  # type: ignore[attr-defined]
        result = zlib.crc32(lengths.to_numpy().tobytes(), result)
        return _column_checksum(pc.list_flatten(column), result)  # type: ignore[attr-defined]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values = column.fill_null(False if pa.types.is_boolean(kind) else 0)
        return zlib.crc32(values.to_numpy().tobytes(), result)
    for value in column.to_pylist():
        result = zlib.crc32(repr(value).encode("utf-8", "backslashreplace") + b"\0", result)
    return result
