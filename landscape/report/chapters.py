"""The chapters of a report: one a model and task, and the figures that each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.plots import (
    CurveSet,
    Drawing,
    RunData,
    SurfaceSet,
    evaluation_curves,
    gap_curves,
    learning_rate_curves,
    line_figures,
    loss_curves,
    sharpness_curves,
    surface_figures,
)
from landscape.plots.data import distinct, format_rate, group
from landscape.report.figure import ReportFigure
from landscape.report.flatness import FlatnessTable, flatness_chapter
from landscape.report.tables import glance_table

if TYPE_CHECKING:
    import pandas as pd

MOST_SLICES = 8
"""Pictures of slices in a chapter."""


@dataclass(frozen=True)
class Experiment:
    """The pages of one model on one task."""

    id: str
    title: str
    glance: dict[str, Any]
    figures: dict[str, tuple[ReportFigure, ...]]
    flatness: FlatnessTable | None


def experiments(runs: Sequence[RunData], flatness: pd.DataFrame | None = None) -> list[Experiment]:
    """One chapter a model and task, in the order of their names."""
    settings = sorted({(str(run.cell.model), str(run.cell.task)) for run in runs})
    chapters = []
    for number, (model, task) in enumerate(settings, start=1):
        members = [run for run in runs if (str(run.cell.model), str(run.cell.task)) == (model, task)]
        figures = {
            kind: tuple(
                ReportFigure.of(f"{kind}-{number}-{index}", result, about)
                for index, (result, about) in enumerate(make(members), start=1)
                if isinstance(result, SurfaceSet) or any(panel.curves for panel in result.panels)
            )
            for kind, make in CHAPTER.items()
        }
        name, table = f"{model} on {task}", flatness_chapter(flatness, members)
        chapters.append(Experiment(f"experiment-{number}", name, glance_table(members), figures, table))
    return chapters


def _rates(runs: Sequence[RunData]) -> list[tuple[CurveSet, str]]:
    if len({run.cell.learning_rate for run in runs if len(run.evaluations)} - {None}) < 2:
        return []
    about = (
        "A difference at one learning rate can be a difference of best learning rates: compare each method's lowest "
        "point as well as the points above one rate."
    )
    return [(learning_rate_curves(runs), about)]


def _training(runs: Sequence[RunData]) -> list[tuple[CurveSet, str]]:
    facet = _facet(run for run in runs if len(run.metrics))
    made = [
        (
            loss_curves(runs, facet=facet, wrap=3, title="Training loss at the unperturbed weights"),
            "The loss of each step's batch before its update, measured without the method's perturbation: the only "
            "training loss on which methods can be compared.",
        ),
        (
            loss_curves(runs, facet=facet, wrap=3, minus="loss_base", title="Training loss relative to the base model"),
            "The same, minus the untouched base model's loss on the same batch: the noise of hard and easy batches "
            "cancels as far as both models find the same ones hard, most of all while the loss is near the base's.",
        ),
    ]
    perturbed = [run for run in runs if _is_perturbed(run)]
    if perturbed:
        result = loss_curves(
            perturbed, facet=facet, wrap=3, column="loss_perturbed", minus="loss_clean", title="What perturbation adds"
        )
        made.append((result, "Loss at the perturbed minus loss at the unperturbed weights, on the same batch."))
    return made


def _is_perturbed(run: RunData) -> bool:
    frame = run.metrics
    return "perturbation_norm" in frame and bool((frame["perturbation_norm"] > 0).any())


def _evaluation(runs: Sequence[RunData]) -> list[tuple[CurveSet, str]]:
    facet = _facet(run for run in runs if len(run.evaluations))
    return [
        (
            evaluation_curves(runs, splits=["eval"], facet=facet, wrap=3, title="Loss on held-out examples"),
            "The eval split, in evaluation mode, always the same examples.",
        ),
        (
            gap_curves(runs, facet=facet, wrap=3),
            "Loss on held-out examples (eval) minus loss on a fixed subset of the training examples (probe), both in "
            "evaluation mode. Above zero the model does worse on what it has not seen.",
        ),
    ]


def _sharpness(runs: Sequence[RunData]) -> list[tuple[CurveSet, str]]:
    about = (
        "The largest eigenvalue of the loss's Hessian on snapshots of the run, under the training loss on the same "
        "steps. It depends on the space in which it is measured: in the adapter's own coordinates it changes when A "
        "grows and B shrinks, although the model does not."
    )
    made = []
    measured = [run for run in runs if run.sharpness is not None]
    for rate in distinct(group(measured), "learning_rate"):
        result = sharpness_curves([run for run in measured if run.cell.learning_rate == rate], facet="rank")
        title = f"Sharpness along training, lr = {format_rate(rate)}"
        made.append((CurveSet(**{**vars(result), "title": title}), about))
        about = ""
    return made


def _slices(runs: Sequence[RunData]) -> list[tuple[Drawing, str]]:
    made: list[tuple[Drawing, str]] = []
    about = (
        "The loss on a plane through the weights: two directions of many thousands. Where a run's path is drawn, its "
        "own loss stands beside the contours, which it lies off."
    )
    for result in surface_figures(runs):
        made.append((result, about))
        about = ""
    about = "The loss along lines through the weights. Where several directions were drawn, the band is their spread."
    for result in line_figures(runs):
        made.append((result, about))
        about = ""
    if len(made) > MOST_SLICES:
        last, words = made[MOST_SLICES - 1]
        rest = len(made) - MOST_SLICES
        note = f"{rest} more of these pictures are left out here; landscape figures --figure slice1d,slice2d draws all."
        made[MOST_SLICES - 1] = (last, f"{words} {note}".strip())
    return made[:MOST_SLICES]


CHAPTER: dict[str, Callable[[Sequence[RunData]], Sequence[tuple[Drawing, str]]]] = {
    "rates": _rates,
    "training": _training,
    "evaluation": _evaluation,
    "sharpness": _sharpness,
    "slices": _slices,
}


def _facet(runs: Iterable[RunData]) -> str | tuple[str, str] | None:
    """Learning rates down and ranks across, as far as there are several."""
    cells = group(runs)
    several = [axis for axis in ("learning_rate", "rank") if len(distinct(cells, axis)) > 1]
    if len(several) == 2:
        return (several[0], several[1])
    return several[0] if several else None
