"""Reading data files into columns: Parquet, JSONL and CSV, with errors that name the file and the line."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from landscape.errors import UsageError, nearest

SUFFIXES = (".parquet", ".jsonl", ".csv")


@dataclass(frozen=True)
class Table:
    """Columns of equal length; ``origin`` names the file or hub split in messages, ``digest`` stands for its content.

    ``first_line`` is the line of row 0 where the origin is a text file with one row a line, else None.
    """

    origin: str
    columns: dict[str, list[Any]]
    digest: str
    first_line: int | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def place(self, row: int) -> str:
        """``train.jsonl line 7`` or ``train.parquet row 6``."""
        if self.first_line is None:
            return f"{self.origin} row {row}"
        return f"{self.origin} line {row + self.first_line}"

    def column(self, name: str, role: str) -> list[Any]:
        """The values of a column.

        Raises:
            UsageError: no such column; lists those that exist and the nearest.
        """
        if name not in self.columns:
            raise UsageError(
                f"columns: {role} {name!r} is not a column of {self.origin}; it has: "
                f"{', '.join(self.columns) or 'none'}.{nearest(name, self.columns)}"
            )
        return self.columns[name]


def read_table(path: Path) -> Table:
    """Read one file; the result is kept in memory and reused while the file does not change.

    Raises:
        UsageError: missing file, unknown suffix, no rows, or content that is not what the suffix says.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"data_files: {path}: unknown suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"data_files: cannot read {path}: {error.strerror}") from error
    if not path.is_file():
        raise UsageError(f"data_files: {path} is not a file")
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, _size: int, _modified: int) -> Table:
    content = path.read_bytes()
    reader = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}[path.suffix.lower()]
    columns, first_line = reader(path, content)
    table = Table(str(path), columns, hashlib.sha256(content).hexdigest(), first_line)
    if len(table) == 0:
        raise UsageError(f"data_files: {path} holds no rows")
    return table


def _read_parquet(path: Path, content: bytes) -> tuple[dict[str, list[Any]], int | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(content)).to_pydict(), None
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"data_files: {path} is not a readable Parquet file: {_one_line(error)}") from error


def _read_jsonl(path: Path, content: bytes) -> tuple[dict[str, list[Any]], int | None]:
    rows: list[dict[str, Any]] = []
    # Lines end at \n alone: str.splitlines would also cut at U+2028, which JSON strings may hold.
    lines = _text(path, content).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"data_files: {path} line {number} is not valid JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise UsageError(f"data_files: {path} line {number} holds {type(row).__name__}, not an object {{...}}")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, 1


def _read_csv(path: Path, content: bytes) -> tuple[dict[str, list[Any]], int | None]:
    reader = csv.reader(_text(path, content).splitlines(keepends=True), strict=True)
    rows: list[list[str]] = []
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                raise UsageError(
                    f"data_files: {path} line {reader.line_num} has {len(row)} fields, the header {len(header)}"
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise UsageError(f"data_files: {path} line {reader.line_num} is not valid CSV: {error}") from error
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}, None


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"data_files: {path} line {line} is not UTF-8 text") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
