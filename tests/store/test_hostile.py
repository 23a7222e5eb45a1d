"""A store from a stranger: whatever it holds, commands end in order, harm nothing, and show the run that is sound."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from landscape.errors import LandscapeError, StoreError, UsageError
from landscape.store import Store
from landscape.store.verify import verify
from tests.command_line import invoke, payload
from tests.store.full_runs import add, contents
from tests.store.hostile_runs import ATTACKS, ESCAPE, HARMLESS, configured, pickled

SECONDS, MEMORY = 300, 1_500_000_000
"""Bounds that an unmended bomb passes by far: seconds of a command, bytes that the process grows by in it."""


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """What a link could lead to: files and folders that would do in a store."""
    folder = tmp_path_factory.mktemp("outside")
    run = add(Store.create(folder / "own"), "secret")
    (run.path / "attempts/1").rename(folder / "attempt")
    (run.path / "analysis").rename(folder / "analysis")
    for name in ("config.yaml", "status.json"):
        (folder / name).write_bytes((run.path / name).read_bytes())
    (folder / "table.parquet").write_bytes((run.path / "metrics.parquet").read_bytes())
    for name in ("metrics.jsonl", "base.safetensors"):
        (folder / name).write_bytes((folder / "attempt" / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def strange(tmp_path_factory, outside) -> Path:
    """A sound run, and one for each attack."""
    store = Store.create(tmp_path_factory.mktemp("strange") / "store")
    add(store, "sound")
    for seed, (name, attack) in enumerate(ATTACKS.items()):
        run = add(store, f"x-{name}", seed=seed + 1, steps=2)
        run.path.joinpath("optimizer.pt").write_bytes(pickled(outside))
        attack(run, outside)
    (store.path / "runs" / "link-run").symlink_to(outside / "own" / "runs" / "secret")
    (store.path / "runs" / "a b; rm -rf ~").mkdir()
    (store.path / "runs" / "a b; rm -rf ~" / "config.yaml").write_text("x: 1")
    return store.path


@pytest.fixture(autouse=True)
def nothing_happened_outside(outside):
    before = contents(outside)
    yield
    assert contents(outside) == before
    assert not (outside / "unpickled").exists(), "something was unpickled, or a tag was obeyed"


def bounded(*arguments: object, codes: tuple[int, ...] = (0,)):
    """Call a command within bounds of time and memory; it ends in order."""
    process, start = psutil.Process(), time.monotonic()
    before, sizes, ended = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = invoke(*arguments)
    finally:
        ended.set()
        watcher.join()
    assert result.exit_code in codes, f"{arguments}: {result.output[-2000:]}\n{result.exception!r}"
    assert time.monotonic() - start < SECONDS
    assert max(sizes) - before < MEMORY
    return result


def test_status(strange):
    said = payload(bounded("status", strange, "--json", "--limit", "0"))
    states = {row["run_id"]: row["state"] for row in said["runs"]}
    assert states["sound"] == "done"
    assert len(states) == len(ATTACKS) + 1
    assert "link-run" not in states
    table = bounded("status", strange, "--limit", "0").stdout
    assert "sound" in table
    assert "\x1b]0;" not in table
    bounded("status", strange, "--where", "rank>=1")


def test_verify(strange):
    said = payload(bounded("verify", strange, "--json", codes=(3,)))
    found = {item["run"] for item in said["findings"]} | {item["file"].rpartition("/")[2] for item in said["findings"]}
    assert "sound" not in found
    expected = {f"x-{name}" for name in ATTACKS if not name.startswith(HARMLESS)}
    expected -= {"x-huge-order", "x-pickle-order"}
    assert expected - found == set()
    assert {"n9-seed9.npy", "n7-seed7.npy", "link-run", "a b; rm -rf ~"} <= found
    assert ESCAPE[:2] not in bounded("verify", strange, codes=(3,)).stdout


def test_report(strange, tmp_path):
    bounded("report", strange, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "sound" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_figures(strange, tmp_path):
    bounded("figures", strange, "-o", tmp_path, "--format", "svg,html,csv")
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert path.suffix == ".csv" or "<script>alert" not in text
        assert path.suffix == ".csv" or "<img src=x" not in text


def test_analyze(strange):
    bounded("analyze", "episodes", strange, codes=(0, 2, 3))
    bounded("analyze", "sharpness", strange, "--where", "id=='x-words-config'", codes=(2, 3))


def test_maintenance(strange, tmp_path):
    bounded("prune", strange, "--policy", "every:2", codes=(0, 3))
    said = payload(bounded("pack", strange, "-o", tmp_path / "packed", "--json", codes=(3,)))
    assert "sound" not in said["left_out"]
    packed = tmp_path / "packed"
    assert not any(path.is_symlink() or path.is_fifo() for path in packed.rglob("*"))
    said = payload(bounded("merge", strange, "--into", tmp_path / "merged", "--json", codes=(3,)))
    assert {item["run_id"]: item["action"] for item in said["runs"]}["sound"] == "copied"
    assert not any(path.is_symlink() or path.is_fifo() for path in (tmp_path / "merged").rglob("*"))


def test_worker(strange):
    """What it may take, it takes; the rest neither stops it nor is waited for."""
    before = {run.id for run in Store.open(strange).runs()}
    bounded("worker", strange, "--idle-timeout", "0", "--where", "id=='sound'")
    result = bounded("worker", strange, "--idle-timeout", "0", "--max-runs", "0")
    assert "runs taken" in result.output
    assert {run.id for run in Store.open(strange).runs()} == before


def test_repair_and_prune_touch_nothing_outside(outside, tmp_path):
    store = Store.create(tmp_path / "store")
    for name in ("link-metrics", "link-attempt", "link-analysis", "link-parquet", "link-base", "link-status"):
        run = add(store, f"x-{name}", steps=2, state="interrupted")
        ATTACKS[name](run, outside)
    verify(store, repair=True)
    bounded("prune", store.path, "--policy", "last", "--yes", codes=(0, 3))


def test_what_the_dashboard_reads(strange):
    from app.reader import StoreReader

    reader = StoreReader(strange)
    rows = {row.id: row for row in reader.rows()}
    assert rows["sound"].state == "done"
    for name, row in rows.items():
        try:
            data = reader.with_slices(row)
        except LandscapeError:
            continue
        if name == "sound":
            assert len(data.metrics) == 12
            assert data.problems == ()


def test_a_run_does_not_bring_its_own_code(tmp_path, outside):
    """``trust_remote_code`` in a stranger's config: analyzing the run would run what lies beside the model."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}))
    (model / "evil.py").write_text(f"import os; os.mkdir('{outside}/unpickled')")
    run = add(Store.create(tmp_path / "store"), "evil", steps=2)
    (run.analysis_dir / "sharpness.parquet").unlink()
    configured(run, model=str(model), model_kwargs={"trust_remote_code": True})
    result = bounded("analyze", "sharpness", tmp_path / "store", codes=(2, 3))
    assert "LANDSCAPE_TRUST_REMOTE_CODE" in result.output


