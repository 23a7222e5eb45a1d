"""Runs: where each stands, what is running now, how they differ, and what a loss costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app.charts import draw, plain, show_table
from app.exports import report_bytes
from app.frame import SYMBOLS, Context, counts, go, nothing_to_show, page, section
from app.index import RunRow, differing_keys
from app.links import choose, linked_rows, tell_rows
from app.reader import newest
from app.run_figures import COSTS, known_costs, label, pareto, scores
from landscape.plots.data import method_of
from landscape.report.page import duration

ALWAYS = ("method", "rank", "learning_rate", "seed")
_COSTS = {"time": "time in steps", "wall": "wall time", "memory": "peak memory", "gpu": "GPU memory", "rank": "rank"}
MOST_RUNNING = 8
MOST_REPORTED = 200


def show(context: Context) -> None:
    if not context.rows:
        nothing_to_show(context, "", "")
        _running(context)
        return
    _counts(context)
    _running(context)
    with section("All runs"):
        _table(context)
    _failures(context.shown)
    with section("What a result costs", "The dotted line joins the runs that no other run beats in both."):
        _pareto(context)
    with section():
        _report(context)


def _counts(context: Context) -> None:
    found = counts(context.shown)
    columns = st.columns(max(4, len(found) + 1))
    columns[0].metric("runs", len(context.shown))
    for column, (state, count) in zip(columns[1:], found.items(), strict=False):
        column.metric(f"{SYMBOLS[state]} {state}", count)


def _running(context: Context) -> None:
    seen = {row.id: row.state for row in context.rows}

    @st.fragment(run_every=3)
    def tick() -> None:
        with section():
            rows = context.reader.rows()
            if {row.id: row.state for row in rows} != seen:
                st.rerun()  # the table and the counts above are old too
            running = [row for row in rows if row.state == "running"]
            if running:
                st.subheader("Running now", anchor=False, help="Read every few seconds from the ends of the files.")
            for row in running[:MOST_RUNNING]:
                st.progress(row.progress, text=plain(_progress(row)))
            if len(running) > MOST_RUNNING:
                st.caption(f"and {len(running) - MOST_RUNNING} more")

    tick()


def _progress(row: RunRow) -> str:
    parts = [f"{label(row)}: step {row.step} of {row.max_steps}"]
    if row.tail.loss is not None:
        parts.append(f"loss {row.tail.loss:.4g}")
    if row.tail.seconds:
        parts.append(f"about {duration(row.tail.seconds * (row.max_steps - row.step))} left")
    return ", ".join(parts)


def _table(context: Context) -> None:
    rows = context.shown
    if not rows:
        nothing_to_show(context, "", "")
        return
    differing = differing_keys(rows)
    group = choose(
        st.columns([1, 2])[0], "selectbox", "Group by", ["", *dict.fromkeys([*ALWAYS, *differing])], "group",
        format_func=lambda key: key or "no grouping", help="One line for each value of a setting, with the mean of its "
        "finished runs' last eval loss and their standard deviation.",
    )  # fmt: skip
    if group:
        show_table(grouped(rows, group), "groups", f"Runs grouped by {group}")
        return
    keys, implied = telling(rows, [*ALWAYS, *(key for key in differing if key not in (*ALWAYS, "adapter"))])
    event = show_table(
        table(rows, keys), "runs", "Runs with state, progress and last losses",
        "Tick runs at the left to compare or open them. A click on a heading sorts." + _implied_note(implied),
        on_select="rerun",
        selection_mode="multi-row", selection_default=linked_rows("table-runs", "chosen", [row.id for row in rows]),
        column_config=_columns(), height=min(440, 38 + 35 * len(rows)),
    )  # fmt: skip
    chosen = [rows[index] for index in event["selection"]["rows"] if index < len(rows)]
    tell_rows("chosen", [row.id for row in chosen])
    _chosen(chosen)


def telling(rows: Sequence[RunRow], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of some settings those that say something new, and those that go with one before them, as alpha with the rank."""
    kept: dict[str, list[int]] = {}
    implied = []
    for key in keys:
        values = [repr(_setting(row, key)) for row in rows]
        order = {value: number for number, value in enumerate(dict.fromkeys(values))}
        parts = [order[value] for value in values]
        if key not in ALWAYS and parts in kept.values():
            implied.append(key)
        else:
            kept[key] = parts
    return list(kept), implied


def _setting(row: RunRow, key: str) -> Any:
    """Of the method, the whole name: `mgpo-dora`."""
    return method_of(row.config) if key == "method" and row.config else row.config.get(key)


def _implied_note(keys: Sequence[str]) -> str:
    return f" Not shown, as they go with another setting: {', '.join(keys)}." if keys else ""


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "progress": column.ProgressColumn("progress", format="percent", min_value=0, max_value=1, width="small"),
        "loss": column.NumberColumn("training loss", format="%.4f", help="The last step's, clean, in nats a token."),
        "eval": column.NumberColumn("eval loss", format="%.4f", help="The last on held-out examples, nats a token."),
        "se": column.NumberColumn("± se", format="%.4f", help="Standard error of the eval loss over examples."),
        "seconds": column.NumberColumn("wall time, s", format="%.0f", help="First start to last stop."),
        "learning_rate": column.NumberColumn("lr", format="%.6g", help="Peak learning rate."),
        "method": column.TextColumn("method", help="The method, and the adapter below it where it has one of its own."),
        "error": column.TextColumn("what went wrong", width="medium"),
        "run": column.TextColumn("run", width="medium"),
    }


