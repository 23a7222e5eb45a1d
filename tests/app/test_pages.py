"""Every page on every kind of store: it says what is wrong and the rest of it works."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from landscape.store import Store
from tests.app.example_stores import PAGES, STORES, crashes, growing, one_run, words
from tests.app.test_command import DEMO
from tests.synthetic_runs import run, write
from tests.synthetic_slices import keep, slice_file

Open = Callable[..., AppTest]
Stores = Callable[[str], Path]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, store: str, stores: Stores, open_page: Open) -> None:
    test = open_page(stores(store), page)
    assert not crashes(test)
    assert len(test.title) == 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with zipfile.ZipFile(DEMO) as archive:
        archive.extractall(folder)
    return folder / "demo"


CHARTS = {"runs": 1, "curves": 1, "snapshot": 1, "episodes": 1, "sharpness": 4, "landscape": 3}


@pytest.mark.parametrize("page", PAGES)
def test_the_demo_shows_everything_and_no_error(page: str, demo: Path, open_page: Open) -> None:
    test = open_page(demo, page)
    assert not crashes(test)
    assert not test.error
    assert not test.warning
    assert len(test.get("plotly_chart")) >= CHARTS.get(page, 0)


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


def test_a_link_restores_the_chosen_runs(stores: Stores, open_page: Open) -> None:
    path = stores("200 runs")
    chosen = [item.id for item in Store.open(path).runs()[5:7]]
    test = open_page(path, "runs", chosen=",".join(chosen))
    assert "Settings in which they differ" in words(test)
    settings = test.dataframe[1].value
    assert set(settings) == {"setting", *chosen}
    assert "seed" in settings["setting"].tolist()


def test_a_link_to_a_run_that_is_not_there(stores: Stores, open_page: Open) -> None:
    path = stores("one run")
    run_id = Store.open(path).runs()[0].id
    test = open_page(path, "snapshot", run=run_id[:-1] + "x", step="3")
    assert any("Did you mean" in item.value for item in test.error)
    assert len(test.dataframe) >= 1


@pytest.mark.parametrize("page", ["runs", "curves", "snapshot", "episodes", "sharpness"])
def test_a_run_deleted_while_it_is_shown(page: str, tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    store = write([run(seed=0, max_steps=60, sharp=True), run(seed=1, max_steps=60, sharp=True)], path)
    gone = store.runs()[0]
    test = open_page(path, page, **({"run": gone.id} if page == "snapshot" else {}))
    shutil.rmtree(gone.path)
    test.run()
    assert not crashes(test)
    assert gone.id not in " ".join(str(table.value) for table in test.dataframe)
    if page == "snapshot":
        assert any("which this store does not have" in item.value for item in test.error)
    if page in ("curves", "sharpness"):
        assert len(test.get("plotly_chart")) >= 1


def test_a_damaged_analysis_is_named_and_the_rest_works(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    store = one_run(path)
    (store.runs()[0].analysis_dir / "sharpness.parquet").write_bytes(b"not parquet")
    for page in ("curves", "sharpness", "snapshot"):
        test = open_page(path, page)
        assert not crashes(test)
        assert "sharpness.parquet" in words(test).replace("\\", "")
    assert len(open_page(path, "curves").get("plotly_chart")) == 1


def test_a_damaged_slice_is_named_and_the_rest_works(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    store = one_run(path)
    own = store.runs()[0]
    keep(store, slice_file(own.id, dims=2, step=60), slice_file(own.id, dims=1, step=60))
    (own.analysis_dir / "slice2d-damaged.npz").write_bytes(b"not a zip")
    test = open_page(path, "landscape")
    assert not crashes(test)
    assert "slice2d-damaged.npz" in words(test).replace("\\", "")
    assert len(test.get("plotly_chart")) == 2


@pytest.mark.parametrize("name", ["", "metrics.parquet", "config.yaml", "analysis/sharpness.parquet"])
def test_links_out_of_the_store_are_not_followed(name: str, tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    own = one_run(path).runs()[0]
    target = own.path / name if name else own.path
    target.rename(tmp_path / "outside")
    target.symlink_to(tmp_path / "outside")
    test = open_page(path, "snapshot")
    assert not crashes(test)
    assert "leads out of the store and is not read" in words(test).replace("\\", "")


def test_a_link_cannot_have_the_import_page_read_a_file(tmp_path: Path, stores: Stores, open_page: Open) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{i},{i}\n" for i in range(50)))
    test = open_page(stores("one run"), "importing", path=str(tmp_path / "log.csv"))
    assert test.text_input(key="path").value == ""
    assert not test.get("plotly_chart")
    test.text_input(key="path").set_value(str(tmp_path / "log.csv")).run()
    assert len(test.get("plotly_chart")) == 1


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


@pytest.mark.parametrize("settings", [{"method": "full"}, {"method": "mgpo", "adapter": "full"}])
def test_full_fine_tuning_has_no_adapter_to_export(settings: dict[str, str], tmp_path: Path, open_page: Open) -> None:
    import torch

    from landscape.store import SnapshotLayout

    path = tmp_path / "store"
    own = write([run(max_steps=60, **settings)], path).runs()[0]
    tensors = {"a": torch.zeros(2)}
    with own.begin_attempt() as attempt:
        writer = attempt.snapshot_writer("params", SnapshotLayout.from_tensors(tensors))
        for step in (0, 40):
            writer.put(step, tensors)
    own.set_status(step=60)
    test = open_page(path, "snapshot", run=own.id, step="40")
    assert not crashes(test)
    said = words(test)
    assert "An adapter can be exported" in said
    assert not any(button.label == "Pack the adapter" for button in test.button)
    assert "One of 2 snapshots, from step 0 to 40" in said
    assert any(button.label == "Measure" for button in test.button)


def test_methods_over_an_adapter_have_their_whole_name(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "store"
    write([run(method="mgpo", max_steps=60), run(method="mgpo", adapter="dora", seed=1, max_steps=60)], path)
    test = open_page(path, "runs")
    assert sorted(test.dataframe[0].value["method"]) == ["mgpo", "mgpo-dora"]
    assert open_page(path, "runs", group="method").dataframe[0].value["method"].tolist() == ["mgpo", "mgpo-dora"]


def test_a_reproduction_is_read_line_by_line(tmp_path: Path, open_page: Open) -> None:
    from landscape.reproduction.results import TABLE, verdicts, write_table
    from tests.reproduction.test_page import result

    path = tmp_path / "store"
    Store.create(path)
    rows = verdicts(result())
    write_table(rows, path / TABLE)
    test = open_page(path, "reproduction")
    assert not crashes(test)
    assert len(test.dataframe[0].value) == len(rows)
    assert "of this store" in words(test)
    assert {metric.label.split(" ", 1)[1] for metric in test.metric} == {row.verdict for row in rows}
    only = open_page(path, "reproduction", verdict=rows[0].verdict)
    assert len(only.dataframe[0].value) == sum(row.verdict == rows[0].verdict for row in rows)


def test_without_a_reproduction_the_page_has_the_command(
    tmp_path: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import verdicts

    monkeypatch.setattr(verdicts, "find_table", lambda store: None)
    path = tmp_path / "my store"
    Store.create(path)
    test = open_page(path, "reproduction")
    assert not crashes(test)
    commands = [item.value for item in test.code]
    assert any(c.startswith("landscape reproduce ") and c.endswith(f"--store '{path}'") for c in commands)
    name = test.selectbox[0].options.index(next(o for o in test.selectbox[0].options if o.startswith("mgpo2:")))
    test.selectbox[0].select_index(name).run()
    assert test.code[0].value.startswith("landscape reproduce mgpo2 --scale smoke")