def test_names_of_runs_and_streams_are_never_paths(strange):
    store = Store.open(strange)
    for name in ("../x", "a/b", ".."):
        with pytest.raises((UsageError, StoreError)):
            store.get(name)
        with pytest.raises(UsageError, match="is not a plain name"):
            store.run_path(name)


def test_aliases_within_reason_are_read(tmp_path):
    from landscape.config import read_yaml

    path = tmp_path / "sweep.yaml"
    path.write_text("a: &a {rank: 8, lr: 2e-4}\nb: {<<: *a, rank: 16}\nc: [*a, *a]\nd: 2026-01-01\n")
    values = read_yaml(path)
    assert values["b"] == {"rank": 16, "lr": 2e-4}
    assert values["c"] == [values["a"]] * 2
    assert values["d"] == "2026-01-01"
    assert yaml.safe_load(path.read_text())["b"] == {"rank": 16, "lr": "2e-4"}


@pytest.mark.parametrize("name", ["runs", "orders", "base_loss", "analysis", "sweeps"])
def test_no_folder_of_a_store_lies_elsewhere(tmp_path, outside, name):
    store = Store.create(tmp_path / "store")
    shutil.rmtree(store.path / name, ignore_errors=True)
    (store.path / name).symlink_to(outside)
    with pytest.raises(StoreError, match=f"{name} leads out of the store"):
        Store.open(store.path)
