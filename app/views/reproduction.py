"""Reproduction: the papers' values beside ours, with the scale of ours and a verdict."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app.charts import plain, show_table
from app.frame import Context, page, section
from app.links import linked_rows, tell_rows
from app.verdicts import COLUMNS, SYMBOLS, Packed, find_table, packed_results, read_verdicts
from landscape.reproduction import Experiment, load_experiment, names
from landscape.reproduction.verdict import VERDICTS

_ABOUT = "What the papers report, what was measured here, at which scale, and whether the two agree. Misses included."
_SHOWN = ("verdict", "paper", "place", "quantity", "paper_value", "our_value", "our_sd", "scale")


def show(context: Context) -> None:
    chosen: dict[str, Any] | None = None
    own = False
    with section():
        path = find_table(context.reader.store.path)
        if path is None:
            _how_to(str(context.reader.store.path))
            return
        own = path.parent == context.reader.store.path
        table = read_verdicts(path)
        _counts(table)
        chosen = _table(table)
        whose = "this store" if own else "the results that ship with the toolkit"
        st.caption(
            plain(f"From {path.name} of {whose}. A value at another scale neither confirms nor refutes the paper's.")
        )
    if chosen is None:
        return
    with section("Behind this line"):
        _line(chosen)
    if (name := str(chosen.get("experiment"))) in _names():
        with section("The experiment"):
            _experiment(load_experiment(name), {} if own else packed_results())


def _counts(table: pd.DataFrame) -> None:
    found = Counter(map(str, table["verdict"]))
    known = [name for name in VERDICTS if name in found] + [name for name in found if name not in VERDICTS]
    for place, verdict in zip(st.columns(max(5, len(known))), known, strict=False):
        meaning = VERDICTS.get(verdict)
        about = f"{meaning[0].upper()}{meaning[1:]}." if meaning else None
        place.metric(_spelled(verdict), found[verdict], help=about)


def _spelled(verdict: object) -> str:
    return f"{SYMBOLS.get(str(verdict), '')} {verdict}".strip()


def _table(table: pd.DataFrame) -> dict[str, Any] | None:
    """The lines that the choices leave, and the one that is ticked."""
    choices = {"paper": "Paper", "place": "Figure or table", "verdict": "Verdict"}
    for place, (column, title) in zip(st.columns([2, 3, 3]), choices.items(), strict=True):
        offered = list(dict.fromkeys(table[column].astype(str)))
        wanted = place.multiselect(title, offered, key=column, bind="query-params", placeholder="all")
        table = table.loc[[str(value) in wanted for value in table[column]]] if wanted else table
    shown = table.loc[:, list(_SHOWN)].assign(verdict=list(map(_spelled, table["verdict"])))
    lines = list(map(str, table.index))
    event = show_table(
        shown, "reproduction", "Paper values beside ours",
        "Tick a line for the numbers behind its verdict, what was run, and the command that runs it again.",
        on_select="rerun", selection_mode="single-row", column_config=_columns(),
        selection_default=linked_rows("table-reproduction", "line", lines),
        height=min(560, 38 + 35 * max(1, len(shown))),
    )  # fmt: skip
    rows = [index for index in event["selection"]["rows"] if index < len(table)]
    tell_rows("line", [lines[index] for index in rows])
    return {str(key): value for key, value in table.iloc[rows[0]].items()} if rows else None


def _line(row: Mapping[str, Any]) -> None:
    st.markdown(f"**{plain(row['quantity'])}**: {plain(_spelled(row['verdict']))}")
    if isinstance(row.get("sentence"), str):
        st.markdown(plain(row["sentence"]))
    st.caption(plain(f"{row['paper']}, {row['place']}. Ours: {row['scale']}."))


def _experiment(experiment: Experiment, results: Mapping[str, list[Packed]]) -> None:
    st.markdown(f"**{plain(experiment.title)}** ({plain(experiment.source)}, {plain(experiment.place)})")
    st.markdown(f"Claim: {plain(experiment.claim)}")
    if experiment.notes:
        st.caption(plain(experiment.notes))
    for packed in results.get(experiment.name, []):
        st.markdown(f"At scale **{plain(packed.scale)}**: {plain(packed.about)}")
        if packed.picture is not None:
            st.image(str(packed.picture), caption=f"{experiment.title}, {packed.scale} scale", width="stretch")
    scale = next((packed.scale for packed in results.get(experiment.name, [])), "smoke")
    st.caption("Runs it again, and goes on where it stopped:")
    st.code(f"landscape reproduce {experiment.name} --scale {scale} --store STORE", "bash")


def _how_to(store: str) -> None:
    st.info("Nothing was reproduced in this store yet.", icon=":material/fact_check:")
    st.markdown(
        "One command trains an experiment of a paper at a scale that you can afford, analyzes and judges it, and "
        "writes `reproduction.csv` into the store, which this page shows."
    )
    titles = {name: load_experiment(name) for name in _names()}
    name = st.selectbox(
        "Experiment", list(titles), key="experiment", bind="query-params",
        format_func=lambda key: f"{key}: {titles[key].source}, {titles[key].place}. {titles[key].title}",
        help="A figure or table of a paper, each with its settings, what its text leaves open, and its scales.",
    )  # fmt: skip
    chosen = titles[name]
    st.markdown(f"Claim: {plain(chosen.claim)}")
    st.code(f"landscape reproduce {name} --scale smoke --store {shlex.quote(store)}", "bash", wrap_lines=True)
    scales = [{"scale": key, "what it runs": " ".join(one.about.split())} for key, one in chosen.scales.items()]
    st.table(pd.DataFrame(scales).set_index("scale"))
    with st.expander("The columns of `reproduction.csv`"):
        st.table(pd.DataFrame([{"column": key, "holds": about} for key, about in COLUMNS.items()]).set_index("column"))


@st.cache_data(show_spinner=False)
def _names() -> list[str]:
    return names()


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "place": column.TextColumn("where"),
        "quantity": column.TextColumn("what", width="large", help="What is claimed or compared, with its unit."),
        "paper_value": column.NumberColumn("paper's", format="%.4g", help="Empty where the paper reports no number."),
        "our_value": column.NumberColumn("ours", format="%.4g"),
        "our_sd": column.NumberColumn("± sd", format="%.2g", help="Standard deviation over seeds."),
        "scale": column.TextColumn("ours at", help="Scale, model, task, steps and seeds."),
    }


page("Reproduction", _ABOUT, show, with_filter=False)
