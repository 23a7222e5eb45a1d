"""A training log as named columns over steps, and one of them as a curve that can be tested.

Within a column a step that is logged again after later ones marks a resume: training went back to a checkpoint. The
stretch that was lost is left out, and said. Anything else that is out of order is an error that names the place.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.errors import UsageError, unknown

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEP_NAMES = ("global_step", "step", "_step", "iteration", "iter")
LOSS_NAMES = ("train_loss", "training_loss", "loss_clean")
"""What a training loss is called where no column is called ``loss``."""
_RATE_NAMES = ("learning_rate", "lr")
_ERROR_SUFFIXES = ("_stderr", "_se", "_standard_error")
_ABSENT = frozenset({"", "none", "null", "na", "n/a", "-"})
_REPEATS = 5
"""Steps logged twice in a row with different values that may be resumes; with more, two runs are in one curve."""


@dataclass(frozen=True, eq=False)
class Column:
    """What one quantity was logged as: ``rows`` (n,) into the run's rows, ascending, and ``values`` (n,)."""

    rows: IntArray
    values: FloatArray
    problem: str = ""
    """Why these are no numbers; the values are NaN then."""

    @classmethod
    def of(cls, rows: Sequence[int], cells: Sequence[Any], places: Sequence[int], word: str) -> Column:
        """From cells as a file has them: numbers or their spelling; NaN and inf are values, empty cells are none."""
        logged = [(r, c) for r, c in zip(rows, cells, strict=True) if not _absent(c)]
        at = np.array([r for r, _ in logged], dtype=np.int64)
        try:
            values = np.array([c for _, c in logged], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            values = None
        if values is not None and values.ndim == 1:
            return cls(at, values)
        row, cell = next(((r, c) for r, c in logged if not _is_number(c)), logged[0])
        return cls(at, np.full(len(at), np.nan), f"{str(cell)[:40]!r} at {word} {places[row]} is not a number")


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in _ABSENT)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


