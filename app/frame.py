"""What every page has around it: the store, the filter, and errors that stop a part of the page and nothing else."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import streamlit as st

from app.charts import plain
from app.index import URGENCY, RunRow, filtered
from app.jobs import JobQueue
from app.reader import StoreReader
from app.shown import begin, keep_words
from landscape.errors import LandscapeError, UsageError

STORE_VARIABLE = "LANDSCAPE_APP_STORE"
"""Environment variable in which ``landscape app`` says which store; nothing outside it is read."""

SYMBOLS = {
    "damaged": "⚠", "failed": "✕", "running": "▶", "interrupted": "‖", "queued": "○", "diverged": "▲", "done": "✓",
}  # fmt: skip
"""States told apart without color."""

VIEWS = {name: f"views/{name}.py" for name in ("runs", "curves", "snapshot", "episodes", "sharpness", "landscape")}

_FILTER_HELP = (
    "Which runs, written with config keys: `rank>=64 and lr==5e-4`, `method in [lora, mgpo]`, `state==failed`. "
    "Empty: all runs."
)


@dataclass(frozen=True)
class Context:
    """What a page works on.

    Attributes:
        rows: every run of the store.
        shown: of these, the runs that the filter means.
        where: the filter, or the empty string.
    """

    reader: StoreReader
    rows: tuple[RunRow, ...]
    shown: list[RunRow]
    where: str

    @property
    def readable(self) -> list[RunRow]:
        """Of those shown, the runs whose settings are known; the others have no place in any figure."""
        return [row for row in self.shown if row.config]

    @property
    def unreadable(self) -> list[str]:
        """One line for each of the others."""
        return [f"{row.id}: {row.problem}" for row in self.shown if not row.config]

    @property
    def jobs(self) -> JobQueue:
        """Analyses queued from the pages, shared by all of them."""
        return job_queue()

    def row(self, run_id: str) -> RunRow | None:
        """The run of this id, if it is still there."""
        return next((row for row in self.rows if row.id == run_id), None)


@st.cache_resource(show_spinner=False)
def store_reader(path: str) -> StoreReader:
    """One reader a store, for all sessions."""
    return StoreReader(path)


@st.cache_resource(show_spinner=False)
def job_queue() -> JobQueue:
    """One queue a server: the machine's cores are shared too."""
    return JobQueue()


def page(title: str, about: str, show: Callable[[Context], None], *, with_filter: bool = True) -> None:
    """A page: its heading, what the store says, and ``show``, whose errors end up on the page."""
    st.title(title, anchor=False)
    st.caption(about)
    shown = begin(title, about)
    with section():
        path = os.environ.get(STORE_VARIABLE)
        if not path:
            raise UsageError(f"no store: start the dashboard with landscape app STORE (it sets {STORE_VARIABLE})")
        reader = store_reader(path)
        rows = reader.rows()
        with st.sidebar:
            where, chosen = _sidebar(reader, rows, with_filter)
            st.download_button(
                "Save this page", lambda: shown.html(reader.name, where), f"{title.lower()}.html", "text/html",
                key="save-page", icon=":material/save:", on_click="ignore", width="stretch",
                help="Everything that this page shows as one HTML file, to send to somebody; it opens offline.",
            )  # fmt: skip
        show(Context(reader, rows, chosen, where))


@contextlib.contextmanager
def section(title: str = "", help: str | None = None) -> Iterator[None]:
    """A part of a page; what goes wrong in it is said there, and the rest of the page works."""
    if title:
        st.subheader(title, help=help, anchor=False)
        keep_words(title, heading=True)
    try:
        yield
    except LandscapeError as error:
        st.error(plain(error), icon=":material/error:")
    except Exception as error:
        st.error(plain(f"This part of the page failed: {type(error).__name__}: {error}"), icon=":material/error:")
        with st.expander("For a bug report"):
            st.code(traceback.format_exc(), language=None)


def link(view: str, label: str, **query: object) -> None:
    """A link to another page with what it shows."""
    params = {key: str(value) for key, value in query.items() if value not in (None, "")}
    st.page_link(VIEWS[view], label=label, query_params=params, icon=":material/arrow_forward:")


def go(view: str, **query: object) -> None:
    """Open another page with what it shows."""
    st.switch_page(VIEWS[view], query_params={k: str(v) for k, v in query.items() if v not in (None, "")})


def nothing_to_show(context: Context, what: str, command: str) -> None:
    """Why a page is empty, and what fills it."""
    if not context.rows:
        st.info(
            "This store has no runs yet. Train some with `landscape sweep -c sweep.yaml --store STORE`, or bring a "
            "log on the Import page; this page fills by itself.", icon=":material/inbox:",
        )  # fmt: skip
    elif not context.shown:
        st.info("No run matches the filter.", icon=":material/filter_alt_off:")
    else:
        st.info(what, icon=":material/science:")
        st.code(command, language="bash")


def warn(lines: Sequence[str]) -> None:
    """What could not be read, named."""
    if lines:
        shown = "\n".join(f"- {plain(line)}" for line in lines[:5])
        more = f"\n- and {len(lines) - 5} more" if len(lines) > 5 else ""
        st.warning(f"Left out because it could not be read:\n{shown}{more}", icon=":material/warning:")


def counts(rows: Sequence[RunRow]) -> dict[str, int]:
    """Runs by state, those that need a look first."""
    found = Counter(row.state for row in rows)
    return {state: found[state] for state in URGENCY if found[state]}


def _sidebar(reader: StoreReader, rows: Sequence[RunRow], with_filter: bool) -> tuple[str, list[RunRow]]:
    where, shown = "", list(rows)
    if with_filter:
        where = st.text_input(
            "Filter runs", key="where", bind="query-params", placeholder="rank>=64 and lr==5e-4", help=_FILTER_HELP
        ).strip()
        try:
            shown = filtered(rows, where)
        except UsageError as error:
            st.error(plain(str(error).removeprefix("--where ")), icon=":material/filter_alt_off:")
        else:
            if where:
                st.caption(f"{len(shown)} of {len(rows)} runs")
    words = "  ".join(f"{SYMBOLS[state]} {count} {state}" for state, count in counts(rows).items())
    st.caption(f"Store **{plain(reader.name)}**: {words or 'no runs yet'}")
    return where, shown
