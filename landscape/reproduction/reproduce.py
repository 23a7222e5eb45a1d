"""Experiment → runs → analyses → figure → verdicts, resumable at every point."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.reproduction.deadline import TimedEngine
from landscape.reproduction.experiment import Analyses, Cell, Experiment, names
from landscape.reproduction.records import Record, read_record
from landscape.reproduction.results import (
    TABLE,
    Result,
    read_results,
    settings_of,
    verdicts,
    with_q_values,
    write_result,
    write_table,
)
from landscape.reproduction.verdict import Row
from landscape.store import Store
from landscape.sweeps import plan_sweep, run_sweep
from landscape.sweeps.analyses import GAP, SHARPNESS, SLICE, run_analyses

ENDED = ("done", "diverged")
_EPISODES = "landscape.analysis.episodes:episodes_cell"
_GENERATION = "landscape.evaluation.run:evaluate_cell"
FOLDER = "reproduction"
"""Of a store: the packed results of what was reproduced in it."""


@dataclass(frozen=True)
class Outcome:
    """How far a call came.

    Attributes:
        result: None before all runs have ended.
        files: what was written.
        errors: of runs and analyses, by run id.
        ended, planned: runs.
        interrupted: by the time limit or Ctrl-C; the same command goes on.
    """

    result: Result | None
    rows: Sequence[Row]
    files: Sequence[Path]
    errors: dict[str, str]
    ended: int
    planned: int
    interrupted: bool
    remarks: Sequence[str] = ()


def reproduce(
    experiment: Experiment,
    scale: str,
    store: str | Path,
    *,
    data_dir: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    max_minutes: float | None = None,
    out: str | Path | None = None,
    formats: Sequence[str] = ("svg", "png", "csv"),
    workers: int | None = None,
    partial: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Run what of an experiment is not done yet, then analyze, draw and judge it.

    Args:
        scale: of the file.
        store: folder of the run store, made if absent.
        data_dir: with one folder a task; None: the hub.
        seeds: in place of the file's.
        max_minutes: stop in order after so long.
        out: folder for the packed result and the figure; default: the store's own.
        workers: processes at a time.
        partial: judge the runs that ended, though others are left.

    Raises:
        UsageError: before anything is trained.
        StoreError: the disk, or a damaged store.
    """
    until = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    experiment.check_data(scale, data_dir)
    cells = _by_id(experiment.cells(scale, data_dir=data_dir, seeds=seeds))
    plan = plan_sweep([cell.config for cell in cells.values()], store)
    engine = TimedEngine(workers, len(plan.cells), until, alone=experiment.alone)
    with contextlib.closing(engine):
        swept = run_sweep(plan, engine=engine, console=console)
        opened = Store.open(store)
        ended = {key: cell for key, cell in cells.items() if opened.get(key).status.state in ENDED}
        errors = dict(swept.errors)
        left = len(ended) < len(cells)
        if not ended or ((swept.interrupted or left) and not partial):
            return Outcome(None, (), (), errors, len(ended), len(cells), swept.interrupted)
        if partial:  # What there is was asked for, however little time that left.
            engine.until = None
        try:
            errors |= _analyze(experiment.analyses_at(scale), opened, ended, engine, console, data_dir)
        except KeyboardInterrupt:
            return Outcome(None, (), (), errors, len(ended), len(cells), True)
    result = _pack(experiment, scale, opened, ended, len(cells))
    folder = Path(out) if out is not None else opened.path / FOLDER
    files, remarks = _draw(experiment, scale, opened, list(ended), folder, formats)
    result = replace(result, figures=tuple(path.name for path in files))
    own = opened.path / FOLDER
    own.mkdir(exist_ok=True)
    files += [write_result(result, place, experiment) for place in dict.fromkeys((folder, own))]
    rows = verdicts(result, experiment)
    # Files of one's own are known while they are run, not afterwards.
    known = [one for one in read_results(own) if one.experiment in names() and one.experiment != experiment.name]
    same = [one for one in read_results(own) if one.experiment == experiment.name]
    table = [row for one in known for row in verdicts(one)] + [row for one in same for row in verdicts(one, experiment)]
    write_table(table, opened.path / TABLE)
    return Outcome(result, rows, files, errors, len(ended), len(cells), swept.interrupted, remarks)


