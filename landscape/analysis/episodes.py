"""Rebounds along a run, from what it logged while it trained; nothing is evaluated anew.

One row a candidate in ``analysis/episodes.parquet``; a run without one has a single row of kind ``none``. A table holds
one set of rows for each pair of column and adjustment. Rows are kept while the numbers they were made from are the same
(a CRC-32 of them is in every row), so that an interrupted analysis goes on where it stopped and a lengthened run is
tested again.

q-values belong to a set of runs, not to a run: `set_q_values` writes them after the last run, with the size of the set.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscape.analysis.checks import check_counts
from landscape.analysis.tables import Row, read_rows, to_frame, write_rows
from landscape.episodes import Control, Episode, detect_episodes
from landscape.episodes.columns import takes_logarithm
from landscape.episodes.control import adjust
from landscape.episodes.curve import in_logarithms, prepare
from landscape.episodes.detector import VERSION, CurveKind
from landscape.episodes.multiplicity import q_values
from landscape.episodes.rise import largest_rise
from landscape.errors import StoreError, UsageError, unknown
from landscape.store.atomic import read_json

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Run

EPISODES_FILE = "episodes.parquet"
ORIGIN_FILE = "origin.json"
"""Where an imported run came from; others have none."""
ADJUSTMENTS = ("none", "base", "siblings")
LOSSES = ("loss_clean", "loss_perturbed")
"""Columns that an adjustment by the batches' difficulty makes sense for."""
TAIL = 0.05
"""Share of the steps at a run's end over which its training loss is averaged, at least five steps."""
MOST_SIBLINGS = 8
_QUIET = 0.2
"""A sibling's own raw p-value must exceed this: its rebound would leave its mirror image."""

Array = np.ndarray[Any, np.dtype[np.float64]]

TYPES = {
    "column": "string", "adjust": "string", "tested_curve": "string", "points": "int64", "index": "int64",
    "kind": "string", "onset": "float64", "peak": "float64", "recovery": "float64", "amplitude": "float64",
    "amplitude_noise": "float64", "amplitude_relative": "float64", "duration": "float64", "excess_area": "float64",
    "second_descent_gain": "float64", "resolution": "float64", "flags": "string", "p_value": "float64",
    "run_p_value": "float64", "rise": "float64", "rise_area": "float64", "rise_trough": "float64",
    "rise_peak": "float64", "final_eval": "float64", "final_train": "float64", "q_value": "float64",
    "q_value_dependent": "float64", "q_runs": "int64", "seed": "int64", "resamples": "int64", "controls": "string",
    "metrics": "string",
}  # fmt: skip
"""Columns of the table. From ``run_p_value`` on they are the run's and repeat in each of its rows: the smallest p-value
of what was tested (1 if nothing was), the largest rise of the smoothed curve with its area (`landscape.episodes.rise`),
the last eval loss and the mean training loss of the last `TAIL` of the steps; ``q_value`` (Benjamini and Hochberg) and
``q_value_dependent`` (Benjamini and Yekutieli) over ``q_runs`` runs, NaN and 0 until `set_q_values`. ``controls`` are
the ids of the siblings, ``metrics`` a CRC-32 of all numbers that were read and of the detector's version."""


@dataclass(frozen=True)
class EpisodeSettings:
    """What is tested, and how.

    Attributes:
        column: of the step metrics, or a split whose evaluations are tested with their standard errors.
        adjust: ``none``, ``base`` (by the base model's loss on the same batches) or ``siblings`` (by other runs on the
            same data order).
        resamples: of the null, as in `landscape.episodes.detect_episodes`.
        seed: of the resampling.
        logarithm: whether to test the column's logarithm; None: of gradient norms that are all above 0.
    """

    column: str = "loss_clean"
    adjust: str = "none"
    resamples: int = 99
    seed: int = 0
    logarithm: bool | None = None

    def __post_init__(self) -> None:
        check_counts(resamples=self.resamples)
        if self.adjust not in ADJUSTMENTS:
            raise unknown("adjust", self.adjust, ADJUSTMENTS)
        if self.adjust != "none" and self.column not in LOSSES:
            raise UsageError(f"adjust: {self.adjust!r} is for {' and '.join(LOSSES)}, not for column {self.column!r}")
        if self.adjust != "none" and self.logarithm:
            raise UsageError(f"logarithm: difficulty adds to a loss, and so to no logarithm; adjust is {self.adjust!r}")


