"""The papers' figures from what a store holds: ``FIGURES`` by name, and `render`, which writes one to files.

Each figure is a short script in the folder ``figures``: it chooses runs and calls a builder of `landscape.plots`. This
module finds the scripts, reads the store for them and writes the files.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, StoreError, UsageError, unknown
from landscape.resources import folder

if TYPE_CHECKING:
    import pandas as pd

    from landscape.plots import CurveSet, RunData
    from landscape.store import Run, Store

FORMATS = ("pdf", "svg", "png", "csv", "html")

PNG_DPI = 200


@dataclass(frozen=True)
class FigureScript:
    """One file of the folder ``figures``.

    Its docstring says what it is: ``Title (source).`` on the first line, and ``about`` below.
    """

    name: str
    path: Path
    title: str
    source: str
    about: str

    @classmethod
    def read(cls, path: Path) -> FigureScript:
        """The script's description, without running it."""
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
        first, _, about = text.partition("\n")
        title, _, source = first.rstrip(".").rstrip(")").rpartition(" (")
        return cls(path.stem, path, title or source, source if title else "", " ".join(about.split()))

    def build(self, runs: Sequence[RunData]) -> CurveSet:
        """The figure from the runs.

        Raises:
            StoreError: the runs do not hold what the figure shows; names what it needs.
        """
        return _builder(self.path)(runs)


FIGURES: dict[str, FigureScript] = {
    path.stem: FigureScript.read(path) for path in sorted(folder("figures").glob("*.py")) if path.stem[0] != "_"
}


@cache
def _builder(path: Path) -> Callable[[Sequence[RunData]], CurveSet]:
    spec = importlib.util.spec_from_file_location(f"landscape_figure_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build


@dataclass(frozen=True)
class Rendered:
    """What `render` wrote; iterating gives the files."""

    files: tuple[Path, ...]
    figure: CurveSet

    def __iter__(self) -> Iterator[Path]:
        return iter(self.files)


def render(
    store: Store | str | Path,
    name: str,
    out_dir: str | Path,
    formats: Sequence[str] = ("svg",),
    where: str | None = None,
    *,
    self_contained: bool = True,
) -> Rendered:
    """Draw one figure from a store and write it once a format, as ``<out_dir>/<name>.<format>``.

    Args:
        name: one of `FIGURES`.
        formats: of `FORMATS`; ``csv`` is the numbers drawn, ``html`` the interactive figure.
        where: which runs, such as ``rank>=64 and lr==5e-4``.
        self_contained: whether the HTML holds plotly.js (5 MB) or loads it from the network.

    Raises:
        UsageError: unknown figure or format, a bad ``where``, or one that no run matches.
        StoreError: the store does not hold what the figure shows, or the disk refuses.
    """
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    for item in formats:
        if item not in FORMATS:
            raise unknown("format", item, FORMATS)
    loaded = load_runs(store, where)
    figure = FIGURES[name].build(loaded.runs)
    if loaded.unreadable:
        count = len(loaded.unreadable)
        note = f"{count} run{'s' * (count != 1)} that could not be read."
        figure = replace(figure, missing=(*figure.missing, note))
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {out_dir}: {error.strerror}") from error
    files = tuple(out_dir / f"{name}.{item}" for item in dict.fromkeys(formats))
    for path in files:
        write_figure(figure, path, self_contained=self_contained)
    return Rendered(files, figure)


def write_figure(figure: CurveSet, path: Path, *, self_contained: bool = True) -> None:
    """Write a figure in the format of the path's extension, atomically."""
    from landscape.plots import table, to_matplotlib, to_plotly
    from landscape.store.atomic import replacing

    kind = path.suffix[1:]
    with replacing(path) as temporary:
        if kind == "csv":
            table(figure).to_csv(temporary, index=False)
        elif kind == "html":
            to_plotly(figure).write_html(
                temporary, include_plotlyjs=True if self_contained else "cdn", div_id=f"figure-{path.stem}"
            )
        else:
            import matplotlib as mpl

            from landscape.plots.matplotlib_renderer import RC

            # No dates: equal numbers give equal files.
            metadata: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
            with mpl.rc_context(RC), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from")
                to_matplotlib(figure).savefig(temporary, format=kind, dpi=PNG_DPI, metadata=metadata)


@dataclass(frozen=True)
class LoadedRuns:
    """Runs as plots read them, and one line for each that could not be read at all."""

    runs: tuple[RunData, ...]
    unreadable: tuple[str, ...]


def load_runs(store: Store | str | Path, where: str | None = None) -> LoadedRuns:
    """Every run of a store, or those that ``where`` means.

    A damaged table of a run is named in its ``problems`` and left empty; a run whose config or status is damaged has
    no place in any figure and is only named.

    Raises:
        UsageError: a bad expression, or one that no run matches.
        StoreError: no store there.
    """
    from landscape.config.where import Where
    from landscape.store import Store

    expression = Where.parse(where) if where is not None else None
    store = store if isinstance(store, Store) else Store.open(store)
    runs, unreadable = [], []
    for run in store.runs():
        try:
            values, status = run.config.model_dump(), run.status
        except StoreError as error:
            unreadable.append(f"{run.id}: {error}")
            continue
        values.update(id=run.id, state=status.state, step=status.step)
        if expression is None or expression.matches(values):
            runs.append(_load(run))
    if expression is not None and not runs:
        raise UsageError(f"--where {where!r}: none of the {len(store.runs())} runs in {store.path} matches")
    return LoadedRuns(tuple(runs), tuple(unreadable))


def _load(run: Run) -> RunData:
    import pandas as pd

    from landscape.plots import RunData

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
        state=status.state,
        step=status.step,
        max_steps=status.max_steps,
        error=status.error,
        seconds=float(metrics["seconds"].sum()) if len(metrics) else None,
        digests=read(lambda: run.digests, {}),
        environment=status.environment,
        problems=tuple(dict.fromkeys(problems)),
    )


def _parquet(path: Path) -> pd.DataFrame | None:
    """The table, or None where the file is missing."""
    import pandas as pd
    import pyarrow as pa

    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """``python figures/mgpo2.py STORE -o out/``: what each script does when it is run by itself."""
    script = FIGURES[name]
    parser = argparse.ArgumentParser(prog=f"figures/{name}.py", description=f"{script.title}. {script.about}")
    parser.add_argument("store", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("out"), help="folder to write to")
    parser.add_argument("--format", default="svg,png", help=f"of {','.join(FORMATS)}")
    parser.add_argument("--where", help="which runs, e.g. 'rank>=64 and lr==5e-4'")
    options = parser.parse_args(arguments)
    try:
        done = render(options.store, name, options.output, options.format.split(","), options.where)
    except LandscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(str(path) for path in done))
    for line in (done.figure.chosen, *done.figure.missing):
        print(line, file=sys.stderr)
    return 0