@dataclass(frozen=True, eq=False)
class LogCurve:
    """One column of one run, ready to be tested; all arrays (n,), steps strictly increasing."""

    run: str
    column: str
    steps: FloatArray
    values: FloatArray
    learning_rate: FloatArray | None = None
    """At the same steps, interpolated where it was logged at others."""
    standard_errors: FloatArray | None = None
    control: FloatArray | None = None
    epoch_steps: tuple[float, ...] = ()
    resume_steps: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LogCurves:
    """One run of a log.

    ``steps`` (rows,) with NaN where none was logged, ``places`` (rows,) where each row is in its file, counted in
    ``word`` (line, entry, event). ``config`` is what the log says of the run's settings, under the log's own keys.
    """

    name: str
    steps: FloatArray
    places: IntArray
    columns: Mapping[str, Column]
    word: str = "line"
    config: Mapping[str, Any] = field(default_factory=dict)

    def match(self, wanted: str) -> str | None:
        """The column that a name means: itself, in another case, or the last part of ``train/loss``; None without.

        Raises:
            UsageError: it can mean several.
        """
        for name in (wanted, *(LOSS_NAMES if wanted == "loss" else ())):
            found = _matches(self.columns, name)
            if len(found) == 1:
                return found[0]
            if found:
                raise UsageError(f"--column: {wanted!r} can mean {', '.join(found)}; give one of them.")
        return None

    def curve(self, column: str, control: str | None = None) -> LogCurve:
        """One column, which must be there, with what else the run knows about its steps.

        Args:
            control: a column of the same batches' difficulty; it must have a value at every step of the curve.

        Raises:
            UsageError: no numbers, steps out of order, two runs in one column, or a control with gaps.
        """
        steps, values, resumes, notes = self._series(column)
        for other in self.columns.values():
            if other.problem == "":
                resumes = (*resumes, *_last_pass(self.steps[other.rows], other.values).resumes)
        curve = LogCurve(self.name, column, steps, values, resume_steps=tuple(sorted(set(resumes))), notes=notes)
        curve = replace(curve, learning_rate=self._rate(steps), epoch_steps=self._epochs())
        if control is not None:
            curve = replace(curve, control=self._control(control, steps))
        for suffix in _ERROR_SUFFIXES:
            name = f"{column}{suffix}"
            if name in self.columns:
                errors = self._at(name, steps)
                if np.isfinite(errors).all() and (errors >= 0).all():
                    return replace(curve, standard_errors=errors)
                return replace(curve, notes=(*notes, f"{name} is not known at every step and is not used"))
        return curve

    def _series(self, name: str) -> tuple[FloatArray, FloatArray, tuple[float, ...], tuple[str, ...]]:
        """Steps and values of the last pass over each step, steps of resumes, and what was left out."""
        column = self.columns[name]
        if column.problem:
            raise UsageError(f"column {name!r} of {self.name}: {column.problem}.")
        steps = self.steps[column.rows]
        places = self.places[column.rows]
        if not np.isfinite(steps).all():
            at = places[~np.isfinite(steps)][0]
            raise UsageError(f"column {name!r} of {self.name}: no step at {self.word} {at}.")
        done = _last_pass(steps, column.values)
        if done.wrong is not None:
            i, why = done.wrong
            raise UsageError(f"column {name!r} of {self.name}: step {steps[i]:g} at {self.word} {places[i]} {why}.")
        notes = []
        if done.resumes:
            at = ", ".join(f"{step:g}" for step in done.resumes[:4]) + ("…" if len(done.resumes) > 4 else "")
            lost = len(steps) - len(done.kept) - done.equal
            notes.append(
                f"resumed at step {at}: {lost} earlier values of {name} were logged again; the last ones count"
            )
        if done.equal:
            notes.append(f"{done.equal} values of {name} are there twice")
        return steps[done.kept], column.values[done.kept], done.resumes, tuple(notes)

    def _at(self, name: str, wanted: FloatArray) -> FloatArray:
        """A column's values at the given steps, NaN where it has none."""
        steps, values, _, _ = self._series(name)
        if not len(steps):
            return np.full(len(wanted), np.nan)
        index = np.minimum(np.searchsorted(steps, wanted), len(steps) - 1)
        return np.where(steps[index] == wanted, values[index], np.nan)

    def _control(self, wanted: str, steps: FloatArray) -> FloatArray:
        name = self.match(wanted)
        if name is None:
            raise unknown("--control", wanted, self.columns)
        own, _, _, _ = self._series(name)
        missing = ~np.isin(steps, own)
        if missing.any():
            raise UsageError(f"--control: {name!r} has no value at {missing.sum()} steps, first {steps[missing][0]:g}.")
        return self._at(name, steps)

    def _rate(self, steps: FloatArray) -> FloatArray | None:
        """The learning rate at the given steps; None where it was not logged, or not as a sequence of steps."""
        name = next((n for n in self.columns if _last_part(n) in _RATE_NAMES or _last_part(n).startswith("lr-")), None)
        if name is None or self.columns[name].problem:
            return None
        known, rates, finite = self._monotone(name)
        return np.interp(steps, known[finite], rates[finite]) if finite.sum() > 1 else None

    def _epochs(self) -> tuple[float, ...]:
        """Steps at which an epoch begins: where a fractional epoch passes a whole number, or a whole one changes."""
        name = next((n for n in self.columns if _last_part(n) == "epoch"), None)
        if name is None or self.columns[name].problem:
            return ()
        steps, epochs, finite = self._monotone(name)
        steps, epochs = steps[finite], epochs[finite]
        if len(steps) < 3 or (np.diff(epochs) < 0).any():
            return ()
        if (epochs == epochs.round()).all():
            changes = np.flatnonzero(np.diff(epochs)) + 1
            # One row an epoch says nothing of where within the run's steps epochs begin.
            return tuple(steps[changes].tolist()) if len(changes) < len(steps) / 2 else ()
        whole = np.arange(np.floor(epochs[0]) + 1, np.ceil(epochs[-1]))
        return tuple(np.interp(whole, epochs, steps).tolist()) if len(whole) <= len(steps) / 2 else ()

    def _monotone(self, name: str) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        column = self.columns[name]
        steps = self.steps[column.rows]
        done = _last_pass(steps, column.values)
        kept = done.kept if done.wrong is None else np.empty(0, np.int64)
        return steps[kept], column.values[kept], np.isfinite(column.values[kept]) & np.isfinite(steps[kept])