def table(rows: Sequence[RunRow], keys: Sequence[str]) -> pd.DataFrame:
    """One line a run: state, settings, progress, losses, time and error; settings of several values come last."""
    plain_keys = [key for key in keys if not any(isinstance(row.config.get(key), dict | list) for row in rows)]
    made = pd.DataFrame(
        {
            "state": [f"{SYMBOLS[row.state]} {row.state}" for row in rows],
            **{key: [_setting(row, key) for row in rows] for key in plain_keys},
            "progress": [row.progress for row in rows],
            "step": [row.step for row in rows],
            "loss": [row.tail.loss for row in rows],
            "eval": [row.tail.eval_loss for row in rows],
            "se": [row.tail.eval_error for row in rows],
            "seconds": [row.seconds for row in rows],
            "error": [_first_words(row) for row in rows],
            **{key: [_spell(row.config.get(key)) for row in rows] for key in keys if key not in plain_keys},
            "run": [row.id for row in rows],
        }
    )
    return made if any(made["error"]) else made.drop(columns="error")


def grouped(rows: Sequence[RunRow], key: str) -> pd.DataFrame:
    """One line a value of a setting: how many runs in which state, and the finished ones' eval loss."""
    values = {_spell(_setting(row, key)): _setting(row, key) for row in rows}
    lines = []
    for name in sorted(values, key=lambda name: _sort_key(values[name])):
        own = [row for row in rows if _spell(_setting(row, key)) == name]
        losses = [row.tail.eval_loss for row in own if row.state == "done" and row.tail.eval_loss is not None]
        finite = [loss for loss in losses if np.isfinite(loss)]
        scored = [(row.tail.eval_loss, row.id, row) for row in own if row.tail.eval_loss in finite]
        best = min(scored, key=lambda item: (item[0] or 0.0, item[1]))[2] if scored else None
        lines.append(
            {
                key: name, "runs": len(own), **counts(own),
                "mean eval loss": float(np.mean(finite)) if finite else None,
                "± sd": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
                "best": None if best is None else best.tail.eval_loss, "best run": "" if best is None else label(best),
            }
        )  # fmt: skip
    return pd.DataFrame(lines).fillna(dict.fromkeys(SYMBOLS, 0))


def _chosen(rows: Sequence[RunRow]) -> None:
    if not rows:
        return
    left, middle, _ = st.columns([1, 1, 3])
    ids = ", ".join(f"'{row.id}'" for row in rows)
    if left.button("Draw their curves", icon=":material/show_chart:", width="stretch"):
        go("curves", where=f"id in [{ids}]")
    if middle.button("Open the last snapshot", icon=":material/my_location:", disabled=len(rows) != 1, width="stretch"):
        go("snapshot", run=rows[0].id, step=rows[0].step)
    keys = differing_keys(rows) if len(rows) > 1 else list(rows[0].config)
    st.markdown(f"**{'Settings in which they differ' if len(rows) > 1 else 'Settings'}**")
    values = [{"setting": key, **{row.id: _spell(row.config.get(key)) for row in rows}} for key in keys]
    frame = pd.DataFrame(values)
    show_table(frame, "settings", "Settings of the chosen runs") if keys else st.caption("None.")


def _failures(rows: Sequence[RunRow]) -> None:
    wrong = [row for row in rows if row.state in ("failed", "damaged") or (row.status and row.status.error)]
    if not wrong:
        return
    with section("What went wrong"):
        for row in wrong[:20]:
            with st.expander(plain(f"{SYMBOLS[row.state]} {row.state}: {label(row)}: {_first_words(row)}")):
                st.code(row.problem or (row.status.error if row.status else "") or "", language=None, wrap_lines=True)
                st.caption(plain(row.id))
        if len(wrong) > 20:
            st.caption(f"and {len(wrong) - 20} more: filter with `state==failed`")


def _pareto(context: Context) -> None:
    rows = context.readable
    costs, offered = known_costs(rows), scores(rows)
    if not costs:
        st.caption("No run that is shown has been trained yet.")
        return
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    name = choose(
        left, "selectbox", "Result", list(offered), "score", format_func=lambda key: offered[key].axis,
        help="The last one of each run, in evaluation mode where it is held out.",
    )  # fmt: skip
    cost = choose(
        right, "segmented_control", "Cost", costs, "cost", required=True,
        format_func=_COSTS.__getitem__,
        help=" ".join(f"**{COSTS[key].axis}**: {COSTS[key].help}" for key in costs),
    )  # fmt: skip
    figure = pareto(rows, cost, offered[name])
    if figure.panels[0].curves:
        draw(figure, "pareto", heading=False)
    else:
        st.caption("No run that is shown has both numbers yet.")


def _report(context: Context) -> None:
    chosen, left_out = newest(context.readable, MOST_REPORTED)
    st.download_button(
        "These runs as a report", lambda: report_bytes([context.reader.data(r) for r in chosen], context.reader.name,
        context.where), "report.html", "text/html", icon=":material/summarize:", on_click="ignore",
        help="One HTML file with every figure and table, to send to somebody; it opens without a network. " + left_out,
    )  # fmt: skip


def _first_words(row: RunRow) -> str:
    text = row.problem or (row.status.error if row.status else None) or ""
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


def _spell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_spell(item)}" for key, item in value.items()) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _sort_key(value: object) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


page("Runs", "Every run of the store: where it stands, how it ended, and how its settings differ.", show)
