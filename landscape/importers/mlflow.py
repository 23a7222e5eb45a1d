"""MLflow: file stores (``mlruns/<experiment>/<run>/metrics/<key>``) and ``mlflow.db``, read without the package.

A metric's file has a line ``timestamp value step`` for each value. Only the folder itself is read: the places that
``meta.yaml`` names (artifact_uri) are never followed.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from landscape.errors import UsageError
from landscape.importers.curves import Column, LogCurves
from landscape.importers.files import check_plain, inside, read_bytes

META = "meta.yaml"
_SQLITE = b"SQLite format 3\0"
_MOST_ROWS = 20_000_000
_INFINITE = 1.797e308
"""MLflow writes the largest float64 to a database in place of infinity."""


class _Run:
    """Values of one run as they are found, metric by metric."""

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key = name, key
        self.config: dict[str, Any] = {}
        self.steps: list[float] = []
        self.places: list[int] = []
        self.rows: dict[str, list[int]] = defaultdict(list)
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, metric: str, step: float, value: float, place: int) -> None:
        self.rows[metric].append(len(self.steps))
        self.values[metric].append(value)
        self.steps.append(step)
        self.places.append(place)

    def curves(self, name: str, word: str) -> LogCurves:
        columns = {key: Column(np.array(self.rows[key], np.int64), np.array(self.values[key])) for key in self.rows}
        steps, places = np.array(self.steps, np.float64), np.array(self.places, np.int64)
        return LogCurves(name, steps, places, columns, word, self.config)


def run_folders(folder: Path, notes: list[str]) -> list[Path]:
    """The runs in a run's folder, an experiment's, or a whole ``mlruns``; empty where it is none of them."""
    depths = (META, f"*/{META}", f"*/*/{META}", f"mlruns/*/*/{META}")
    found = [path.parent for depth in depths for path in sorted(folder.glob(depth)) if not path.parent.is_symlink()]
    return inside(folder, (path for path in found if (path / "metrics").is_dir()), notes)


def is_database(head: bytes) -> bool:
    """Whether a file begins as SQLite's do."""
    return head.startswith(_SQLITE)


def read_folders(folders: list[Path], notes: list[str]) -> tuple[list[LogCurves], list[Path]]:
    """The runs of a file store, and the files that were read.

    Raises:
        UsageError: a metric's line is none, or no run holds metrics.
    """
    runs, files = [], []
    for folder in folders:
        meta = _meta(folder / META)
        if meta.get("lifecycle_stage") == "deleted":
            notes.append(f"run {folder.name} is deleted and was left out")
            continue
        run = _Run(str(meta.get("run_name") or _first_line(folder / "tags/mlflow.runName") or folder.name), folder.name)
        metrics = sorted(path for path in (folder / "metrics").rglob("*") if path.is_file())
        for path in inside(folder, metrics, notes):
            _read_metric(path, path.relative_to(folder / "metrics").as_posix(), run, notes)
            files.append(path)
        for path in inside(folder, sorted((folder / "params").glob("*")), notes):
            if path.is_file():
                run.config[path.name] = _first_line(path)
        runs.append(run)
    return _named(runs, "line", folders[0] if len(folders) == 1 else folders[0].parent, notes), files


def _read_metric(path: Path, key: str, run: _Run, notes: list[str]) -> None:
    lines = read_bytes(path).decode("utf-8", "replace").split("\n")
    if lines.pop().strip():
        notes.append(f"{key} of {run.name} is cut off: its last line was left out")
    for number, line in enumerate(lines, 1):
        try:
            _, value, *step = line.split()
            run.add(key, float(step[0]) if step else 0.0, float(value), number)
        except ValueError:
            raise UsageError(f"{path}: line {number} is not 'timestamp value step': {line[:40]!r}.") from None


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise UsageError(f"{path} is not valid YAML.") from None
    return meta if isinstance(meta, dict) else {}


def _first_line(path: Path) -> str:
    return read_bytes(path).decode("utf-8", "replace").split("\n", 1)[0].strip() if path.is_file() else ""


def read_database(path: Path) -> tuple[list[LogCurves], list[str]]:
    """The runs of ``mlflow.db``, opened for reading only.

    Raises:
        UsageError: damaged, no database of MLflow's, or no run in it holds metrics.
    """
    check_plain(path)
    notes: list[str] = []
    try:
        with contextlib.closing(_open(path)) as database:
            runs = _database_runs(database, notes)
    except sqlite3.Error as error:
        raise UsageError(f"{path}: no database of MLflow's, or a damaged one ({error}).") from None
    return _named(runs, "row", path, notes), notes


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA query_only = ON")
    return database


def _database_runs(database: sqlite3.Connection, notes: list[str]) -> list[_Run]:
    rows = database.execute("SELECT run_uuid, name, lifecycle_stage FROM runs ORDER BY start_time").fetchall()
    deleted = sum(stage == "deleted" for *_, stage in rows)
    if deleted:
        notes.append(f"{deleted} deleted runs were left out")
    runs = {key: _Run(str(name or key), str(key)) for key, name, stage in rows if stage != "deleted"}
    for owner, key, value in database.execute("SELECT run_uuid, key, value FROM params"):
        if owner in runs:
            runs[owner].config[str(key)] = value
    query = "SELECT run_uuid, key, step, value, is_nan FROM metrics ORDER BY rowid"
    for place, (owner, key, step, value, is_nan) in enumerate(database.execute(query), 1):
        if place > _MOST_ROWS:
            raise UsageError(f"more than {_MOST_ROWS:,} values of metrics; export the runs wanted.")
        if owner in runs:
            number = math.nan if is_nan else float(value)
            number = math.copysign(math.inf, number) if abs(number) > _INFINITE else number
            runs[owner].add(str(key), float(step), number, place)
    return list(runs.values())


def _named(runs: Iterable[_Run], word: str, where: Path, notes: list[str]) -> list[LogCurves]:
    """Runs with metrics; names that several have get the beginning of the id."""
    runs = list(runs)
    counts = Counter(run.name for run in runs)
    result = []
    for run in runs:
        name = run.name if counts[run.name] == 1 else f"{run.name} ({run.key[:8]})"
        if run.rows:
            result.append(run.curves(name, word))
        else:
            notes.append(f"run {name} holds no metrics")
    if not result:
        raise UsageError(f"{where}: no run with metrics.")
    return result
