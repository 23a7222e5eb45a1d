"""Choices go into the address by their names, and come back from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest


def page() -> None:
    import streamlit as st

    from app.links import choose, choose_several

    names = {"a": "first", "b": "second", "c": "third"}
    one = choose(st, "selectbox", "one", list(names), "one", format_func=names.__getitem__)
    two = choose(st, "segmented_control", "two", list(names), "two", default="b", required=True)
    many = choose_several(st, "many", list(names), "many", default=["a", "b"])
    st.text(f"{one} {two} {','.join(many)}")


@pytest.fixture
def opened() -> Callable[..., AppTest]:
    def open_(**query: str) -> AppTest:
        test = AppTest.from_function(page, default_timeout=120)
        for key, value in query.items():
            test.query_params[key] = value
        return test.run()

    return open_


def said(test: AppTest) -> str:
    assert not test.exception
    return test.text[0].value


def test_defaults_leave_the_address_clean(opened: Callable[..., AppTest]) -> None:
    test = opened()
    assert said(test) == "a b a,b"
    assert not test.query_params


def test_the_address_decides(opened: Callable[..., AppTest]) -> None:
    assert said(opened(one="c", two="a", many="c")) == "c a c"
    assert said(opened(one="nothing", many="b,nothing")) == "a b b"


def test_choices_go_into_the_address(opened: Callable[..., AppTest]) -> None:
    test = opened()
    test.selectbox[0].set_value("c").run()
    assert said(test) == "c b a,b"
    assert test.query_params["one"] in ("c", ["c"])
    test.selectbox[0].set_value("a").run()
    assert "one" not in test.query_params


def test_a_new_address_wins_over_what_was_chosen(opened: Callable[..., AppTest]) -> None:
    test = opened()
    test.selectbox[0].set_value("c").run()
    test.query_params["one"] = "b"
    assert said(test.run()) == "b b a,b"
