"""Choices that a link restores, by the names that code and stores give them rather than by what the page calls them.

Streamlit's own binding puts a choice into the address by its label, which changes with a run's state or our words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

_SEEN = "links seen"


def choose(
    place: DeltaGenerator | Any,
    widget: str,
    label: str,
    options: Sequence[str],
    key: str,
    *,
    default: str | None = None,
    always: bool = False,
    format_func: Callable[[str], str] = str,
    **more: Any,
) -> str:
    """One of the options; the address holds it as ``key=option`` unless it is the default, which is the first.

    Args:
        place: ``st`` or a column of it.
        widget: ``selectbox`` or ``segmented_control``.
        always: hold the default too, since it is another one tomorrow.
    """
    usual = options[0] if default is None else default
    _follow(key, usual, lambda raw: raw if raw in options else usual, lambda value: value in options)
    value = getattr(place, widget)(label, options, key=key, format_func=format_func, **more)
    return _publish(key, value or usual, None if always else usual, str)


def choose_number(place: DeltaGenerator | Any, label: str, key: str, *, default: int, **more: Any) -> int:
    """A whole number from 0 on, which the address always holds."""

    def parse(raw: str | None) -> int:
        return int(raw) if raw is not None and raw.isascii() and raw.isdigit() and len(raw) < 16 else default

    _follow(key, default, parse, lambda value: True)
    value = place.number_input(label, 0, None, key=key, **more)
    return _publish(key, int(value), None, str)


def choose_several(
    place: DeltaGenerator | Any,
    label: str,
    options: Sequence[str],
    key: str,
    *,
    default: Sequence[str],
    format_func: Callable[[str], str] = str,
    **more: Any,
) -> list[str]:
    """Some of the options; the address holds them with commas between."""
    usual = list(default)

    def parse(raw: str | None) -> list[str]:
        return usual if raw is None else [part for part in raw.split(",") if part in options]

    _follow(key, usual, parse, lambda value: all(part in options for part in value))
    value = place.multiselect(label, options, key=key, format_func=format_func, **more)
    return _publish(key, value, usual, ",".join)


def linked_rows(table: str, key: str, names: Sequence[str]) -> dict[str, Any]:
    """What a table, by its widget's key, selects at first: the rows whose names the address holds, with commas."""
    default = f"{table} at first"
    if table not in st.session_state:
        wanted = str(st.query_params.get(key, "")).split(",")
        st.session_state[default] = [index for index, name in enumerate(names) if name in wanted]
    rows = [index for index in st.session_state.get(default, ()) if index < len(names)]
    return {"selection": {"rows": rows}}


def tell_rows(key: str, names: Sequence[str]) -> None:
    """Put the names of the selected rows into the address."""
    if names:
        st.query_params[key] = ",".join(names)
    else:
        st.query_params.pop(key, None)


def _follow(key: str, usual: Any, parse: Callable[[str | None], Any], fits: Callable[[Any], bool]) -> None:
    """Take the address's value where it is new, and the usual one where the widget's no longer is an option."""
    raw = st.query_params.get(key)
    seen = st.session_state.setdefault(_SEEN, {})
    if key not in st.session_state or raw != seen.get(key):
        st.session_state[key] = parse(raw)
    elif not fits(st.session_state[key]):
        st.session_state[key] = usual


def _publish(key: str, value: Any, usual: Any, spell: Callable[[Any], str]) -> Any:
    raw = None if value == usual else spell(value)
    if raw is None:
        st.query_params.pop(key, None)
    else:
        st.query_params[key] = raw
    st.session_state[_SEEN][key] = raw
    return value