@dataclass(frozen=True, eq=False)
class LoggedCurve:
    """One column of a run: ``steps``, ``values``, ``learning_rate`` and ``standard_errors`` are (n,)."""

    steps: Array
    values: Array
    learning_rate: Array | None
    standard_errors: Array | None
    epoch_steps: tuple[float, ...]
    resume_steps: tuple[float, ...]
    base: Array | None
    kind: CurveKind = "steps"

    @property
    def warmup_steps(self) -> float:
        """The last step on which the learning rate had not reached its largest value yet; 0 where it started there."""
        if self.learning_rate is None or not np.isfinite(self.learning_rate).any():
            return 0.0
        top = int(np.nanargmax(self.learning_rate))
        return float(self.steps[top - 1]) if top else 0.0


def logged_curve(run: Run, column: str) -> LoggedCurve:
    """A column of the step metrics, or the loss on a split that was evaluated.

    Raises:
        UsageError: the run has no such column or split; names the nearest.
        StoreError: the run's metrics are damaged.
    """
    frame = run.metrics()
    columns = [name for name in frame if name != "step" and np.isfinite(_floats(frame, name)).any()]
    if column in columns:
        frame = frame.loc[_measured(run, frame, column)]
        epoch = np.floor(_floats(frame, "epoch"))
        first = np.flatnonzero(np.diff(epoch) > 0) + 1
        rate = _floats(frame, "learning_rate")
        base = _floats(frame, "loss_base")
        steps = _floats(frame, "step")
        return LoggedCurve(
            steps=steps,
            values=_floats(frame, column),
            learning_rate=rate if np.isfinite(rate).all() else None,
            standard_errors=None,
            epoch_steps=tuple(steps[first].tolist()),
            resume_steps=_resumes(run),
            base=base if np.isfinite(base).any() else None,
        )
    evaluations = run.evaluations()
    splits = sorted(set(evaluations["split"].dropna()))
    if column not in splits:
        raise unknown(f"run {run.id}: column", column, [*columns, *splits])
    kept = evaluations.loc[evaluations["split"] == column]
    errors = _floats(kept, "standard_error")
    return LoggedCurve(
        _floats(kept, "step"), _floats(kept, "loss"), None, errors if np.isfinite(errors).all() else None, (), (), None,
        "evaluation",
    )  # fmt: skip


def _measured(run: Run, frame: pd.DataFrame, column: str) -> NDArray[np.bool_]:
    """Rows in which the column was measured: NaN is a divergence, but also a value that nobody logged."""
    missing = np.isnan(_floats(frame, column))
    if (run.path / ORIGIN_FILE).is_file():
        # Others' logs have values at steps of their own choice; a divergence is the end of one, and its state says so.
        last = int(np.flatnonzero(~missing)[-1])
        return ~missing | ((run.status.state == "diverged") & (np.arange(len(missing)) > last))
    # A loss that was skipped is no divergence: then the differentiated one is finite.
    skipped = np.isfinite(_floats(frame, "loss_perturbed")) if column == "loss_clean" else np.zeros(len(frame), bool)
    return ~(missing & skipped)


def _resumes(run: Run) -> tuple[float, ...]:
    """Where somebody else's training was resumed; ours goes on bit for bit."""
    path = run.path / ORIGIN_FILE
    return tuple(read_json(path).get("resume_steps", ())) if path.is_file() else ()