@dataclass(frozen=True, eq=False)
class Log:
    """All runs of a file or folder.

    ``notes`` say what was left out or assumed in reading it; ``files`` were read, ``path`` itself where there are none.
    """

    path: Path
    format: str
    runs: tuple[LogCurves, ...]
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def columns(self) -> list[str]:
        """Names of all runs' columns, in the order of the log."""
        return list(dict.fromkeys(name for run in self.runs for name in run.columns))

    def select(self, column: str, run: str | None = None) -> list[tuple[LogCurves, str]]:
        """The runs that have a column, each with its own name of it.

        Raises:
            UsageError: no such run, no run with such a column, or a name that can mean several.
        """
        if run is not None and run not in [one.name for one in self.runs]:
            raise unknown("--run", run, [one.name for one in self.runs])
        runs = [one for one in self.runs if run in (None, one.name)]
        found = [(one, name) for one in runs if (name := one.match(column)) is not None]
        if not found:
            raise unknown("--column", column, dict.fromkeys(name for one in runs for name in one.columns))
        return found


def is_step(name: str) -> bool:
    """Whether a column is called like a step."""
    return _last_part(name) in STEP_NAMES


def step_name(names: Sequence[str]) -> str | None:
    """The column that counts steps: the first of `STEP_NAMES` that is there; None without."""
    return next((name for wanted in STEP_NAMES for name in names if _last_part(name) == wanted), None)


def _last_part(name: str) -> str:
    return name.strip().lower().replace(" ", "_").rsplit("/", 1)[-1]


def _matches(names: Mapping[str, Column], wanted: str) -> list[str]:
    if wanted in names:
        return [wanted]
    same = [name for name in names if name.lower() == wanted.lower()]
    if same:
        return same
    last = [name for name in names if _last_part(name) == wanted.lower()]
    training = [name for name in last if name.lower().startswith("train")]
    return training if len(training) == 1 else last


@dataclass(frozen=True, eq=False)
class _Pass:
    kept: IntArray
    resumes: tuple[float, ...] = ()
    equal: int = 0
    wrong: tuple[int, str] | None = None
    """Position of the first point that fits nowhere, and why."""


def _last_pass(steps: FloatArray, values: FloatArray) -> _Pass:
    """The points that no later one replaces; a step that comes again after later ones is a resume."""
    if (np.diff(steps) > 0).all():
        return _Pass(np.arange(len(steps)))
    kept: list[int] = []
    keys: list[float] = []
    resumes: list[float] = []
    equal = repeats = 0
    for i, step in enumerate(steps.tolist()):
        if keys and not step > keys[-1]:
            at = bisect.bisect_left(keys, step)
            if at == len(keys) or keys[at] != step:
                why = f"comes after step {keys[-1]:g} and was not logged before: sort the steps, one run at a time"
                return _Pass(np.array(kept), tuple(resumes), equal, (i, why))
            same = at == len(keys) - 1
            if same and (values[kept[at]] == values[i] or np.isnan(values[[kept[at], i]]).all()):
                equal += 1
            else:
                resumes.append(step)
                repeats += same
            if repeats > _REPEATS:
                why = "is there with several values, as others before it: several runs without a column that names them"
                return _Pass(np.array(kept), tuple(resumes), equal, (i, why))
            del kept[at:], keys[at:]
        kept.append(i)
        keys.append(step)
    return _Pass(np.array(kept), tuple(resumes), equal)
