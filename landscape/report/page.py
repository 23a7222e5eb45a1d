"""A store as one HTML file that opens offline, can be sent to somebody, and says what every number in it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from landscape import __version__
from landscape.errors import StoreError
from landscape.figures import FIGURES, load_runs
from landscape.plots import (
    CurveSet,
    RunData,
    color_map,
    evaluation_curves,
    gap_curves,
    learning_rate_curves,
    loss_curves,
    sharpness_curves,
    to_plotly,
)
from landscape.plots.data import distinct, format_rate, group
from landscape.report.tables import glance_table, run_table

if TYPE_CHECKING:
    from landscape.store import Store

TEMPLATES = Path(__file__).parent / "template"

PANEL_WIDTH = 250
"""Pixels below which a panel is scrolled to rather than squeezed."""


@dataclass(frozen=True)
class ReportFigure:
    """One interactive figure with the words around it; ``data`` and ``colors`` are JSON that is safe inside HTML."""

    id: str
    title: str
    source: str
    about: str
    chosen: str
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    data: Markup
    colors: Markup
    width: int
    height: int
    loggable: bool

    @classmethod
    def of(cls, name: str, result: CurveSet, about: str = "", source: str = "") -> ReportFigure:
        """A figure without its own heading, which the page prints."""
        figure = to_plotly(result, heading=False)
        return cls(
            id=name,
            title=result.title,
            source=source,
            about=about,
            chosen=result.chosen,
            notes=result.notes,
            missing=result.missing,
            data=embedded(str(figure.to_json())),
            colors=embedded(json.dumps(color_map(figure))),
            width=PANEL_WIDTH * result.columns + 90,
            height=int(figure.layout.height),
            loggable=_all_positive(result) and not any(panel.inset or panel.log_y for panel in result.panels),
        )


@dataclass(frozen=True)
class Experiment:
    """The pages of one model on one task."""

    id: str
    title: str
    glance: dict[str, Any]
    figures: dict[str, tuple[ReportFigure, ...]]


def write_report(
    store: Store | str | Path, path: str | Path, title: str = "Loss landscape report", where: str | None = None
) -> Path:
    """Write the report of a store, atomically.

    Args:
        path: of the HTML file.
        where: which runs, such as ``rank>=64 and lr==5e-4``; default: all.

    Raises:
        UsageError: a bad ``where``, or one that no run matches.
        StoreError: no store there, or the disk refuses.
    """
    from landscape.store import Store
    from landscape.store.atomic import write_bytes

    store = store if isinstance(store, Store) else Store.open(store)
    path = Path(path)
    loaded = load_runs(store, where)
    page = render_page(
        loaded.runs, title=title, name=store.path.absolute().name, where=where, unreadable=loaded.unreadable
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {path.parent}: {error.strerror}") from error
    write_bytes(path, page.encode("utf-8"))
    return path


def render_page(
    runs: Sequence[RunData], *, title: str, name: str, where: str | None = None, unreadable: Sequence[str] = ()
) -> str:
    """The page's HTML. Every string of the store is escaped: by Jinja in the page, by the renderer in figures.

    Args:
        name: of the store.
        unreadable: one line a run that could not be read, for the page to name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    papers, unsupported = paper_figures(runs)
    return templates.get_template("report.html.j2").render(
        title=title,
        store=name,
        where=where,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=facts(runs),
        scale=scale(runs),
        states=Counter(run.state for run in runs),
        papers=papers,
        unsupported=unsupported,
        experiments=experiments(runs),
        runs=run_table(runs),
        unreadable=unreadable,
        has_sharpness=any(run.sharpness is not None for run in runs),
        environment=environment(runs),
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def embedded(text: str) -> Markup:
    """JSON that no string in it can break out of: inside a script element only ``<`` could end it."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _all_positive(result: CurveSet) -> bool:
    """Whether a logarithmic axis could show every line of the figure."""
    return all(bool((curve.y[np.isfinite(curve.y)] > 0).all()) for curve in result.curves())


def paper_figures(runs: Sequence[RunData]) -> tuple[list[ReportFigure], list[tuple[str, str]]]:
    """The papers' figures that the runs support, and name and reason of those that they do not."""
    figures, unsupported = [], []
    for name, script in FIGURES.items():
        try:
            figures.append(ReportFigure.of(f"paper-{name}", script.build(runs), script.about, script.source))
        except StoreError as error:
            unsupported.append((f"{script.source}: {script.title}", str(error)))
    return figures, unsupported


def experiments(runs: Sequence[RunData]) -> list[Experiment]:
    """One chapter a model and task, in the order of their names."""
    settings = sorted({(str(run.cell.model), str(run.cell.task)) for run in runs})
    chapters = []
    for number, (model, task) in enumerate(settings, start=1):
        members = [run for run in runs if (str(run.cell.model), str(run.cell.task)) == (model, task)]
        figures = {
            kind: tuple(
                ReportFigure.of(f"{kind}-{number}-{index}", result, about)
                for index, (result, about) in enumerate(make(members), start=1)
                if any(panel.curves for panel in result.panels)
            )
            for kind, make in CHAPTER.items()
        }
        chapters.append(Experiment(f"experiment-{number}", f"{model} on {task}", glance_table(members), figures))
    return chapters


def _rates(runs: Sequence[RunData]) -> list[tuple[CurveSet, str]]:
    if len({run.cell.learning_rate for run in runs if len(run.evaluations)}) < 2:
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


CHAPTER: dict[str, Callable[[Sequence[RunData]], list[tuple[CurveSet, str]]]] = {
    "rates": _rates,
    "training": _training,
    "evaluation": _evaluation,
    "sharpness": _sharpness,
}


def _facet(runs: Iterable[RunData]) -> str | tuple[str, str] | None:
    """Learning rates down and ranks across, as far as there are several."""
    cells = group(runs)
    several = [axis for axis in ("learning_rate", "rank") if len(distinct(cells, axis)) > 1]
    if len(several) == 2:
        return (several[0], several[1])
    return several[0] if several else None


def facts(runs: Sequence[RunData]) -> list[tuple[str, str]]:
    """What was run, in a handful of labeled numbers."""
    cells = list(group(runs))
    steps = sum(run.step for run in runs)
    seconds = sum(run.seconds or 0 for run in runs)
    return [
        ("runs", str(len(runs))),
        ("settings", str(len(cells))),
        ("methods", str(len(distinct(cells, "method")))),
        ("ranks", _listed(map(str, distinct(cells, "rank")))),
        ("learning rates", _listed(format_rate(rate) for rate in distinct(cells, "learning_rate"))),
        ("seeds", _listed(sorted({str(run.seed) for run in runs}, key=lambda text: (len(text), text)))),
        ("optimizer steps", f"{steps:,}".replace(",", "\u202f")),
        ("time in steps", duration(seconds)),
    ]


def scale(runs: Sequence[RunData]) -> list[str]:
    """Sentences that say how far the numbers reach."""
    if not runs:
        return ["The store has no runs yet."]
    cells = group(runs)
    counts = sorted({len(members) for members in group(run for run in runs if run.step).values()}) or [0]
    batches = sorted({_batch(run) for run in runs})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    longest = max(run.max_steps for run in runs)
    named = _listed(sorted({f"{cell.model} on {cell.task}" for cell in cells}), limit=4)
    sentences = [
        f"Trained here: {named}; up to {longest} optimizer steps of {_listed(map(str, batches))} examples, with "
        f"{seeds} {'seed' if counts == [1] else 'seeds'} a setting.",
        "The papers behind the methods fine-tuned LLaMA-2-7B, LLaMA-3.2-3B and T5-base. What is shown here holds for "
        "the models, tasks and lengths named, and neither confirms nor refutes a claim about theirs.",
    ]
    if counts == [1]:
        sentences.append("With one seed a setting, nothing here says whether a difference would come back.")
    return sentences


def _batch(run: RunData) -> int:
    return int(run.config["per_device_train_batch_size"]) * int(run.config["gradient_accumulation_steps"])


def environment(runs: Iterable[RunData]) -> list[tuple[str, str]]:
    """Package versions, device and threads as the runs recorded them; differing values side by side."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.environment.items():
            entries = value.items() if isinstance(value, dict) else [("", value)]
            for part, item in entries:
                values.setdefault(f"{key} {part}".strip(), {})[str(item)] = None
    return [(key, _listed(values[key])) for key in sorted(values)]


def duration(seconds: float) -> str:
    """``3 h 25 min``, ``12 min``, ``8 s``."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.2g} s"


def _listed(values: Iterable[str], limit: int = 6) -> str:
    items = list(values)
    shown = items if len(items) <= limit else [*items[: limit - 1], f"… {len(items) - limit + 1} more"]
    return ", ".join(shown) or "none"
