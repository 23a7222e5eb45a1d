"""A store's runs as plots see them, with the slices that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from landscape.plots import RunData
    from landscape.store import Run, Store
    from landscape.store.slices import SliceFile


@dataclass(frozen=True)
class LoadedRuns:
    """Runs as plots read them, one line for each that could not be read at all, and one for each damaged slice of
    several runs.
    """

    runs: tuple[RunData, ...]
    unreadable: tuple[str, ...]
    damaged: tuple[str, ...] = ()


def load_runs(store: Store | str | Path, where: str | None = None) -> LoadedRuns:
    """Every run of a store, or those that ``where`` means.

    A damaged table or slice of a run is named in its ``problems`` and left out; a run whose config or status is damaged
    has no place in any figure and is only named.

    Raises:
        UsageError: a bad expression, or one that no run matches.
        StoreError: no store there.
    """
    from landscape.config.where import Where
    from landscape.store import Store
    from landscape.store.slices import joint_slices_dir, slice_files

    expression = Where.parse(where) if where is not None else None
    store = store if isinstance(store, Store) else Store.open(store)
    damaged: list[str] = []
    joint = _read_slices(slice_files(joint_slices_dir(store.path)), damaged)
    runs, unreadable = [], []
    for run in store.runs():
        try:
            values, status = run.config.model_dump(), run.status
        except StoreError as error:
            unreadable.append(f"{run.id}: {error}")
            continue
        values.update(id=run.id, state=status.state, step=status.step)
        if expression is None or expression.matches(values):
            runs.append(_load(run, [item for item in joint if run.id in item.runs]))
    if expression is not None and not runs:
        raise UsageError(f"--where {where!r}: none of the {len(store.runs())} runs in {store.path} matches")
    return LoadedRuns(tuple(runs), tuple(unreadable), tuple(damaged))


def _load(run: Run, joint: Sequence[SliceFile]) -> RunData:
    import pandas as pd

    from landscape.plots import RunData
    from landscape.store.slices import slice_files

    problems: list[str] = []

    def read(what: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return what()
        except StoreError as error:
            problems.append(str(error))
            return otherwise

    status = run.status
    metrics = read(run.metrics, pd.DataFrame())
    return RunData(
        run_id=run.id,
        config=run.config.model_dump(mode="json"),
        metrics=metrics,
        evaluations=read(run.evaluations, pd.DataFrame()),
        sharpness=read(lambda: _parquet(run.analysis_dir / "sharpness.parquet"), None),
        gap=read(lambda: _parquet(run.analysis_dir / "gap.parquet"), None),
        episodes=read(lambda: _parquet(run.analysis_dir / "episodes.parquet"), None),
        slices=[*read(lambda: _read_slices(slice_files(run.analysis_dir), problems), []), *joint],
        state=status.state,
        step=status.step,
        max_steps=status.max_steps,
        error=status.error,
        seconds=float(metrics["seconds"].sum()) if len(metrics) else None,
        digests=read(lambda: run.digests, {}),
        environment=status.environment,
        peak_memory=status.peak_memory,
        problems=tuple(dict.fromkeys(problems)),
    )


def _parquet(path: Path) -> pd.DataFrame | None:
    """The table, or None where the file is missing."""
    from landscape.store.analysis_tables import read_analysis

    table = read_analysis(path)
    return None if table is None else table.to_pandas()


def _read_slices(paths: Iterable[Path], problems: list[str]) -> list[SliceFile]:
    from landscape.store.slice_info import read_described_slice

    found = []
    for path in paths:
        try:
            found.append(read_described_slice(path))
        except StoreError as error:
            problems.append(str(error))
    return found
