"""Import: somebody's training log, its rebounds at once, and a place for it in the store."""

from __future__ import annotations

import hashlib
from typing import Any

import streamlit as st

from app.charts import draw, plain, show_table
from app.frame import Context, link, page, section
from app.logs import MOST_CURVES, episode_table, examine, log_figure, read_upload, sentence
from landscape.config.overrides import parse_assignments
from landscape.importers import Log, read_log
from landscape.importers.runs import import_log

UPLOAD_MEGABYTES = 64

_ABOUT = (
    "Drop a training log and see its rebounds, each with a p-value. Read: Trainer's trainer_state.json, CSV, JSONL, "
    "TensorBoard, W&B, MLflow. Nothing in a file is executed, and nothing is kept unless you say so."
)


@st.cache_resource(max_entries=4, show_spinner="Reading")
def _uploaded(name: str, digest: str, _content: bytes) -> Log:
    return read_upload(name, _content)


def show(context: Context) -> None:
    with section():
        log = _log()
        if log is None:
            return
        for note in log.notes:
            st.caption(plain(note))
        column, warmup, alpha = _settings(log)
    with section():
        tested = examine(log, column, warmup, alpha)
        for one in tested:
            name = f"**{plain(one.run)}**: " if len(tested) > 1 else ""
            st.markdown(f"{name}{plain(sentence(one, alpha))}")
        if len(tested) > 1:
            st.caption("Each run is tested by itself: the p-values are not adjusted for their number.")
        if len(log.select(column)) > MOST_CURVES:
            st.caption(f"The first {MOST_CURVES} runs are tested here; `landscape detect` tests all.")
        draw(log_figure(tested, alpha, f"{column} of {log.path.name}"), "log")
        table = episode_table(tested)
        if len(table):
            show_table(table, "candidates", "Candidates, most significant first", column_config=_columns())
    with section("Keep it", "As runs of this store, beside those trained here: curves, report and tables read them."):
        _keep(context, log, column)


def _log() -> Log | None:
    left, right = st.columns(2)
    file = left.file_uploader(
        "A log file", type=["json", "jsonl", "csv", "tsv", "txt", "db", "wandb"], max_upload_size=UPLOAD_MEGABYTES,
        help=f"At most {UPLOAD_MEGABYTES} MB.",
    )  # fmt: skip
    path = right.text_input(
        "Or the path of a folder or file on this machine", key="path", placeholder="runs/tensorboard",
        help="For TensorBoard, W&B and MLflow folders, and for event files.",
    )  # fmt: skip
    if file is not None:
        content = file.getvalue()
        return _uploaded(file.name, hashlib.sha256(content).hexdigest(), content)
    if path.strip():
        return read_log(path.strip())
    st.info(
        "No log at hand? `trainer_state.json` lies in every checkpoint folder that transformers' Trainer writes.",
        icon=":material/lightbulb:",
    )  # fmt: skip
    return None


def _settings(log: Log) -> tuple[str, float, float]:
    names = log.columns()
    usual = next((one.match("loss") for one in log.runs if one.match("loss")), names[0] if names else "loss")
    columns = st.columns([2, 1, 1])
    column = columns[0].selectbox("Column", names, index=names.index(usual) if usual in names else 0)
    warmup = columns[1].number_input(
        "Warm-up ends at step", 0, None, 0, help="A rise before it is the warm-up's and does not count."
    )
    alpha = columns[2].number_input(
        "Level α", 0.001, 0.5, 0.05, 0.01, format="%.3f", help="So often a curve without a rebound shows one by chance."
    )
    return column or "loss", float(warmup), float(alpha)


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "amplitude": column.NumberColumn("climb, unit of the log", format="%.3g"),
        "noise_units": column.NumberColumn("in noise units", format="%.1f"),
        "p": column.NumberColumn("p", format="%.2g"),
        **{name: column.NumberColumn(f"{name}, step", format="%d") for name in ("onset", "peak", "recovery")},
    }


def _keep(context: Context, log: Log, column: str) -> None:
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    text = left.text_input(
        "What the log does not say", placeholder="method=lora rank=16 lr=5e-4",
        help="Settings as key=value, with spaces between; what nobody says stays unknown.",
    )  # fmt: skip
    if right.button("Keep in the store", type="primary", icon=":material/save:", width="stretch"):
        done = import_log(log, context.reader.store, column=column, settings=parse_assignments(text.split()))
        for one in done:
            verb = "Kept" if one.new else "There already"
            st.success(plain(f"{verb}: {one.name}, {one.state} at step {one.step}."), icon=":material/check:")
        ids = ", ".join(f"'{one.run_id}'" for one in done)
        link("curves", "Their curves", where=f"id in [{ids}]")


page("Import", _ABOUT, show, with_filter=False)
