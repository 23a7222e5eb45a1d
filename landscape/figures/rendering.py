"""Figures as files."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, StoreError, unknown
from landscape.figures.loading import load_runs
from landscape.figures.scripts import FIGURES

if TYPE_CHECKING:
    from landscape.plots import CurveSet, Drawing, SurfaceSet
    from landscape.store import Store

FORMATS = ("pdf", "svg", "png", "csv", "html")

PNG_DPI = 200


@dataclass(frozen=True)
class Rendered:
    """What `render` wrote; iterating gives the files.

    ``remarks`` say what was chosen from the store and what is missing.
    """

    files: tuple[Path, ...]
    figures: tuple[Drawing, ...]
    remarks: tuple[str, ...]

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

    Slices that do not belong on one picture make several: ``<name>-2.<format>`` and so on.

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
    figures = FIGURES[name].build(loaded.runs)
    if loaded.unreadable:
        count = len(loaded.unreadable)
        note = f"{count} run{'s' * (count != 1)} that could not be read."
        figures = [_lacking(figure, note) for figure in figures]
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {out_dir}: {error.strerror}") from error
    files = []
    for number, figure in enumerate(figures, start=1):
        stem = name if number == 1 else f"{name}-{number}"
        for item in dict.fromkeys(formats):
            files.append(out_dir / f"{stem}.{item}")
            write_figure(figure, files[-1], self_contained=self_contained)
    said = [line for figure in map(_words, figures) for line in (figure.chosen, *figure.missing) if line]
    return Rendered(tuple(files), tuple(figures), tuple(dict.fromkeys([*said, *loaded.damaged])))


def _words(figure: Drawing) -> CurveSet:
    """Where a figure has its title and its notes."""
    from landscape.plots import SurfaceSet

    return figure.curves if isinstance(figure, SurfaceSet) else figure


def _lacking(figure: Drawing, note: str) -> Drawing:
    """The figure with one thing more that is missing."""
    from landscape.plots import SurfaceSet

    words = _words(figure)
    words = replace(words, missing=(*words.missing, note))
    return replace(figure, curves=words) if isinstance(figure, SurfaceSet) else words


def write_figure(figure: Drawing, path: Path, *, self_contained: bool = True) -> None:
    """Write a figure in the format of the path's extension, atomically."""
    from landscape.plots import SurfaceSet, surface_table, table
    from landscape.store.atomic import replacing

    kind = path.suffix[1:]
    with replacing(path) as temporary:
        if kind == "csv":
            frame = surface_table(figure) if isinstance(figure, SurfaceSet) else table(figure)
            frame.to_csv(temporary, index=False)
        elif kind == "html":
            _write_html(figure, temporary, f"figure-{path.stem}", True if self_contained else "cdn")
        else:
            _write_static(figure, temporary, kind)


def _write_static(figure: Drawing, path: Path, kind: str) -> None:
    import matplotlib as mpl

    from landscape.plots import SurfaceSet, surfaces_to_matplotlib, to_matplotlib
    from landscape.plots.matplotlib_page import RC

    # No dates: equal numbers give equal files.
    metadata: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        page = surfaces_to_matplotlib(figure) if isinstance(figure, SurfaceSet) else to_matplotlib(figure)
        page.savefig(path, format=kind, dpi=PNG_DPI, metadata=metadata)


def _write_html(figure: Drawing, path: Path, div_id: str, plotly_js: bool | str) -> None:
    from landscape.plots import SurfaceSet, surfaces_to_plotly, to_plotly

    if isinstance(figure, SurfaceSet):
        page, script = surfaces_to_plotly(figure), _views_script(figure)
    else:
        page, script = to_plotly(figure), None
    page.write_html(path, include_plotlyjs=plotly_js, div_id=div_id, post_script=script)


_VIEWS = """
const graph = document.getElementById("{plot_id}");
const views = [{name: "contours", data: graph.data, layout: {...graph.layout}}, ...VIEWS];
const bar = document.createElement("p");
bar.style = "font: 13px system-ui, sans-serif; margin: 8px 0 0 72px; display: flex; gap: 6px";
const press = (button) => {
  for (const other of bar.children) {
    const on = other === button;
    other.setAttribute("aria-pressed", String(on));
    other.style.background = on ? "#1b1f24" : "#ffffff";
    other.style.color = on ? "#ffffff" : "#1b1f24";
  }
};
for (const view of views) {
  const button = document.createElement("button");
  button.textContent = view.name;
  button.style = "font: inherit; padding: 4px 12px; border: 1px solid #b9c0c9; border-radius: 6px; cursor: pointer";
  button.onclick = () => {
    press(button);
    Plotly.newPlot(graph, view.data, view.layout, {responsive: true});
  };
  bar.append(button);
}
press(bar.firstChild);
graph.before(bar);
"""


def _views_script(figure: SurfaceSet) -> str:
    """Buttons for the surfaces in three dimensions, each drawn when somebody asks for it."""
    from landscape.plots import surface_3d

    views = []
    for index, surface in enumerate(figure.surfaces):
        plain = json.loads(str(surface_3d(figure, index).to_json()))
        views.append({"name": f"3D: {surface.title}" if surface.title else "3D", **plain})
    return _VIEWS.replace("VIEWS", embedded(json.dumps(views)))


def embedded(text: str) -> str:
    """JSON that no string in it can break out of: inside a script element only ``<`` could end it."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


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
    for line in done.remarks:
        print(line, file=sys.stderr)
    return 0
