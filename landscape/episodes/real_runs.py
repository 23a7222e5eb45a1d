"""Real runs with labels that no detector had a part in: what the other seeds of a run's cell do, on average.

The seeds of a cell differ in their batches, their adapter's start and nothing else. So the mean curve of the *other*
seeds says what the run's curve is apart from its own noise, as far as seeds agree, and it has not seen that noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from landscape.episodes.benchmark import Outcome, clopper_pearson, matches, ours
from landscape.episodes.curve import Array
from landscape.episodes.rise import largest_rise
from landscape.episodes.rivals import Rival, installed
from landscape.episodes.synthetic import Interval, Recipe, SyntheticCurve
from landscape.errors import UsageError

REBOUND, NONE = 0.3, 0.1
"""Rises of the others' mean, in the loss's unit: at least so much is a rebound, at most so much is none."""
_AROUND = 2
"""Points on either side of trough and peak that are averaged when every other seed must rise."""
_BACK = 0.2
"""Share of the rise below which the mean is back."""
_SCALE = 1000
"""The file's numbers are losses times this, rounded."""

Label = Literal["rebound", "none", "unclear"]


@dataclass(frozen=True, eq=False)
class RealRuns:
    """Step losses of cells of several seeds each."""

    cells: tuple[str, ...]
    """Of each run."""
    losses: Array
    """(runs, steps)."""
    warmup_steps: int


@dataclass(frozen=True, eq=False)
class Labeled:
    """A run, and what the other seeds of its cell say of it."""

    curve: SyntheticCurve
    label: Label
    rise: float
    """Of the others' mean."""


def load_real_runs(path: str | Path) -> RealRuns:
    """Read a CSV: comments, the runs' cells, then a row of losses in thousandths a step.

    Raises:
        UsageError: no such file, or not in that form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        comments = [line for line in lines if line.startswith("#")]
        warmup = int(next(line for line in comments if line.startswith("# warmup_steps:")).partition(":")[2])
        head, *rows = lines[len(comments) :]
        table = np.array([[int(cell) for cell in row.split(",")] for row in rows], dtype=np.float64)
        cells = tuple(head.split(","))
        if table.shape[1] != len(cells):
            raise ValueError(f"{table.shape[1]} columns for {len(cells)} runs")
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise UsageError(f"{path}: not a file of real runs ({error}).") from None
    return RealRuns(cells, table.T / _SCALE, warmup)


def save_real_runs(path: str | Path, runs: RealRuns, about: Sequence[str] = ()) -> None:
    """Write what `load_real_runs` reads."""
    lines = [f"# {line}" for line in (*about, f"warmup_steps: {runs.warmup_steps}")]
    rows = np.rint(_SCALE * runs.losses.T).astype(int)
    lines += [",".join(runs.cells), *(",".join(map(str, row)) for row in rows.tolist())]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def labeled(runs: RealRuns) -> list[Labeled]:
    """Every run with its label.

    A rebound: the mean of the cell's other seeds rises by `REBOUND` or more after the warm-up, and each of them is
    higher around that peak than around that trough. None: the mean rises by `NONE` at most. Anything else is unclear.
    """
    cells = np.array(runs.cells)
    steps = np.arange(1, runs.losses.shape[1] + 1, dtype=np.float64)
    result = []
    for k, values in enumerate(runs.losses):
        others = runs.losses[(cells == cells[k]) & (np.arange(len(cells)) != k)]
        if len(others) < 2:
            raise UsageError(f"cell {cells[k]}: {len(others) + 1} seeds; 3 or more are needed.")
        mean = others.mean(axis=0)
        rise = largest_rise(steps, mean, runs.warmup_steps)
        trough, peak = int(rise.trough) - 1, int(rise.peak) - 1
        low, high = (others[:, max(at - _AROUND, 0) : at + _AROUND + 1].mean(axis=1) for at in (trough, peak))
        label: Label = "none" if rise.amplitude <= NONE else "unclear"
        truth: tuple[Interval, ...] = ()
        if rise.amplitude >= REBOUND and (high > low).all():
            label, truth = "rebound", (_interval(mean, trough, peak),)
        curve = SyntheticCurve(Recipe(len(steps)), steps, values, truth, warmup_steps=runs.warmup_steps)
        result.append(Labeled(curve, label, rise.amplitude))
    return result


def _interval(mean: Array, trough: int, peak: int) -> Interval:
    """From the trough to where the mean, over five steps, is back; else to the end."""
    width = 2 * _AROUND + 1
    smooth = np.convolve(mean, np.ones(width) / width, mode="same")
    back = np.flatnonzero(smooth[peak:-_AROUND] <= smooth[trough] + _BACK * (smooth[peak] - smooth[trough]))
    end = peak + int(back[0]) if len(back) else len(mean) - 1
    return Interval(trough + 1.0, peak + 1.0, end + 1.0)


def real_table(runs: RealRuns, alpha: float) -> list[dict[str, Any]]:
    """One row a detector: what it says of runs with a label, at p ≤ alpha or its documented threshold.

    First with the warm-up known, to detectors and labels; then known to neither. `auc` needs no threshold: the chance
    that a run with a rebound gets a larger strength than one without.
    """
    return [row for known in (runs, replace(runs, warmup_steps=0)) for row in _rows(known, alpha)]


def _rows(runs: RealRuns, alpha: float) -> list[dict[str, Any]]:
    known = [one for one in labeled(runs) if one.label != "unclear"]
    with_, without = ([one for one in known if one.label == label] for label in ("rebound", "none"))
    rows = []
    for name, rival in {"landscape": Rival(ours, 1 - alpha), **installed()}.items():
        found = {label: [_outcome(rival, one) for one in group] for label, group in (("r", with_), ("n", without))}
        right = sum(o.strength >= rival.documented for o in found["r"])
        wrong = sum(o.strength >= rival.documented for o in found["n"])
        placed = sum(
            bool(matches(o.truth, [d for d in o.found if d.strength >= rival.documented], 0.3)) for o in found["r"]
        )
        strengths = [np.array([o.strength for o in group]) for group in found.values()]
        larger = (strengths[0][:, None] > strengths[1]) + 0.5 * (strengths[0][:, None] == strengths[1])
        low, high = clopper_pearson(wrong, len(without))
        rows.append(
            {
                "detector": name, "warmup_steps": runs.warmup_steps, "with": len(with_), "without": len(without),
                "unclear": len(runs.cells) - len(known), "found": right, "placed": placed, "false": wrong,
                "recall": right / max(len(with_), 1), "precision": right / max(right + wrong, 1),
                "rate": wrong / max(len(without), 1), "low": low, "upper": high, "auc": float(larger.mean()),
            }
        )  # fmt: skip
    return rows


def _outcome(rival: Rival, one: Labeled) -> Outcome:
    return Outcome(one.curve.recipe, one.curve.episodes, tuple(rival.detector(one.curve)), 0.0)
