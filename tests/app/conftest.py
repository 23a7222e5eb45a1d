"""Stores made once, and pages run without a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.frame import STORE_VARIABLE
from tests.app.example_stores import STORES

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The store of a name, made once; tests that change one make their own."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp("app") / name.replace(" ", "-")
            STORES[name](path)
            made[name] = path
        return made[name]

    return get


@pytest.fixture(autouse=True)
def own_main_module() -> Iterator[None]:
    """Streamlit puts its script in place of ``__main__``, which processes spawned by later tests would then run."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture
def open_page() -> Iterator[Callable[..., AppTest]]:
    """Runs a page on a store, with what its address holds."""
    before = os.environ.get(STORE_VARIABLE)

    def open_(store: Path, page: str = "runs", **query: str) -> AppTest:
        os.environ[STORE_VARIABLE] = str(store)
        test = AppTest.from_file(str(MAIN), default_timeout=240)
        if page != "runs":
            # Pages are known once the first has run; the cheapest is the table of verdicts.
            test.switch_page(f"views/{page}.py")
        for key, value in query.items():
            test.query_params[key] = value
        return test.run()

    yield open_
    os.environ.pop(STORE_VARIABLE, None)
    if before is not None:
        os.environ[STORE_VARIABLE] = before
