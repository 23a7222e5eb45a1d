"""Snapshot: one step of one run, all that is known of it, and what could be measured next."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.charts import draw, plain, show_table
from app.curve_figures import single_run
from app.exports import adapter_bytes
from app.frame import SYMBOLS, Context, link, nothing_to_show, page, section, warn
from app.index import RunRow
from app.links import choose, choose_number
from app.measurements import (
    MEASUREMENTS,
    Number,
    measured_at,
    nearest_step,
    neighbors,
    numbers_at,
    steps_for,
)
from app.queue_panel import job_list
from app.run_figures import label
from landscape.errors import StoreError, nearest


def show(context: Context) -> None:
    if not context.rows:
        nothing_to_show(context, "", "")
        return
    row = _run(context)
    if row is None:
        return
    with section():
        captured = _captured(context, row)
        step = _step(row, captured)
        _headline(row, step)
    if not row.config:
        return
    with section():
        data = context.reader.data(row)
        warn(data.problems)
        logged = numbers_at(row, step, data.metrics, data.evaluations)
        left, right = st.columns(2)
        with left:
            figure = single_run(data, step)
            if any(panel.curves for panel in figure.panels):
                draw(figure, f"where-{row.id}")
            else:
                st.caption("Nothing was logged of this run yet.")
        with right:
            st.subheader("Logged here", anchor=False)
            _numbers(logged, "Logged here", "Nothing was logged at this step.")
    with section("Measured here", "What analyses found on this very snapshot."):
        found = measured_at(step, lambda name: context.reader.analysis(row, name))
        _numbers(found, "Measured here", "Nothing yet.")
    with section("Measure more"):
        _measure(context, row, captured, step)
    with section("Take it with you"):
        _adapter(context, row, captured, step)


def _run(context: Context) -> RunRow | None:
    wanted = st.query_params.get("run")
    ids = [row.id for row in context.rows]
    if wanted is not None and wanted not in ids:
        st.error(
            plain(f"The link names run {wanted!r}, which this store does not have.{nearest(wanted, ids)}"),
            icon=":material/link_off:",
        )  # fmt: skip
    rows = {row.id: row for row in context.rows}
    order = sorted(ids, key=lambda run_id: (rows[run_id].state != "running", label(rows[run_id]), run_id))
    chosen = choose(
        st, "selectbox", "Run", order, "run", always=True,
        format_func=lambda i: f"{SYMBOLS[rows[i].state]} {label(rows[i])}  ({i})" if i in rows else i,
    )  # fmt: skip
    return rows.get(chosen)


def _captured(context: Context, row: RunRow) -> list[int]:
    try:
        return context.reader.snapshot_steps(row)
    except StoreError as error:
        st.error(plain(error), icon=":material/error:")
        return []


def _step(row: RunRow, captured: list[int]) -> int:
    last = captured[-1] if captured else row.step
    columns = st.columns([1, 2, 1, 4], vertical_alignment="bottom")
    step = choose_number(columns[1], "Step", "step", default=last)
    before, after = neighbors(captured, step)

    def jump(step: int) -> None:
        st.session_state["step"] = step

    columns[0].button(
        "Before", icon=":material/chevron_left:", disabled=before is None, on_click=jump, args=(before,),
        help="The snapshot before this one.", width="stretch",
    )  # fmt: skip
    columns[2].button(
        "After", icon=":material/chevron_right:", disabled=after is None, on_click=jump, args=(after,),
        help="The snapshot after this one.", width="stretch",
    )  # fmt: skip
    with columns[3]:
        if step > row.step:
            st.warning(f"The run has {row.step} steps; step {step} is not there (yet).", icon=":material/warning:")
        elif not captured:
            st.caption("This run has no snapshots: it was imported, packed, or trained with `capture: none`.")
        elif step not in captured:
            st.caption(f"No snapshot at step {step}; the nearest is at {nearest_step(captured, step)}.")
        else:
            many = f"One of {len(captured)} snapshots, from step {captured[0]} to {captured[-1]}."
            st.caption(many if len(captured) > 1 else "The only snapshot of this run.")
    return step


def _headline(row: RunRow, step: int) -> None:
    st.markdown(
        f"**{plain(label(row))}** after {step} of {row.max_steps} optimizer steps, {SYMBOLS[row.state]} {row.state}"
    )
    error = row.problem or (row.status.error if row.status else None)
    if error:
        with st.expander("What went wrong"):
            st.code(error, language=None, wrap_lines=True)


def _numbers(numbers: list[Number], title: str, nothing: str) -> None:
    if not numbers:
        st.caption(nothing)
        return
    frame = pd.DataFrame([vars(number) for number in numbers])
    if not any(frame["about"]):
        frame = frame.drop(columns="about")
    frame = frame.rename(columns={"name": "what", "about": "space and data"})
    show_table(frame, title.lower().replace(" ", "-"), title, height=38 + 35 * len(frame))


def _measure(context: Context, row: RunRow, captured: list[int], step: int) -> None:
    if not captured:
        st.caption("Analyses need snapshots.")
        return
    columns = st.columns([2, 2, 1], vertical_alignment="bottom")
    name = choose(
        columns[0], "selectbox", "Analysis", list(MEASUREMENTS), "analysis",
        format_func=lambda key: MEASUREMENTS[key].title,
        help="\n".join(f"- **{m.title}**: {m.help}" for m in MEASUREMENTS.values()),
    )  # fmt: skip
    chosen = MEASUREMENTS[name]
    whole = columns[1].segmented_control(
        "At", ["this snapshot", "8 along the run"], default="this snapshot", required=True,
        disabled=not chosen.along_runs,
    )  # fmt: skip
    at = step if step in captured else nearest_step(captured, step)
    steps = steps_for(chosen, captured, int(at or 0), whole != "this snapshot")
    store = context.reader.store.path
    arguments = chosen.arguments(store.absolute(), row.id, steps)
    lacking = chosen.needs_moments and "adam_v" not in _streams(context, row)
    if columns[2].button("Measure", type="primary", icon=":material/play_arrow:", disabled=lacking, width="stretch"):
        run = context.reader.run(row.id)
        context.jobs.submit(f"{chosen.title}, {label(row)}", arguments, row.id, chosen.progress(run, steps))
    if lacking:
        st.caption("This run did not capture Adam's moments (`capture: {moments: true}`).")
    st.caption(f"{chosen.help} The same on the command line:")
    shown = chosen.arguments(store, row.id, steps)
    st.code("landscape " + " ".join(f'"{part}"' if " " in part else part for part in shown), "bash", wrap_lines=True)
    job_list(context.jobs)


def _streams(context: Context, row: RunRow) -> list[str]:
    try:
        return context.reader.run(row.id).streams()
    except StoreError:
        return []


def _adapter(context: Context, row: RunRow, captured: list[int], step: int) -> None:
    left, right = st.columns([1, 2])
    with left:
        if step in captured and "full" not in (row.config.get("method"), row.config.get("adapter")):
            if st.button("Pack the adapter", icon=":material/archive:", help="A folder that `peft` loads, as a zip."):
                content = adapter_bytes(context.reader.run(row.id), step)
                st.download_button(
                    f"Save {len(content) / 1e6:.1f} MB", content, f"{row.id}-step{step}.zip", "application/zip",
                    on_click="ignore", icon=":material/download:",
                )  # fmt: skip
        else:
            st.caption("An adapter can be exported at a step with a snapshot.")
    with right:
        same = f"id == '{row.id}'"
        link("curves", "All curves of this run", where=same)
        link("sharpness", "Its sharpness along training", where=same)
        link("landscape", "Its landscape", where=same)


page("Snapshot", "One step of one run: what was logged, what was measured, and what could be.", show, with_filter=False)
