"""What the builders of plots read: one run's settings and tables, without a store behind them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from landscape.config import method_name
from landscape.plots.curves import FloatArray, Trace
from landscape.plots.style import method_order, method_style

if TYPE_CHECKING:
    from landscape.store.slices import SliceFile

AXES = ("method", "rank", "alpha", "learning_rate", "task", "model")
"""The settings that figures facet and label by, in the order in which a label names them."""

REPLICATES = frozenset({"seed", "data_seed"})
"""Settings in which the runs of one cell may differ: averages are taken over them and nothing else."""

PLACES = frozenset({"data_dir", "data_files"})
"""Settings that say where data lies; its digest says what it is."""

NO_EFFECT = frozenset(
    {
        "max_steps", "eval_steps", "eval_examples", "probe_examples", "per_device_eval_batch_size", "clean_loss_every",
        "base_loss", "capture", "save_steps", "report_to",
    }
)  # fmt: skip
"""Settings that change what is watched or how long, not what happens at a step."""


@dataclass(frozen=True, eq=False)
class RunData:
    """One run as plots see it.

    Attributes:
        config: the run's resolved config as plain values.
        metrics: one row an optimizer step (step, loss_clean, loss_perturbed, loss_base...).
        evaluations: one row a step and split (step, split, loss, standard_error...).
        sharpness: eigenvalues along the run, or None (step, index, value, residual, converged, space, split...).
        gap: generalization gap along the run, or None (step, train_loss, eval_loss, gap, standard_error).
        episodes: candidate rebounds with their p-values, or None (columns as `landscape.analysis.episodes.TYPES`).
        slices: of the loss around its snapshots, its own and those that it shares with other runs.
        state: queued, running, done, failed, diverged or interrupted.
        digests: of the data and the model, which stand for where they lie.
        environment: package versions, threads and device that the run recorded.
        peak_memory: most bytes while training, of the process (rss) and of the device's tensors (cuda).
        problems: what could not be read of it, one line each.
    """

    run_id: str
    config: Mapping[str, Any]
    metrics: pd.DataFrame
    evaluations: pd.DataFrame
    sharpness: pd.DataFrame | None = None
    gap: pd.DataFrame | None = None
    episodes: pd.DataFrame | None = None
    slices: Sequence[SliceFile] = ()
    state: str = "done"
    step: int = 0
    max_steps: int = 0
    error: str | None = None
    seconds: float | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    peak_memory: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method, and the adapter below it where it has one of its own: ``mgpo``, ``mgpo-dora``."""
        return method_of(self.config)

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return self.config.get("seed")

    @cached_property
    def cell(self) -> Cell:
        """The settings that the run shares with its replicates over seeds."""
        ignored = REPLICATES | NO_EFFECT | PLACES
        others: dict[str, Any] = {k: v for k, v in self.config.items() if k not in ignored and k not in AXES}
        others.update({f"{key} digest": digest for key, digest in self.digests.items()})
        axes: dict[str, Any] = {axis: self.config.get(axis) for axis in AXES} | {"method": self.method}
        if axes["method"] == "full":
            axes["rank"] = axes["alpha"] = None
        return Cell(**axes, others=json.dumps(others, sort_keys=True, default=str))


def method_of(config: Mapping[str, Any]) -> str:
    """The name of a config's method over its adapter, as run ids have it."""
    return method_name(str(config.get("method")), config.get("adapter"))