def analyze_episodes(run: Run, settings: EpisodeSettings | None = None, siblings: Sequence[Run] = ()) -> pd.DataFrame:
    """The candidates of a run with their p-values, also written to ``analysis/episodes.parquet``.

    Args:
        siblings: runs on the same data order, for ``adjust="siblings"``; those that do not reach the run's last step
            are left out.

    Returns:
        Columns as `TYPES`, most significant first.

    Raises:
        UsageError: the run has no such column, or too few points of it.
        StoreError: nothing to adjust by, or damaged files.
    """
    settings = settings or EpisodeSettings()
    curve = logged_curve(run, settings.column)
    control, names = _control(run, curve, settings, siblings)
    finals = {"final_eval": _final_eval(run), "final_train": _final_train(run)}
    arrays = (
        curve.steps, curve.values, curve.learning_rate, curve.standard_errors, curve.epoch_steps, curve.resume_steps,
    )  # fmt: skip
    logarithm = takes_logarithm(settings.column, curve.values, settings.logarithm) and control is None
    how = (VERSION, *([1.0] if curve.kind == "evaluation" else []), *([2.0] if logarithm else []))
    checksum = _checksum(how, *arrays, None if control is None else control.values, tuple(finals.values()))
    identity = {
        "column": settings.column, "adjust": settings.adjust, "seed": settings.seed, "resamples": settings.resamples,
        "controls": names, "metrics": checksum,
    }  # fmt: skip
    path = run.analysis_dir / EPISODES_FILE
    known = [row for row in _read(path) if all(row[key] == value for key, value in identity.items())]
    if not known:
        known = [{**row, **finals, **identity} for row in _tested(curve, control, settings, logarithm)]
        write_rows(path, [*_others(_read(path), settings), *known], TYPES)
    return to_frame(known, TYPES)


def choose_siblings(runs: Sequence[Run], raw: Mapping[str, Sequence[Row]]) -> dict[str, list[Run]]:
    """For each run, others on its data order that show no rebound of their own, those that rise least first.

    Args:
        raw: rows of the unadjusted test by run id; runs without are nobody's sibling.
    """
    orders: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        orders.setdefault(_order(run), []).append(run)
    quiet = {run_id for run_id, rows in raw.items() if rows and rows[0]["run_p_value"] > _QUIET}
    result = {}
    for same in orders.values():
        usable = sorted((run for run in same if run.id in quiet), key=lambda run: (raw[run.id][0]["rise"], run.id))
        for run in same:
            result[run.id] = [other for other in usable if other.id != run.id][:MOST_SIBLINGS]
    return result


def set_q_values(runs: Sequence[Run], settings: EpisodeSettings) -> dict[str, tuple[float, float]]:
    """Write the q-values over all of these runs into their tables; returns both kinds by run id.

    A run whose table has no rows for the settings' column and adjustment is left out.

    Raises:
        StoreError: a damaged table, or the disk refuses.
    """
    tables = {run.id: (run.analysis_dir / EPISODES_FILE, _read(run.analysis_dir / EPISODES_FILE)) for run in runs}
    own = {run_id: [row for row in rows if _same(row, settings)] for run_id, (_, rows) in tables.items()}
    own = {run_id: rows for run_id, rows in own.items() if rows}
    p_values = [rows[0]["run_p_value"] for rows in own.values()]
    pairs = zip(q_values(p_values).tolist(), q_values(p_values, "by").tolist(), strict=True)
    found = dict(zip(own, pairs, strict=True))
    for run_id, (q, dependent) in found.items():
        path, rows = tables[run_id]
        new = {"q_value": q, "q_value_dependent": dependent, "q_runs": len(own)}
        if any(row[key] != value for row in own[run_id] for key, value in new.items()):
            write_rows(path, [*_others(rows, settings), *({**row, **new} for row in own[run_id])], TYPES)
    return found


