"""Every page on every kind of store: it says what is wrong and the rest of it works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from landscape.store import Store
from tests.app.example_stores import PAGES, STORES, crashes, growing, one_run, words
from tests.synthetic_runs import run, write

Open = Callable[..., AppTest]
Stores = Callable[[str], Path]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, store: str, stores: Stores, open_page: Open) -> None:
    test = open_page(stores(store), page)
    assert not crashes(test)
    assert len(test.title) == 1


@pytest.mark.parametrize("page", ["runs", "curves", "snapshot", "episodes", "sharpness", "landscape"])
def test_an_empty_store_says_how_to_fill_it(page: str, stores: Stores, open_page: Open) -> None:
    said = words(open_page(stores("empty"), page))
    assert "no runs yet" in said
    assert "landscape sweep" in said


def test_failures_are_named(stores: Stores, open_page: Open) -> None:
    test = open_page(stores("failed"), "runs")
    said = words(test)
    assert "RuntimeError: out of memory <b>now</b>" in [code.value.splitlines()[-1] for code in test.code]
    assert "config.yaml is not valid YAML" in said
    labels = " ".join(expander.label for expander in test.expander)
    assert "<b>" not in labels.replace(r"\<b\>", "")


@pytest.mark.parametrize("page", ["curves", "snapshot"])
def test_a_damaged_config_is_named_and_the_others_are_drawn(page: str, stores: Stores, open_page: Open) -> None:
    path = stores("failed")
    damaged = next(run.id for run in Store.open(path).runs() if "-s3-" in run.id)
    test = open_page(path, page, **({"run": damaged} if page == "snapshot" else {}))
    assert not crashes(test)
    assert "config.yaml is not valid YAML" in words(test).replace("\\", "")
    assert len(test.get("plotly_chart")) == (page == "curves")


def test_the_table_has_every_run(stores: Stores, open_page: Open) -> None:
    table = open_page(stores("200 runs"), "runs").dataframe[0].value
    assert len(table) == 200
    assert {"state", "rank", "progress", "loss", "eval"} <= set(table)


@pytest.mark.parametrize(
    ("where", "expected"), [("rank == 8", 100), ("method == mgpo and rank == 32", 50), ("rank == 7", None)]
)
def test_the_filter(where: str, expected: int | None, stores: Stores, open_page: Open) -> None:
    test = open_page(stores("200 runs"), "runs", where=where)
    if expected is None:
        assert "No run matches the filter" in words(test)
    else:
        assert len(test.dataframe[0].value) == expected


def test_a_wrong_filter_shows_all_runs_and_says_so(stores: Stores, open_page: Open) -> None:
    test = open_page(stores("200 runs"), "runs", where="rnak == 8")
    assert any("rank" in item.value for item in test.sidebar.error)
    assert len(test.dataframe[0].value) == 200


def test_groups(stores: Stores, open_page: Open) -> None:
    table = open_page(stores("200 runs"), "runs", group="rank").dataframe[0].value
    assert table["rank"].tolist() == ["8", "32"]
    assert table["runs"].sum() == 200


def test_curves_of_many_runs_say_which_are_drawn(stores: Stores, open_page: Open) -> None:
    test = open_page(stores("200 runs"), "curves")
    assert "60 newest of 200 runs" in words(test)


def test_a_link_restores_the_curves(stores: Stores, open_page: Open) -> None:
    test = open_page(stores("one run"), "curves", quantity="eval", smoothing="0.0", logy="true")
    figure = json.loads(test.get("plotly_chart")[0].proto.spec)
    assert figure["layout"]["yaxis"]["title"]["text"].startswith("eval loss")
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert test.slider[0].value == 0


def test_a_link_restores_the_snapshot(stores: Stores, open_page: Open) -> None:
    path = stores("200 runs")
    run_id = Store.open(path).runs()[120].id
    test = open_page(path, "snapshot", run=run_id, step="7")
    assert test.selectbox[0].value == run_id
    assert test.number_input[0].value == 7
    assert "after 7 of" in words(test)


def test_a_link_to_a_run_that_is_not_there(stores: Stores, open_page: Open) -> None:
    path = stores("one run")
    run_id = Store.open(path).runs()[0].id
    test = open_page(path, "snapshot", run=run_id[:-1] + "x", step="3")
    assert any("Did you mean" in item.value for item in test.error)
    assert len(test.dataframe) >= 1


def test_a_run_deleted_while_it_is_shown(tmp_path: Path, open_page: Open) -> None:
    import shutil

    path = tmp_path / "store"
    write([run(seed=0, max_steps=60), run(seed=1, max_steps=60)], path)
    test = open_page(path, "curves")
    shutil.rmtree(path / "runs" / Store.open(path).runs()[0].id)
    test.run()
    assert not crashes(test)
    assert len(test.get("plotly_chart")) == 1


def test_a_damaged_analysis_is_named_and_the_rest_works(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    store = one_run(path)
    (store.runs()[0].analysis_dir / "sharpness.parquet").write_bytes(b"not parquet")
    for page in ("curves", "sharpness", "snapshot"):
        test = open_page(path, page)
        assert not crashes(test)
        assert "sharpness.parquet" in words(test).replace("\\", "")
    assert len(open_page(path, "curves").get("plotly_chart")) == 1


def test_a_damaged_line_is_named(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    store = growing(path)
    running = next(item for item in store.runs() if item.status.state == "running")
    lines = running.path / "attempts" / "1" / "metrics.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b'"step":9', b'"step":8', 1))
    test = open_page(path, "curves")
    assert not crashes(test)
    assert "damaged" in words(test)


def test_a_growing_run_moves(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    store = growing(path)
    test = open_page(path, "runs")
    before = test.dataframe[0].value["step"].tolist()
    running = next(item for item in store.runs() if item.status.state == "running")
    running.set_status(step=70)
    after = test.run().dataframe[0].value["step"].tolist()
    assert max(before[:1]) == 50
    assert max(after[:1]) == 70


def test_a_store_that_vanished(tmp_path: Path, open_page: Open) -> None:
    test = open_page(tmp_path / "nothing", "runs")
    assert not crashes(test)
    assert any("does not exist" in item.value for item in test.error)


def test_names_are_text(tmp_path: Path, open_page: Open) -> None:
    """What a log's owner wrote is shown, not interpreted."""
    path = tmp_path / "<i>store"
    one_run(path)
    (path / "reproduction.csv").write_text("nothing,here\n1,2\n")
    test = open_page(path, "reproduction")
    assert any(r"\<i\>store" in item.value for item in test.sidebar.caption)
    assert any("no column" in item.value for item in test.error)