@dataclass(frozen=True)
class Cell:
    """All settings of a run but its seeds; ``others`` is the canonical JSON of those that figures do not facet by."""

    method: str
    rank: int | None
    alpha: float | None
    learning_rate: float | None
    task: str
    model: str
    others: str = "{}"

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Method in its fixed order, then rank, alpha and learning rate ascending."""
        return (
            *method_order(self.method),
            self.rank or 0,
            self.alpha or 0.0,
            self.learning_rate or 0.0,
            str(self.task),
            str(self.model),
            self.others,
        )


def group(runs: Iterable[RunData]) -> dict[Cell, list[RunData]]:
    """Runs by cell, cells in their sort order and replicates by seed."""
    cells: dict[Cell, list[RunData]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    return {
        cell: sorted(cells[cell], key=lambda run: (run.seed or 0, run.run_id))
        for cell in sorted(cells, key=lambda cell: cell.sort_key)
    }


def distinct(cells: Iterable[Cell], axis: str) -> list[Any]:
    """The values that an axis takes, sorted; None (no rank: full fine-tuning) is left out."""
    values = {getattr(cell, axis) for cell in cells} - {None}
    return sorted(values, key=method_order) if axis == "method" else sorted(values)


def spell(axis: str, value: Any) -> str:
    """One setting in words for titles and legends: ``r = 64``, ``lr = 5e-4``, ``LoRA-MGPO``."""
    if axis == "method":
        return method_style(str(value)).label
    if axis == "rank":
        return "no rank" if value is None else f"r = {value}"
    if axis == "alpha":
        return "" if value is None else f"α = {value:g}"
    if axis == "learning_rate":
        return f"lr = {format_rate(value)}"
    return str(value)


def format_rate(value: float | None) -> str:
    """``0.0005`` → ``5e-4``: how papers and configs write learning rates; a dash for an imported run's unknown one."""
    if value is None:
        return "–"
    if value >= 0.1:
        return f"{value:g}"
    text = f"{value:.3e}"
    mantissa, exponent = text.split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def cell_labels(cells: Sequence[Cell], titled: Sequence[str] = ()) -> dict[Cell, str]:
    """A legend label for each cell: its method and every setting that tells cells apart.

    Args:
        titled: axes that the panels' titles already name.
    """
    varying = [axis for axis in AXES if axis != "method" and axis not in titled and len(distinct(cells, axis)) > 1]
    # An alpha that follows from the rank (a rule such as r) says nothing more than the rank.
    if "alpha" in varying and len({(cell.rank, cell.alpha) for cell in cells}) == len({cell.rank for cell in cells}):
        varying.remove("alpha")
    labels = {}
    for cell in cells:
        parts = [spell("method", cell.method)]
        parts += [spell(axis, getattr(cell, axis)) for axis in varying if getattr(cell, axis) is not None]
        labels[cell] = " ".join(parts[:1]) + ("  " + ", ".join(parts[1:]) if parts[1:] else "")
    return _add_other_settings(labels)


def _add_other_settings(labels: dict[Cell, str]) -> dict[Cell, str]:
    """Cells that still share a label get the settings in which they differ; whatever else differs gets a number."""
    result = dict(labels)
    for label in set(labels.values()):
        same = [cell for cell in labels if labels[cell] == label]
        if len({(cell.method, cell.others) for cell in same}) < 2:
            continue
        settings = [json.loads(cell.others) for cell in same]
        keys = sorted({key for setting in settings for key in setting})
        differing = [key for key in keys if len({json.dumps(s.get(key), sort_keys=True) for s in settings}) > 1]
        for cell, setting in zip(same, settings, strict=True):
            result[cell] = f"{label}  " + ", ".join(f"{key}={_brief(setting.get(key))}" for key in differing)
    return result


def _brief(value: Any) -> str:
    text = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else str(value)
    text = text.replace('"', "")
    return text if len(text) <= 48 else text[:45] + "..."


def step_series(run: RunData, column: str, minus: str | None = None) -> Trace:
    """One column of the step metrics, or its difference to another, where finite; empty where a column is absent."""
    frame = run.metrics
    if any(name not in frame for name in ("step", column, minus or column)):
        return empty_trace(run)
    values = floats(frame, column)
    if minus is not None:
        with np.errstate(invalid="ignore"):  # inf - inf of a run that blew up is NaN, which is left out
            values = values - floats(frame, minus)
    return finite_trace(floats(frame, "step"), values, run_label(run))


def split_series(run: RunData, split: str, column: str = "loss") -> Trace:
    """One column of the evaluations on one split, finite values only; empty where there are none."""
    frame = run.evaluations
    if any(name not in frame for name in ("step", "split", column)):
        return empty_trace(run)
    kept = (frame["split"] == split).to_numpy()
    return finite_trace(floats(frame, "step")[kept], floats(frame, column)[kept], run_label(run))


def finite_trace(x: FloatArray, y: FloatArray, label: str = "") -> Trace:
    """Finite points sorted by ``x``; of several at one ``x`` the last."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    last = np.append(x[1:] != x[:-1], True) if len(x) else np.array([], dtype=bool)
    return Trace(x[last], y[last], label)


def empty_trace(run: RunData) -> Trace:
    """What a run without the numbers asked for contributes."""
    return Trace(np.array([]), np.array([]), run_label(run))


def run_label(run: RunData) -> str:
    """How a single run is named in hover text and tables."""
    return f"seed {run.seed}" if run.seed is not None else run.run_id


def floats(frame: pd.DataFrame, column: str) -> FloatArray:
    """A column as float64 (rows,), NaN for whatever is no number."""
    return np.asarray(pd.to_numeric(frame[column], errors="coerce"), dtype=float)