def episodes_cell(
    store: str, run_id: str, options: dict[str, Any], siblings: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What a worker does for one run: `analyze_episodes` with plain values in and out."""
    from landscape.store import Store

    opened = Store.open(store)
    table = analyze_episodes(opened.get(run_id), EpisodeSettings(**options), [opened.get(one) for one in siblings])
    return table.to_dict("records")


def _tested(curve: LoggedCurve, control: Control | None, settings: EpisodeSettings, logarithm: bool) -> list[Row]:
    found = detect_episodes(
        curve.steps, curve.values, curve.warmup_steps, seed=settings.seed, learning_rate=curve.learning_rate,
        epoch_steps=curve.epoch_steps, resume_steps=curve.resume_steps, standard_errors=curve.standard_errors,
        control=control, resamples=settings.resamples, kind=curve.kind, logarithm=logarithm,
    )  # fmt: skip
    prepared = prepare(curve.steps, curve.values)
    prepared = in_logarithms(prepared) if logarithm else prepared
    values, name = adjust(prepared, control)
    name = "logarithm" if logarithm else name
    rise = largest_rise(prepared.steps, values, curve.warmup_steps)
    # That a loss stopped being finite is a fact and no test: it has no place among p-values.
    tested = [one.p_value for one in found if "non_finite" not in one.flags]
    shared = {
        "tested_curve": name, "points": len(prepared.steps), "run_p_value": min(tested, default=1.0),
        "rise": rise.amplitude, "rise_area": rise.excess_area, "rise_trough": rise.trough, "rise_peak": rise.peak,
        "q_value": math.nan, "q_value_dependent": math.nan, "q_runs": 0,
    }  # fmt: skip
    rows = [_row(one) for one in found] or [_nothing()]
    return [{**row, **shared, "index": index} for index, row in enumerate(rows)]


def _row(one: Episode) -> Row:
    return {**one.as_dict(), "flags": ",".join(one.flags)}


def _nothing() -> Row:
    """The row of a curve without a candidate."""
    floats = [name for name, kind in TYPES.items() if kind == "float64"]
    return {**dict.fromkeys(floats, math.nan), "kind": "none", "p_value": 1.0, "flags": ""}


def _control(
    run: Run, curve: LoggedCurve, settings: EpisodeSettings, siblings: Sequence[Run]
) -> tuple[Control | None, str]:
    """What the curve is adjusted by, and the siblings' ids."""
    if settings.adjust == "none":
        return None, ""
    finite = np.isfinite(curve.values)
    if settings.adjust == "base":
        if curve.base is None or not np.isfinite(curve.base[finite]).all():
            raise StoreError(f"run {run.id}: no loss_base at every step; it was trained with base_loss: false")
        return Control(curve.base, "base"), ""
    rows, names = [], []
    for other in siblings:
        values = _aligned(logged_curve(other, settings.column), curve.steps)
        if np.isfinite(values[finite]).all():
            rows.append(values)
            names.append(other.id)
    if not rows:
        raise StoreError(f"run {run.id}: no other run without a rebound shares its data order; use adjust base or none")
    return Control(np.array(rows), "sibling"), ",".join(names)


def _aligned(other: LoggedCurve, steps: Array) -> Array:
    """The other's values at these steps, NaN where it has none."""
    at = np.clip(np.searchsorted(other.steps, steps), 0, len(other.steps) - 1)
    return np.where(other.steps[at] == steps, other.values[at], np.nan)


def _order(run: Run) -> tuple[Any, ...]:
    """What the batches of a run depend on."""
    config = run.config
    sizes = (config.per_device_train_batch_size, config.gradient_accumulation_steps)
    if None in sizes or config.seed is None:  # somebody else's run, of which this is not known
        return (run.id,)
    batch = sizes[0] * sizes[1]
    seed = config.seed if config.data_seed is None else config.data_seed
    return run.digests.get("data"), config.task, config.train_examples, config.label_noise, batch, seed


def _final_eval(run: Run) -> float:
    frame = run.evaluations()
    losses = _floats(frame.loc[frame["split"] == "eval"], "loss")
    return float(losses[-1]) if len(losses) else math.nan


def _final_train(run: Run) -> float:
    losses = _floats(run.metrics(), "loss_clean")
    losses = losses[np.isfinite(losses)]
    return float(losses[-max(5, math.ceil(TAIL * len(losses))) :].mean()) if len(losses) else math.nan


def _floats(frame: pd.DataFrame, column: str) -> Array:
    return np.asarray(frame[column], dtype=np.float64)


def _checksum(*arrays: Any) -> str:
    """A CRC-32 of the numbers; None counts as no numbers."""
    crc = 0
    for array in arrays:
        data = np.ascontiguousarray(() if array is None else array, dtype=np.float64)
        crc = zlib.crc32(data.tobytes(), zlib.crc32(str(data.shape).encode(), crc))
    return f"{crc:08x}"


def _same(row: Row, settings: EpisodeSettings) -> bool:
    return row["column"] == settings.column and row["adjust"] == settings.adjust


def _others(rows: Sequence[Row], settings: EpisodeSettings) -> list[Row]:
    """Rows of other columns and adjustments."""
    return [row for row in rows if not _same(row, settings)]


def _read(path: Path) -> list[Row]:
    return read_rows(path, TYPES)
