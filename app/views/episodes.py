"""Episodes: tested rebounds of every run, over ranks and rates, and methods compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app.charts import draw, plain, show_table
from app.frame import Context, link, nothing_to_show, page, section, warn
from app.index import RunRow
from app.links import choose, linked_rows, tell_rows
from app.queue_panel import job_list
from app.reader import problem_lines
from app.run_figures import label
from app.sweep_figures import MEASURES, comparable, comparison_table, heat_map
from landscape.errors import StoreError
from landscape.figures import FIGURES
from landscape.plots import Choice, RunData
from landscape.plots.episodes import MarkedCurve, episode_curves

_ABOUT = (
    "A rebound: the training loss falls, climbs back, and comes down again. Each is tested against a loss that only "
    "falls, up to noise like the run's own."
)
_SHOWN = ("run", "kind", "onset", "peak", "recovery", "amplitude", "amplitude_noise", "p_value", "q_value", "flags")


def show(context: Context) -> None:
    tested = [
        row for row in context.readable if (context.reader.run_path(row.id) / "analysis/episodes.parquet").is_file()
    ]
    started = [row for row in context.readable if row.status is not None and row.status.attempt]
    if len(tested) < len(started):
        with section():
            _ask(context, len(started), len(tested))
    if not tested:
        if not started:
            nothing_to_show(context, "None of these runs has started yet.", "landscape status STORE")
        return
    with st.spinner(f"Reading the tables of {len(tested)} runs", show_time=True):
        runs = context.reader.several(tested, steps=False)
    warn([*context.unreadable, *problem_lines(runs)])
    runs = [run for run in runs if run.episodes is not None]
    with section("Rebounds", "One line a candidate. It counts when its q-value, adjusted for the number of runs "
                 "tested, is at most 0.05."):  # fmt: skip
        _table(context, tested, runs)
    with section("Over ranks and learning rates"):
        _grid(comparable(runs))
    with section("Methods compared", "On the same seeds two methods see the same batches, so their difference is "
                 "tested by flipping its signs, seed by seed: no assumption about its distribution."):  # fmt: skip
        _compare(runs, comparable(runs))


def _ask(context: Context, started: int, tested: int) -> None:
    left, right = st.columns([4, 1], vertical_alignment="center")
    left.info(f"{started - tested} of {started} runs have not been tested for rebounds.", icon=":material/science:")
    where = ["--where", context.where] if context.where else []
    store = str(context.reader.store.path.absolute())
    if right.button("Test them", type="primary", icon=":material/play_arrow:", width="stretch"):
        context.jobs.submit("Rebounds of the runs shown", ["analyze", "episodes", store, *where], "")
    job_list(context.jobs)


def _table(context: Context, rows: Sequence[RunRow], runs: Sequence[RunData]) -> None:
    names = {row.id: label(row) for row in rows}
    table = episode_rows(runs, names)
    # A run's q is its clearest rebound's; a weak second one does not count with it.
    q_value, p_value = table["q_value"].fillna(table["p_value"]), table["p_value"]
    found = table[(q_value <= 0.05) & (p_value <= 0.05) & (table["kind"] != "none")]
    st.markdown(f"**{len(set(found['id']))} of {len(runs)} runs rebound**, {len(found)} rebounds in all.")
    only = st.toggle("Only those that count", value=True, key="counted", bind="query-params")
    shown = found if only and len(found) else table
    if only and not len(found):
        st.caption("None counts, so every candidate is listed.")
    marks = [f"{run_id}@{peak:g}" for run_id, peak in zip(shown["id"], shown["peak"], strict=True)]
    event = show_table(
        shown[list(_SHOWN)], "episodes", "Candidate rebounds with their p-values",
        "Tick a line to see the rebound on its curve and to open its snapshots.", on_select="rerun",
        selection_mode="single-row", height=min(380, 38 + 35 * max(1, len(shown))),
        selection_default=linked_rows("table-episodes", "episode", marks),
        column_config={
            "amplitude": st.column_config.NumberColumn("climb, nats", format="%.3f"),
            "amplitude_noise": st.column_config.NumberColumn(
                "in noise units", format="%.1f", help="Standard deviations of one step's noise."
            ),
            "p_value": st.column_config.NumberColumn("p", format="%.2g", help="Small: noise alone hardly does this."),
            "q_value": st.column_config.NumberColumn(
                "q", format="%.2g", help="p of the run's clearest rebound, adjusted for all runs tested together."
            ),
            "onset": st.column_config.NumberColumn("onset, step", format="%d"),
            "peak": st.column_config.NumberColumn("peak, step", format="%d"),
            "recovery": st.column_config.NumberColumn("recovery, step", format="%d"),
        },
    )  # fmt: skip
    chosen = [index for index in event["selection"]["rows"] if index < len(shown)]
    tell_rows("episode", [marks[index] for index in chosen])
    if chosen:
        picked = {str(k): v for k, v in shown.iloc[chosen[0]].items()}
        row = next(row for row in rows if row.id == picked["id"])
        _one(context.reader.data(row), picked, names[row.id])


def episode_rows(runs: Sequence[RunData], names: dict[str, str]) -> pd.DataFrame:
    """Every candidate of every run, the most significant first."""
    frames = []
    for run in runs:
        assert run.episodes is not None
        frames.append(run.episodes)
    table = pd.concat(frames, ignore_index=True)
    table["id"] = ids = np.repeat([run.run_id for run in runs], [len(frame) for frame in frames])
    table["run"] = [names[run_id] for run_id in ids]
    table["flags"] = table["flags"].map(lambda value: value if isinstance(value, str) else "")
    return table.sort_values(["p_value", "amplitude_noise"], ascending=[True, False], kind="stable")


def _one(run: RunData, row: Mapping[str, Any], name: str) -> None:
    column = str(row["column"])
    if column not in run.metrics:
        return
    rows = run.episodes.loc[run.episodes["column"] == column] if run.episodes is not None else pd.DataFrame()
    marks = [_Mark(item) for item in rows.to_dict("records") if item["kind"] != "none"]
    curve = MarkedCurve(name, run.metrics["step"].to_numpy(float), run.metrics[column].to_numpy(float), marks)
    draw(episode_curves([curve], y_label=f"{column}, nats/token", title="The rebound on its curve"), "one-episode")
    columns = st.columns(4)
    for place, edge in zip(columns, ("onset", "peak", "recovery"), strict=False):
        if math.isfinite(float(row[edge])):
            with place:
                link("snapshot", f"Snapshot at its {edge}", run=run.run_id, step=int(float(row[edge])))


class _Mark:
    """A row of the table as the figure of rebounds takes it."""

    def __init__(self, row: Mapping[Any, Any]) -> None:
        self.kind = str(row["kind"])
        self.onset, self.peak, self.recovery = (float(row[name]) for name in ("onset", "peak", "recovery"))
        self.p_value = float(row["p_value"])
        self.flags = tuple(filter(None, str(row["flags"] or "").split(",")))


def _grid(choice: Choice) -> None:
    measure = choose(
        st, "segmented_control", "Show", list(MEASURES), "measure", required=True,
        format_func=lambda key: MEASURES[key].label,
        help="\n".join(f"- **{m.label}**: {m.help}" for m in MEASURES.values()),
    )  # fmt: skip
    figure = heat_map(choice.runs, measure)
    if figure.panels:
        draw(figure, f"grid-{measure}", heading=False)
    else:
        st.caption("None of these runs has this number yet.")


def _compare(runs: Sequence[RunData], choice: Choice) -> None:
    table = comparison_table(choice.runs, "loss_clean", 0.05)
    if not len(table):
        st.caption("There is nothing to compare: one method, or methods that share no seed at one setting.")
        return
    show_table(
        table, "comparison", "Methods compared on paired seeds",
        column_config={
            "difference": st.column_config.NumberColumn("difference in rise, nats", format="%.3f"),
            "low": st.column_config.NumberColumn("interval from", format="%.3f"),
            "high": st.column_config.NumberColumn("to", format="%.3f"),
            "level": st.column_config.NumberColumn("its level", format="percent"),
            "p": st.column_config.NumberColumn("p", format="%.2g"),
        },
    )  # fmt: skip
    st.caption(plain("Negative: the first method rises less. " + "; ".join(choice.said)))
    try:
        figures = FIGURES["episodes"].build(runs)
    except StoreError as error:
        st.caption(plain(error))
        return
    for number, figure in enumerate(figures):
        draw(figure, f"comparison-{number}")


page("Episodes", _ABOUT, show)