def _by_id(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The cells by their runs' ids, with configs as they will be in the store."""
    from landscape.training.resolve import check, identify, resolve

    found: dict[str, Cell] = {}
    for cell in cells:
        check(cell.config)
        config = resolve(cell.config)
        found.setdefault(identify(config)[0], replace(cell, config=config))
    return found


def _analyze(
    analyses: Analyses,
    store: Store,
    cells: dict[str, Cell],
    engine: TimedEngine,
    console: Console | None,
    data_dir: str | Path | None,
) -> dict[str, str]:
    """Everything that the experiment's rules need; what is known is not measured again."""
    from landscape.analysis.episodes import EpisodeSettings, set_q_values
    from landscape.analysis.spaces import is_balanceable

    place = {run_id: {"store": str(store.path.absolute()), "run_id": run_id} for run_id in cells}
    errors: dict[str, str] = {}

    def ask(
        title: str, function: str, more: Callable[[str], dict[str, Any]], fits: Callable[[RunConfig], bool] = _any
    ) -> None:
        chosen = [key for key in place if key not in errors and fits(cells[key].config)]
        arguments = {run_id: {**place[run_id], **more(run_id)} for run_id in chosen}
        errors.update(run_analyses(title, function, arguments, engine, console).errors)

    # Whether a run has evaluations of both splits is its config's affair, not an error.
    run_analyses("gap", GAP, place, engine, console)
    if analyses.episodes is not None:
        settings = EpisodeSettings(**analyses.episodes.model_dump())
        ask("episodes", _EPISODES, lambda _: {"options": asdict(settings)})
        set_q_values([store.get(run_id) for run_id in cells if run_id not in errors], settings)
    sharp, cut, written = analyses.sharpness, analyses.slice, analyses.generation
    steps: dict[str, list[int]] = {}
    for run_id, cell in cells.items():
        if not (sharp or cut or (written and cell.config.task in written.tasks)):
            continue
        steps[run_id] = _snapshots(store, run_id)
        if not steps[run_id]:
            errors[run_id] = "no snapshots: it was trained by another experiment; give this one a store of its own"
    for space in sharp.spaces if sharp else ():
        values = sharp.model_dump(include={"num_examples", "tol", "max_matvecs"}) if sharp else {}
        chosen = {key: known[-1:] if sharp and sharp.steps == "last" else known for key, known in steps.items()}
        # The balanced coordinates do not exist where B = 0, as at most methods' first step.
        chosen = {key: known[-1:] if space == "balanced" else known for key, known in chosen.items()}
        ask(f"sharpness, {space}", SHARPNESS,
            lambda key, space=space, chosen=chosen, values=values: {
                "steps": chosen[key], "options": {"space": space, **values}},
            is_balanceable if space == "balanced" else _any)  # fmt: skip
    if cut is not None:
        ask("slices", SLICE,
            lambda key: {"steps": steps[key][-1:], "options": {"dims": 1, **cut.model_dump()}})  # fmt: skip
    if written is not None:
        options = {"metric": "gsm8k", "data": _beside(data_dir), **written.model_dump(exclude={"tasks"})}
        ask("GSM8K", _GENERATION, lambda key: {"steps": steps[key][-1:], "options": options},
            lambda config: config.task in written.tasks)  # fmt: skip
    return errors


def _any(_: RunConfig) -> bool:
    return True


def _beside(data_dir: str | Path | None) -> str | None:
    """GSM8K's folder among the data; None where there is none, and a run finds its own or the hub's."""
    place = None if data_dir is None else Path(data_dir).expanduser() / "gsm8k"
    return str(place.absolute()) if place is not None and place.is_dir() else None


def _snapshots(store: Store, run_id: str) -> list[int]:
    """The first and the last captured step."""
    try:
        steps = [int(step) for step in store.get(run_id).snapshots().steps]
    except StoreError:
        return []
    return list(dict.fromkeys((steps[0], steps[-1]))) if steps else []


def _pack(experiment: Experiment, scale: str, store: Store, cells: dict[str, Cell], planned: int) -> Result:
    analyses = experiment.analyses_at(scale)
    runs = {run_id: store.get(run_id) for run_id in cells}
    records = with_q_values([read_record(runs[run_id], cell, analyses) for run_id, cell in cells.items()])
    if experiment.alone:
        from landscape.training.resolve import estimate_record_bytes

        sizes = {cell.variant: estimate_record_bytes(cell.config) // 4 for cell in cells.values()}
        records = [replace(record, parameters=sizes[record.variant]) for record in records]
    # Judged is what is written: numbers of six digits.
    records = [Record.from_plain(record.plain()) for record in records]
    shared, varied = settings_of(cell.config.model_dump(mode="json") for cell in cells.values())
    some = next(iter(runs.values()))
    return Result(
        experiment=experiment.name,
        scale=scale,
        about=experiment.scale(scale).about,
        settings=shared,
        grid=varied,
        environment=some.status.environment,
        planned=planned,
        runs=records,
        data={cells[key].config.task: run.digests["data"] for key, run in runs.items()},
    )


def _draw(
    experiment: Experiment, scale: str, store: Store, run_ids: Sequence[str], folder: Path, formats: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """The figure of these runs alone: the store may hold others."""
    from landscape.figures import FIGURES, load_runs, write_figure

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror}") from error
    chosen = [run for run in load_runs(store).runs if run.run_id in set(run_ids)]
    files: list[Path] = []
    try:
        figures = FIGURES[experiment.figure].build(chosen)
    except StoreError as error:
        return [], [str(error)]
    for number, figure in enumerate(figures, start=1):
        stem = f"{experiment.name}-{scale}" + (f"-{number}" if number > 1 else "")
        for kind in formats:
            files.append(folder / f"{stem}.{kind}")
            write_figure(figure, files[-1])
    return files, []
