"""Sharpness: along training under the loss, as a spectrum, by layer, and against the generalization gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.charts import draw, plain, show_table
from app.frame import Context, nothing_to_show, page, section, warn
from app.index import RunRow
from app.links import choose, choose_several
from app.reader import problem_lines
from app.run_figures import (
    FLATNESS_COLUMNS,
    MOST_DENSITIES,
    SCATTER,
    density_figure,
    label,
    layer_figure,
    scatter_figure,
    snapshot_table,
)
from app.shown import keep_words
from app.sweep_figures import thinned
from landscape.analysis.flatness import flatness_correlations, kind_of_slices
from landscape.analysis.rank_correlation import correlation_sentence, rank_correlations
from landscape.plots import sharpness_curves
from landscape.plots.data import distinct, group
from landscape.sweeps.analyses import spread

MOST_RUNS = 24
MOST_SCATTERED = 200
_SPACE_HELP = (
    "Coordinates of the Hessian. **adapter**: A and B as trained. **balanced**: the same after scaling A against B, so "
    "that it does not depend on how BA is split. **merged**: the full weights W + sBA."
)
_FLAT_NAMES = {"width": "width", "lambda_max": "λmax", "lambda_max_balanced": "λmax balanced", "gap": "gap"}

_ABOUT = (
    "Sharpness is the largest eigenvalue λmax of the loss's Hessian: how steeply the loss curves in its sharpest "
    "direction. It depends on the coordinates, so every number names its space."
)


def show(context: Context) -> None:
    measured = _with(context, "sharpness")
    if not measured and not _with(context, "density") and not _with(context, "layers"):
        nothing_to_show(
            context, "No run that is shown was analyzed. A Snapshot page's button measures one; this measures all:",
            "landscape analyze sharpness STORE",
        )  # fmt: skip
        return
    if measured:
        with section("Along training", "Open circles did not converge. Under preconditioned sharpness the dashed line "
                     "is where Adam would become unstable on a quadratic, full-batch loss: a heuristic."):  # fmt: skip
            _along(context, measured)
        with section("Against the generalization gap", "Do sharper solutions generalize worse here? Ranks are "
                     "correlated, so that no scale is assumed; the interval resamples whole runs."):  # fmt: skip
            _scatter(context, measured)
    with section(
        "Against flatness", "Width of random slices through the same snapshots. Flat: wide, and a small λmax."
    ):
        _flat(context)
    with section("Spectrum", "All eigenvalues at chosen steps, not only the largest."):
        _density(context)
    with section("By layer", "The largest eigenvalue of each layer's own block."):
        _layers(context)


def _with(context: Context, name: str) -> list[RunRow]:
    folder = context.reader.run_path
    return [row for row in context.readable if (folder(row.id) / "analysis" / f"{name}.parquet").is_file()]


def _along(context: Context, rows: Sequence[RunRow]) -> None:
    columns = st.columns([2, 1, 3], vertical_alignment="bottom")
    if len(rows) > MOST_RUNS:
        st.info(f"{MOST_RUNS} of {len(rows)} analyzed runs are drawn; the filter chooses which.")
    runs = list(map(thinned, context.reader.several(rows[:MOST_RUNS])))
    warn([*context.unreadable, *problem_lines(runs)])
    cells = group(runs)
    axes = [axis for axis in ("rank", "learning_rate", "method") if len(distinct(cells, axis)) > 1]
    facet = choose(
        columns[0], "selectbox", "One column for each", ["", *axes], "columns", default=axes[0] if axes else "",
        format_func=lambda axis: axis or "all in one",
    )  # fmt: skip
    log_y = columns[1].toggle("Log values", value=True, key="log", bind="query-params")
    draw(sharpness_curves(runs, facet=facet or None, log_y=log_y), "along", heading=False)


def _scatter(context: Context, rows: Sequence[RunRow]) -> None:
    table = snapshot_table(context.reader.several(rows[:MOST_SCATTERED], steps=False))
    columns = st.columns([2, 2, 2], vertical_alignment="bottom")
    names = SCATTER.__getitem__
    x = choose(columns[0], "selectbox", "Across", list(SCATTER), "x", format_func=names)
    y = choose(columns[1], "selectbox", "Up", list(SCATTER), "y", default="gap", format_func=names)
    log_x = columns[2].toggle("Log across", value=x != "gap", key="logx", bind="query-params")
    if x == y or not len(table[[x, y]].dropna()):
        st.caption("No snapshot of these runs has both numbers.")
        return
    correlation = rank_correlations(table, [(x, y)]).iloc[0].to_dict()
    said = correlation_sentence({**correlation, "x": names(x), "y": names(y)})
    keep_words(said)
    st.markdown(f"**{plain(said)}**")
    draw(scatter_figure(table, x, y, log_x), "scatter", heading=False)


def _flat(context: Context) -> None:
    rows = [row for row in context.readable if context.reader.has_slices(row)][:MOST_RUNS]
    table = context.reader.flatness(rows)
    shown: Any = table[table["width"].notna()]
    if not len(shown):
        st.caption(
            "No run that is shown has slices along random directions: `landscape analyze slice1d STORE --draws 3`."
        )
        return
    names = {row.id: label(row) for row in rows}
    st.caption(f"{plain(kind_of_slices(table))}; λmax of the adapter's coordinates; gap with its standard error.")
    columns = [name for name in FLATNESS_COLUMNS if shown[name].notna().any()]
    show_table(
        shown.assign(run=shown["run"].map(names))[["run", "step", *columns]], "flatness",
        "Flatness, sharpness and gap of the same snapshots",
        column_config={name: st.column_config.NumberColumn(title, format="%.4g", help=about)
                       for name, (title, about) in FLATNESS_COLUMNS.items()},
    )  # fmt: skip
    for row in flatness_correlations(table).to_dict("records"):
        words = {"x": _FLAT_NAMES[row["x"]], "y": _FLAT_NAMES[row["y"]]}
        said = correlation_sentence({**{str(key): value for key, value in row.items()}, **words})
        keep_words(said)
        st.caption(plain(said))


def _density(context: Context) -> None:
    row = _one_of(context, "density")
    table = context.reader.analysis(row, "density") if row else None
    if row is None or table is None:
        return
    spaces = sorted(set(table["space"]))
    columns = st.columns([1, 3], vertical_alignment="bottom")
    space = choose(columns[0], "selectbox", "Space", spaces, "density_space", help=_SPACE_HELP)
    steps = sorted(set(table[table["space"] == space]["step"]))
    chosen = choose_several(
        columns[1], "Steps", list(map(str, steps)), "density_steps", default=list(map(str, spread(steps, 3))),
        max_selections=MOST_DENSITIES,
    )  # fmt: skip
    draw(density_figure(table, list(map(int, chosen)), space), "density", heading=False)


def _layers(context: Context) -> None:
    row = _one_of(context, "layers")
    table = context.reader.analysis(row, "layers") if row else None
    if table is None:
        return
    space = choose(st, "selectbox", "Space", sorted(set(table["space"])), "layers_space", help=_SPACE_HELP)
    draw(layer_figure(table, space), "layers", heading=False)


def _one_of(context: Context, name: str) -> RunRow | None:
    rows = {row.id: row for row in _with(context, name)}
    if not rows:
        st.caption(f"No run that is shown has one yet: `landscape analyze {name} STORE`, or a Snapshot page's button.")
        return None
    words = lambda run_id: f"{label(rows[run_id])}  ({run_id})"  # noqa: E731
    return rows.get(choose(st, "selectbox", "Run", list(rows), f"{name}_run", always=True, format_func=words))


page("Sharpness", _ABOUT, show)
