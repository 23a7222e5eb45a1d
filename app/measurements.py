"""What a page can ask to have measured at snapshots: the command line's analyses, and which answers there are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from app.index import RunRow
from app.jobs import Progress
from landscape.analysis.tables import read_rows
from landscape.errors import LandscapeError
from landscape.store import Run
from landscape.sweeps.analyses import spread

ALONG_THE_RUN = 8
"""Snapshots that an analysis of the whole run takes, as the command does."""


@dataclass(frozen=True)
class Measurement:
    """One analysis as a button offers it; ``options`` are the command's, by the names that Python has for them."""

    title: str
    analysis: str
    help: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_moments: bool = False
    along_runs: bool = True
    """Whether its answers are rows of one table, which its progress is counted in."""

    def arguments(self, store: Path, run_id: str, steps: Sequence[int]) -> list[str]:
        """Of ``landscape``, for some snapshots of one run."""
        flags = [part for key, value in self.options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        listed = ",".join(map(str, steps))
        return ["analyze", self.analysis, str(store), "--where", f"id == '{run_id}'", "--steps", listed, *flags]

    def progress(self, run: Run, steps: Sequence[int]) -> Progress | None:
        """How many of the snapshots have got an answer; None where nothing says so before the end."""
        if not self.along_runs:
            return None
        path = run.analysis_dir / f"{self.analysis}.parquet"
        before = _answers(path)

        def count() -> tuple[int, int]:
            new = {step for (step, space), answer in _answers(path).items() if answer != before.get((step, space))}
            return len(new & set(steps)), len(steps)

        return count


def _answers(path: Path) -> dict[tuple[int, str], float]:
    """What a table holds, as far as tells one answer from another: the seconds that each took, by step and space.

    Which of them the question would take for its own is the command's to say; asking it here would load PyTorch into
    the server.
    """
    with contextlib.suppress(LandscapeError):
        return {(row["step"], row["space"]): row["seconds"] for row in read_rows(path, ("step", "space", "seconds"))}
    return {}


MEASUREMENTS: dict[str, Measurement] = {
    "sharpness": Measurement(
        "Sharpness", "sharpness", "Largest eigenvalue λmax of the loss's Hessian in the adapter's coordinates: how "
        "steeply the loss curves in its sharpest direction.",
    ),
    "balanced": Measurement(
        "Sharpness, balanced", "sharpness", "λmax after balancing A against B: does not change when A grows and B "
        "shrinks without changing the model.", {"space": "balanced"},
    ),
    "merged": Measurement(
        "Sharpness, merged weights", "sharpness", "λmax with respect to the full weight matrices W + sBA.",
        {"space": "merged"},
    ),
    "preconditioned": Measurement(
        "Distance from instability", "sharpness", "Sharpness as Adam sees it, against the threshold above which Adam "
        "would be unstable on a quadratic loss. Needs a run that captured Adam's moments.",
        {"space": "preconditioned"}, needs_moments=True,
    ),
    "trace": Measurement("Trace", "trace", "Sum of all eigenvalues: curvature averaged over directions."),
    "density": Measurement("Spectral density", "density", "How all eigenvalues are distributed."),
    "layers": Measurement("Sharpness by layer", "layers", "λmax of every layer's own block."),
    "slice1d": Measurement(
        "Slice along a line", "slice1d", "The loss along a random direction through the snapshot.", along_runs=False
    ),
    "slice2d": Measurement(
        "Slice on a plane", "slice2d", "The loss on a plane of two random directions through the snapshot.",
        along_runs=False,
    ),
}  # fmt: skip


def steps_for(measurement: Measurement, captured: Sequence[int], step: int, whole: bool) -> list[int]:
    """Snapshots to measure: the one at the step, or some along the run."""
    if whole and measurement.along_runs:
        return spread(captured, ALONG_THE_RUN)
    return [step]


def nearest_step(steps: Sequence[int], step: int) -> int | None:
    """The step with a snapshot nearest to this one; None without any."""
    return min(steps, key=lambda other: (abs(other - step), other), default=None)


def neighbors(steps: Sequence[int], step: int) -> tuple[int | None, int | None]:
    """The last step with a snapshot before this one, and the first after."""
    return max((s for s in steps if s < step), default=None), min((s for s in steps if s > step), default=None)


@dataclass(frozen=True)
class Number:
    """One number of a snapshot: what it is with its unit, its value in words, and where it comes from."""

    name: str
    value: str
    about: str = ""


def numbers_at(row: RunRow, step: int, metrics: pd.DataFrame, evaluations: pd.DataFrame) -> list[Number]:
    """What was logged at a step: its training numbers, and the evaluations at it or the last before."""
    found = []
    lines = metrics.loc[metrics["step"] == step] if "step" in metrics else metrics
    for column in lines.columns if len(lines) else ():
        value = lines[column].iloc[0]
        if column != "step" and not pd.isna(value):
            found.append(Number(_NAMES.get(str(column), str(column)), spell(value)))
    if "step" in evaluations and len(evaluations):
        before = evaluations.loc[evaluations["step"] <= step]
        for split in dict.fromkeys(before["split"]):
            last = before.loc[before["split"] == split].iloc[-1]
            error = last.get("standard_error")
            value = spell(last["loss"]) + ("" if pd.isna(error) else f" ± {error:.2g}")
            found.append(Number(f"{split} loss after step {int(last['step'])} (± se), nats/token", value))
    return found


_NAMES = {
    "loss_clean": "training loss, clean, nats/token", "loss_perturbed": "training loss, perturbed, nats/token",
    "loss_base": "base model's loss on the batch, nats/token", "grad_norm": "gradient norm",
    "perturbation_norm": "perturbation norm", "adapter_norm": "adapter norm", "seconds": "time of the step, s",
    "learning_rate": "learning rate", "tokens": "tokens seen", "epoch": "epoch",
}  # fmt: skip


def measured_at(step: int, table: Callable[[str], pd.DataFrame | None]) -> list[Number]:
    """What was analyzed at a step, from the run's tables by name."""
    found = []
    for name, words in (("sharpness", "λmax"), ("trace", "trace")):
        for item in _at(table(name), step):
            if item.get("index", 0) == 0:
                error = f" ± {item['standard_error']:.2g}" if name == "trace" else ""
                doubt = "" if item.get("converged", True) else ", did not converge"
                edge = item.get("threshold")
                limit = f"; stable below {edge:g}" if edge and np.isfinite(edge) else ""
                about = f"{item['space']} space, {item['split']} split, {item['num_examples']} examples{limit}{doubt}"
                found.append(Number(words, f"{item['value']:.4g}{error}", about))
    for item in _at(table("density"), step):
        extent = f"{item['smallest']:.3g} to {item['largest']:.3g}"
        found.append(Number("eigenvalues", extent, f"{item['space']} space, spectral density"))
    layers = _at(table("layers"), step)
    if layers:
        top = max(layers, key=lambda item: item["value"])
        found.append(Number("sharpest layer", f"{top['value']:.4g}", f"{top['layer']}, {top['space']} space"))
    for item in _at(table("gap"), step):
        value = f"{item['gap']:.4g} ± {item['standard_error']:.2g}"
        found.append(Number("generalization gap", value, "eval − probe loss, nats/token"))
    return found


def _at(table: pd.DataFrame | None, step: int) -> list[dict[str, Any]]:
    if table is None or "step" not in table:
        return []
    rows = table.loc[table["step"] == step].to_dict("records")
    key = "gap" if "gap" in table else "value" if "value" in table else "largest"
    plain = [{str(name): value for name, value in row.items()} for row in rows]
    return [row for row in plain if row.get(key) is not None and np.isfinite(row[key])]


def spell(value: Any) -> str:
    """A number to five digits, or the text itself."""
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)
