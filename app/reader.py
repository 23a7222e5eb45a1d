"""The store as the pages read it: runs listed by `RunIndex`, their tables kept in memory until their files change."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from app.index import RunIndex, RunRow, Stamp, leads_outside
from app.light import light_frames, thin_frames
from landscape.analysis.flatness import flatness_table
from landscape.errors import LandscapeError, StoreError
from landscape.plots import RunData
from landscape.store import Run, Store
from landscape.store.analysis_tables import read_analysis
from landscape.store.metrics import read_parquet, to_frame
from landscape.store.runs import PARQUET_FILE
from landscape.store.slice_info import read_described_slice
from landscape.store.slices import SliceFile, joint_slices_dir, slice_files

MEMORY = 350_000_000
"""Bytes of tables kept; the least recently used go first."""

MANY = 8
"""Runs from which threads are worth their start."""

ANALYSES = ("sharpness", "gap", "episodes", "density", "layers", "trace")


class StoreReader:
    """A store with everything that was read of it lately. What it hands out is shared: it is not to be changed."""

    def __init__(self, path: str | Path) -> None:
        self.store = Store.open(path)
        self.index = RunIndex(self.store)
        self._cache: OrderedDict[Any, tuple[Any, Any, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.store.path.absolute().name

    def rows(self) -> tuple[RunRow, ...]:
        """Every run, those that need a look first; `StoreError` when the store is gone."""
        return self.index.rows()

    def run(self, run_id: str) -> Run:
        """The run; `StoreError` when there is none, which names the nearest."""
        return self.store.get(run_id)

    def data(self, row: RunRow, *, steps: bool = True) -> RunData:
        """A run's metrics, evaluations and analyses; what could not be read is named in its ``problems``.

        Args:
            steps: false leaves out what figures over a thousand runs do not need, so that they stay in memory: all but
                the last training losses, and evaluations that are neither the last nor at a step with a sharpness.
        """
        stamps = (self.index.stamps(row.id), self.analysis_stamps(row.id))
        return self.remember(("data", row.id, steps), stamps, lambda: self._load(row, steps))

    def several(self, rows: Sequence[RunRow], *, steps: bool = True) -> list[RunData]:
        """The `data` of some runs; those of many are read by several threads."""
        if len(rows) < MANY:
            return [self.data(row, steps=steps) for row in rows]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(lambda row: self.data(row, steps=steps), rows))

    def with_slices(self, row: RunRow) -> RunData:
        """A run with its slices and those that it shares with others."""
        data, problems = self.data(row), []
        folder = self.run_path(row.id) / "analysis"
        own = [self._slice(path, problems) for path in slice_files(folder)]
        joint = [self._slice(path, problems) for path in slice_files(joint_slices_dir(self.store.path))]
        found = [item for item in own if item] + [item for item in joint if item and row.id in item.runs]
        return replace(data, slices=found, problems=tuple(dict.fromkeys((*data.problems, *problems))))

    def snapshot_steps(self, row: RunRow, stream: str = "params") -> list[int]:
        """Steps with a snapshot, ascending; none where the run captures none.

        Raises:
            StoreError: the index of the snapshots is damaged.
        """
        if row.status is None or not row.status.attempt:
            return []
        folder = self.run_path(row.id) / "attempts" / str(row.status.attempt)
        if not (folder / f"snapshots-{stream}.idx").is_file():
            return []
        stamp = _stamp(folder / f"snapshots-{stream}.idx"), _stamp(folder / f"snapshots-{stream}.bin")
        run = Run(self.run_path(row.id), self.store.path)
        return self.remember(("steps", row.id, stream), stamp, lambda: _steps(run, stream))

    def has_slices(self, row: RunRow) -> bool:
        """Whether the run has slices of its own."""
        return bool(slice_files(self.run_path(row.id) / "analysis"))

    def joint_runs(self) -> set[str]:
        """Ids of the runs that share slices with others."""
        problems: list[str] = []
        items = [self._slice(path, problems) for path in slice_files(joint_slices_dir(self.store.path))]
        return {run_id for item in items if item for run_id in item.runs}

    def _slice(self, path: Path, problems: list[str]) -> SliceFile | None:
        try:
            return self.remember(("slice", path), _stamp(path), lambda: read_described_slice(self._inside(path)))
        except StoreError as error:
            problems.append(str(error))
            return None

    def analysis(self, row: RunRow, name: str) -> pd.DataFrame | None:
        """The table of one of `ANALYSES`, or None where the run was not analyzed; `StoreError` when it is damaged."""
        path = self.run_path(row.id) / "analysis" / f"{name}.parquet"
        return self.remember(("analysis", row.id, name), _stamp(path), lambda: read_table(self._inside(path)))

    def _inside(self, path: Path) -> Path:
        """The path, unless it is a link out of the store."""
        if leads_outside(path, self.store.path.resolve()):
            raise StoreError(f"{path} leads out of the store and is not read")
        return path

    def flatness(self, rows: Sequence[RunRow]) -> pd.DataFrame:
        """Flatness, λmax and gap of the runs' snapshots; `StoreError` when a file of theirs is damaged."""
        ids = tuple(row.id for row in rows)
        stamps = tuple((self.index.stamps(run_id), self.analysis_stamps(run_id)) for run_id in ids)
        runs = [Run(self.run_path(run_id), self.store.path) for run_id in ids]
        return self.remember(("flatness", ids), stamps, lambda: flatness_table(runs))

    def run_path(self, run_id: str) -> Path:
        """Of a run that is listed."""
        return self.store.path / "runs" / run_id

    def analysis_stamps(self, run_id: str) -> tuple[tuple[str, Stamp], ...]:
        """What changes when an analysis of the run does."""
        folder = self.run_path(run_id) / "analysis"
        return tuple((path.name, _stamp(path)) for path in sorted(folder.glob("*")))

    def remember(self, key: Any, stamps: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, kept under ``key`` until the ``stamps`` differ."""
        with self._lock:
            known = self._cache.get(key)
            if known is not None and known[0] == stamps:
                self._cache.move_to_end(key)
                return known[1]
        value = make()
        with self._lock:
            old = self._cache.pop(key, None)
            size = _bytes(value)
            self._cache[key] = (stamps, value, size)
            self._size += size - (old[2] if old else 0)
            while self._size > MEMORY and len(self._cache) > 1:
                _, (_, _, freed) = self._cache.popitem(last=False)
                self._size -= freed
        return value

    def _load(self, row: RunRow, steps: bool) -> RunData:
        problems: list[str] = []

        def read(make: Callable[[], Any], otherwise: Any) -> Any:
            try:
                return make()
            except (LandscapeError, OSError) as error:
                problems.append(str(error))
                return otherwise

        run = Run(self.run_path(row.id), self.store.path)
        tables = {
            name: read(lambda name=name: self.analysis(row, name), None) for name in ("sharpness", "gap", "episodes")
        }
        sharp = tables["sharpness"]
        wanted = None if steps else [] if sharp is None else sharp["step"].unique().tolist()
        metrics, evaluations = _frames(run, row, read, wanted)
        return RunData(
            run_id=row.id,
            config=row.config,
            metrics=metrics,
            evaluations=evaluations,
            **tables,
            state=row.state,
            step=row.step,
            max_steps=row.max_steps,
            error=row.status.error if row.status else None,
            seconds=float(metrics["seconds"].to_numpy(float).sum()) if steps and "seconds" in metrics else None,
            digests=read(lambda: run.digests, {}),
            environment=row.status.environment if row.status else {},
            peak_memory=row.status.peak_memory if row.status else {},
            problems=tuple(dict.fromkeys(problems)),
        )


def _frames(
    run: Run, row: RunRow, read: Callable[[Callable[[], Any], Any], Any], wanted: Sequence[int] | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and evaluations from one reading of the file; `Run.metrics` and `Run.evaluations` read it once each.

    Args:
        wanted: the last training losses are enough, and of the evaluations the last and those at these steps; None:
            everything.
    """
    path = run.path / PARQUET_FILE
    if row.state == "done" and row.status is not None:
        with contextlib.suppress(StoreError):  # is said when the lines are read instead
            if wanted is not None:
                if (frames := light_frames(path, row.status.attempt, wanted)) is not None:
                    return frames
            elif (table := read_parquet(path, row.status.attempt)) is not None:
                return to_frame(table, "step"), to_frame(table, "evaluation")
    metrics, evaluations = read(run.metrics, pd.DataFrame()), read(run.evaluations, pd.DataFrame())
    return (metrics, evaluations) if wanted is None else thin_frames(metrics, evaluations, wanted)


def read_table(path: Path) -> pd.DataFrame | None:
    """An analysis as a frame; None where there is none.

    Raises:
        StoreError: the file is damaged.
    """
    table = read_analysis(path)
    return pd.DataFrame(table.to_pylist()) if table is not None and table.num_rows else None


def _steps(run: Run, stream: str) -> list[int]:
    return run.snapshots(stream).steps.tolist()


def newest(rows: Sequence[RunRow], most: int) -> tuple[list[RunRow], str]:
    """At most so many of the runs, and what was left out in words: whole settings of the newest come first."""
    started = [row for row in rows if row.status is not None and row.status.attempt > 0]
    if len(started) <= most:
        return started, ""
    newest = sorted(started, key=lambda row: (row.status.created if row.status else "", row.id), reverse=True)[:most]
    return newest, (
        f"The {most} newest of {len(started)} runs are drawn: more cannot be told apart. "
        "Narrow the filter, for example with `rank==64 and lr==5e-4`."
    )


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _bytes(value: Any) -> int:
    """Roughly what a value takes in memory."""
    if isinstance(value, RunData):
        return sum(_bytes(getattr(value, field.name)) for field in fields(value)) + 2000
    if isinstance(value, pd.DataFrame):
        return 8 * value.size + 500  # what pandas would count, to a hundredth of its time
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value)) + 100
    if hasattr(value, "__dataclass_fields__"):
        return sum(_bytes(getattr(value, field.name)) for field in fields(value)) + 100
    return 200


def problem_lines(runs: Sequence[RunData]) -> list[str]:
    """One line for each thing of a run that could not be read."""
    return [f"{run.run_id}: {problem}" for run in runs for problem in run.problems]
