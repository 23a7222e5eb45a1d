"""``landscape app``: what it starts, what it refuses, and the demo that it ships."""

from __future__ import annotations

import socket
import zipfile
from pathlib import Path

import pytest

from app.frame import STORE_VARIABLE
from landscape.analysis.tables import read_rows
from landscape.cli import dashboard
from landscape.errors import UsageError
from landscape.store import Store
from landscape.store.slices import joint_slices_dir, read_slice, slice_files
from tests.command_line import invoke

DEMO = Path(dashboard.__file__).resolve().parents[1] / "assets" / "demo-store.zip"


def test_the_server_is_this_machines_alone_and_says_nothing_to_anybody() -> None:
    flags = dashboard.command(Path("main.py"), 8600, browser=False)
    for flag in (
        "--server.address=127.0.0.1", "--browser.gatherUsageStats=false", "--server.headless=true",
        "--server.maxUploadSize=64", "--server.port=8600", "--client.showErrorDetails=none",
    ):  # fmt: skip
        assert flag in flags
    assert not any("enableXsrfProtection" in flag or "enableCORS" in flag for flag in flags)


def test_the_app_reads_the_variable_that_the_command_sets() -> None:
    assert dashboard.STORE_VARIABLE == STORE_VARIABLE


@pytest.mark.parametrize("arguments", [["nowhere"], ["nowhere", "--json"]])
def test_no_store(arguments: list[str], tmp_path: Path) -> None:
    result = invoke("app", tmp_path / arguments[0], *arguments[1:])
    assert result.exit_code == 2
    assert "does not exist" in result.output


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    Store.create(tmp_path / "store")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke("app", tmp_path / "store", "--port", port)
        assert result.exit_code == 2
        assert f"--port {port}: not free" in result.output
        assert dashboard._port(None) != port


def test_without_streamlit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'lora-landscape\[app\]'"):
        dashboard.app.__wrapped__(store=tmp_path, port=None, browser=False, as_json=False)


def test_the_demo_is_small_and_has_everything(tmp_path: Path) -> None:
    assert DEMO.stat().st_size <= 3_000_000
    with zipfile.ZipFile(DEMO) as archive:
        archive.extractall(tmp_path)
    store = Store.open(tmp_path / "demo")
    runs = store.runs()
    assert {run.config.method for run in runs} == {"lora", "ggpo", "mgpo"}
    cells = {(run.config.method, run.config.rank, run.config.learning_rate) for run in runs}
    seeds = [(run.config.method, run.config.rank, run.config.learning_rate, run.config.seed) for run in runs]
    assert sorted(seeds) == sorted((*cell, seed) for cell in cells for seed in range(3))
    assert {run.status.state for run in runs} == {"done"}
    assert all(len(run.metrics()) == run.config.max_steps for run in runs)
    assert all(run.status.host is None for run in runs)
    tests = {run.id: read_rows(run.analysis_dir / "episodes.parquet", ("q_value",)) for run in runs}
    assert all(tests.values())
    rebounds = {run.config.method for run in runs if any(row["q_value"] <= 0.05 for row in tests[run.id])}
    assert rebounds == {"lora", "ggpo", "mgpo"}
    assert any("rss" in run.status.peak_memory for run in runs)
    captured = {run.id: run.snapshots().damaged_steps() for run in runs if run.streams()}
    assert captured
    assert not any(captured.values())
    named = {path.stem for run in runs for path in run.analysis_dir.glob("*.parquet")}
    assert {"sharpness", "gap", "episodes", "density", "layers"} <= named
    slices = [read_slice(path) for run in runs for path in slice_files(run.analysis_dir)]
    assert {item.dims for item in slices} == {1, 2}
    assert len(read_slice(slice_files(joint_slices_dir(store.path))[0]).runs) == 3


def test_the_demo_is_a_copy_that_goes_away() -> None:
    with dashboard._store(None) as path:
        assert len(Store.open(path).runs()) == 21
        assert DEMO.parent not in path.parents
    assert not path.exists()
