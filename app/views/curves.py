"""Curves: anything that was logged, by setting, over seeds; a click opens the snapshot."""

from __future__ import annotations

import streamlit as st

from app.charts import draw_curves, plain
from app.curve_figures import MOST_RUNS, NAMES, QUANTITIES, CurveView, curve_figure
from app.frame import Context, go, nothing_to_show, page, section, warn
from app.links import choose
from app.reader import newest, problem_lines
from landscape.plots.data import AXES


def show(context: Context) -> None:
    view = _controls(context)
    live = any(row.state == "running" for row in context.shown)

    @st.fragment(run_every=4 if live else None)
    def chart() -> None:
        with section():
            _draw(context, view, live)

    chart()


def _controls(context: Context) -> CurveView:
    first = st.columns([4, 4, 3, 2], vertical_alignment="bottom")
    quantity = choose(
        first[0], "selectbox", "Quantity", list(NAMES), "quantity", format_func=NAMES.__getitem__,
        help="\n".join(f"- **{q.label}**: {q.help}" for q in QUANTITIES.values()),
    )  # fmt: skip
    facet = first[1].multiselect(
        "One panel for each", AXES, default=_usual_facet(context), key="facet", bind="query-params", max_selections=2,
        placeholder="all in one panel", help="One setting: its values side by side. Two: the first down, the second "
        "across. Within a panel colors are methods, and shades are the settings that remain.",
    )  # fmt: skip
    smoothing = first[2].slider(
        "Smoothing, % of the run", 0.0, 5.0, 1.5, 0.5, key="smoothing", bind="query-params",
        help="Width (standard deviation) of a centered kernel, for display only: tests and tables use raw values, "
        "which stay visible beneath. 0 draws raw values.",
    )  # fmt: skip
    with first[3].popover("Axes", icon=":material/tune:", width="stretch", help="Log axes, marks and an inset."):
        log_x = st.toggle("Log steps", key="logx", bind="query-params")
        log_y = st.toggle("Log values", key="logy", bind="query-params", help="Not for differences.")
        episodes = st.toggle(
            "Rebounds", value=True, key="marks", bind="query-params",
            help="Shade rebounds that `landscape analyze episodes` found, with their p-values.",
        )  # fmt: skip
        low = st.number_input("Inset from step", 0, None, 0, key="inset_from", bind="query-params")
        high = st.number_input(
            "to step (0: no inset)", 0, None, 0, key="inset_to", bind="query-params",
            help="Repeats that stretch of the curve in a small frame.",
        )  # fmt: skip
    inset = (float(low), float(high)) if high > low else None
    return CurveView(quantity, tuple(facet), smoothing, log_x, log_y, inset, episodes)


def _usual_facet(context: Context) -> list[str]:
    """By rank where there are several, as in the papers."""
    ranks = {row.config.get("rank") for row in context.readable if row.config.get("method") != "full"}
    return ["rank"] if len(ranks - {None}) > 1 else []


def _draw(context: Context, view: CurveView, live: bool) -> None:
    rows = context.readable
    if live:  # a fragment sees the store anew, the page's list is as old as its last full run
        states = {row.id: row for row in context.reader.rows()}
        rows = [states[row.id] for row in rows if row.id in states]
    chosen, left_out = newest(rows, MOST_RUNS)
    if not chosen:
        nothing_to_show(context, "None of these runs has started yet.", "landscape status STORE")
        return
    if left_out:
        st.info(left_out, icon=":material/filter_alt:")
    runs = context.reader.several(chosen)
    warn([*context.unreadable, *problem_lines(runs)])
    figure = curve_figure(runs, view)
    if not figure.members:
        st.info(f"None of these {len(runs)} runs logged: {plain(NAMES[view.quantity])}.", icon=":material/science:")
        return
    clicked = draw_curves(figure, f"curves-{view.quantity}", heading=False)
    st.caption("Click a point to open that snapshot." + (" New values appear by themselves." if live else ""))
    if clicked is not None:
        go("snapshot", run=clicked[0], step=clicked[1])


page("Curves", "Anything that was logged, over seeds, with every spike kept.", show)
