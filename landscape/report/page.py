"""A store as one HTML file that opens offline, can be sent to somebody, and says what every number in it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from landscape import __version__
from landscape.errors import StoreError
from landscape.figures import FIGURES, load_runs
from landscape.plots import RunData
from landscape.plots.data import distinct, format_rate, group
from landscape.report.chapters import experiments
from landscape.report.figure import ReportFigure
from landscape.report.flatness import flatness_by_run
from landscape.report.tables import run_table

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Store

TEMPLATES = Path(__file__).parent / "template"

IN_CHAPTERS = ("slice1d", "slice2d")
"""Figures that every chapter shows of its own runs."""


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
    flatness, problems = flatness_by_run(store, loaded.runs)
    known = {problem for run in loaded.runs for problem in run.problems}
    page = render_page(
        loaded.runs,
        title=title,
        name=store.path.absolute().name,
        where=where,
        unreadable=loaded.unreadable,
        damaged=[*loaded.damaged, *(line for line in problems if line not in known)],
        flatness=flatness,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {path.parent}: {error.strerror}") from error
    write_bytes(path, page.encode("utf-8"))
    return path


def render_page(
    runs: Sequence[RunData],
    *,
    title: str,
    name: str,
    where: str | None = None,
    unreadable: Sequence[str] = (),
    damaged: Sequence[str] = (),
    flatness: pd.DataFrame | None = None,
) -> str:
    """The page's HTML. Every string of the store is escaped: by Jinja in the page, by the renderer in figures.

    Args:
        name: of the store.
        unreadable: one line a run that could not be read, for the page to name.
        damaged: one line a damaged file that no run of the table names.
        flatness: of these runs, from `landscape.analysis.flatness.flatness_table`.
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
        experiments=experiments(runs, flatness),
        runs=run_table(runs),
        unreadable=unreadable,
        damaged=damaged,
        has_sharpness=any(run.sharpness is not None for run in runs),
        environment=environment(runs),
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def paper_figures(runs: Sequence[RunData]) -> tuple[list[ReportFigure], list[tuple[str, str]]]:
    """The papers' figures that the runs support, and name and reason of those that they do not."""
    figures, unsupported = [], []
    for name, script in FIGURES.items():
        if name in IN_CHAPTERS:
            continue
        try:
            made = script.build(runs)
            names = [f"paper-{name}", *(f"paper-{name}-{number}" for number in range(2, len(made) + 1))]
            pairs = zip(names, made, strict=True)
            figures += [ReportFigure.of(own, result, script.about, script.source) for own, result in pairs]
        except StoreError as error:
            unsupported.append((f"{script.source}: {script.title}", str(error)))
    return figures, unsupported


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
        ("seeds", _listed(map(str, sorted({run.seed for run in runs if run.seed is not None})))),
        ("optimizer steps", f"{steps:,}".replace(",", "\u202f")),
        ("time in steps", duration(seconds)),
    ]


def scale(runs: Sequence[RunData]) -> list[str]:
    """Sentences that say how far the numbers reach."""
    if not runs:
        return ["The store has no runs yet."]
    imported = len(runs)
    runs = [run for run in runs if not run.config.get("imported")]
    imported -= len(runs)
    count = f"{imported} {'runs are' if imported > 1 else 'run is'}"
    said = [f"{count} imported from logs; what those do not say of their settings is unknown."] if imported else []
    if not runs:
        return said
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
    return sentences + said


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
