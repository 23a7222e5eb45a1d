"""Landscape: the loss around snapshots and along paths, on lines, planes and, when asked for, in three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.charts import draw, draw_in_three_dimensions, plain
from app.frame import Context, nothing_to_show, page, section, warn
from app.links import choose, choose_several
from app.reader import problem_lines
from app.run_figures import label
from landscape.plots import SurfaceSet, line_figures, surface_figures

MOST_RUNS = 12

_ABOUT = (
    "The loss on lines and planes through a run's weights. A picture shows two of thousands of directions: the path's "
    "own loss and its distance from the plane stand beside it."
)


def show(context: Context) -> None:
    joint = context.reader.joint_runs()
    rows = {row.id: row for row in context.readable if context.reader.has_slices(row) or row.id in joint}
    if not rows:
        nothing_to_show(
            context, "No run that is shown has slices. A Snapshot page's button measures one; this measures a plane "
            "through the run's own path, with the loss of every snapshot beside it:",
            "landscape analyze slice2d STORE --directions pca --where 'rank==32'",
        )  # fmt: skip
        return
    with section():
        compared = [run_id for run_id in rows if run_id in joint]
        chosen = choose_several(
            st, "Runs", list(rows), "runs", default=(compared or list(rows))[:MOST_RUNS],
            max_selections=MOST_RUNS, format_func=lambda i: label(rows[i]) if i in rows else i,
            help="Runs measured alike share a picture and one scale.",
        )  # fmt: skip
        runs = [context.reader.with_slices(rows[run_id]) for run_id in chosen if run_id in rows]
        warn([*context.unreadable, *problem_lines(runs)])
    surfaces: list[SurfaceSet] = []
    with section("On planes", "Contours are even in log loss; the same color is the same loss in every panel."):
        surfaces = surface_figures(runs)
        for number, figure in enumerate(surfaces):
            draw(figure, f"surface-{number}")
        if not surfaces:
            st.caption("None of these runs has a slice on a plane: `landscape analyze slice2d STORE`.")
    if surfaces:
        with section("In three dimensions"):
            _three(surfaces)
    with section("Along lines", "Bands: one standard deviation over random directions."):
        lines = line_figures(runs)
        for number, figure in enumerate(lines):
            draw(figure, f"line-{number}")
        if not lines:
            st.caption("None of these runs has a slice along a line: `landscape analyze slice1d STORE`.")


def _three(surfaces: Sequence[SurfaceSet]) -> None:
    """One at a time: browsers grant a page few WebGL views."""
    places = [(figure, index) for figure in surfaces for index in range(len(figure.surfaces))]
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    if not left.toggle("Draw it", key="three", bind="query-params", help="Takes the browser a moment."):
        return
    numbers = [str(number) for number in range(len(places))]
    number = choose(right, "selectbox", "Surface", numbers, "surface", format_func=lambda i: _name(*places[int(i)]))
    figure, index = places[int(number)]
    draw_in_three_dimensions(figure, index, _name(figure, index))


def _name(figure: SurfaceSet, index: int) -> str:
    title = figure.surfaces[index].title
    return plain(f"{figure.curves.title}: {title}" if title else figure.curves.title)


page("Landscape", _ABOUT, show)
