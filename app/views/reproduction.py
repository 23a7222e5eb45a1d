"""Reproduction: the papers' values beside ours, with the scale of ours and a verdict."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.charts import plain, show_table
from app.frame import Context, page, section
from app.verdicts import COLUMNS, find_table, read_verdicts

_ABOUT = "What the papers report, what was measured here, at which scale, and whether the two agree. Misses included."


def show(context: Context) -> None:
    with section():
        path = find_table(context.reader.store.path)
        if path is None:
            _how_to()
            return
        table = read_verdicts(path)
        found = table["verdict"].value_counts()
        for place, (verdict, count) in zip(st.columns(max(4, len(found))), found.items(), strict=False):
            place.metric(str(verdict), int(count))
        wanted = st.multiselect("Verdicts", list(found.index), key="verdict", bind="query-params", placeholder="all")
        shown = table[table["verdict"].isin(wanted)] if wanted else table
        show_table(shown, "reproduction", "Paper values beside ours", column_config=_columns())
        st.caption(plain(f"From {path.name}. A value at another scale neither confirms nor refutes the paper's."))


def _how_to() -> None:
    st.info("This store holds no reproduction yet.", icon=":material/fact_check:")
    st.markdown(
        "This page shows `reproduction.csv` of the store, one line a value of a paper. To fill it, train the paper's "
        "experiment at your scale, analyze it, and write one line a value with these columns:"
    )
    st.dataframe(
        [{"column": name, "holds": about} for name, about in COLUMNS.items()],
        hide_index=True,
        alt="Columns of the file",
    )
    st.code("landscape sweep -c experiment.yaml --store STORE\nlandscape report STORE -o report.html", language="bash")


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "paper_value": column.NumberColumn("paper", format="%.4g"),
        "our_value": column.NumberColumn("ours", format="%.4g"),
        "our_sd": column.NumberColumn("± sd", format="%.2g", help="Over seeds."),
    }


page("Reproduction", _ABOUT, show, with_filter=False)
