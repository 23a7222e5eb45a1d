"""Files of figures, adapters, reports and verdicts."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.curve_figures import CurveView, curve_figure
from app.exports import MIME, adapter_bytes, figure_bytes, report_bytes, surface_bytes
from app.verdicts import COLUMNS, find_table, read_verdicts
from landscape.errors import StoreError
from landscape.plots import Measured, SurfaceData, surface_figure
from landscape.reproduction.verdict import VERDICTS
from landscape.store import Store
from tests.synthetic_runs import run, write

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "csv": b"panel,curve", "html": b"<!doctype html>"}


@pytest.mark.parametrize("kind", MIME)
def test_figures(kind: str) -> None:
    data = run(max_steps=60)
    content = figure_bytes(curve_figure([data], CurveView(smoothing=0)).result, kind)
    assert content.startswith(STARTS[kind])
    if kind == "csv":
        table = pd.read_csv(io.BytesIO(content))
        assert table.query("series == 'line'")["y"].tolist() == pytest.approx(data.metrics["loss_clean"], rel=1e-12)


@pytest.mark.parametrize("kind", MIME)
def test_surfaces_in_three_dimensions(kind: str) -> None:
    axis = np.linspace(-1, 1, 7)
    surfaces = [
        SurfaceData(axis, axis, 1 + shift + axis[:, None] ** 2 + axis**2, Measured("adapter", "filter", 8, 80))
        for shift in (0.0, 0.5)
    ]
    content = surface_bytes(surface_figure(surfaces, title="Surfaces"), 1, kind)
    start = b"surface,title" if kind == "csv" else STARTS[kind]
    assert content.startswith(start)
    if kind == "csv":
        loss = pd.read_csv(io.BytesIO(content))["loss"]
        np.testing.assert_allclose(loss, surfaces[1].loss.ravel(), rtol=1e-12)


def test_reports() -> None:
    text = report_bytes([run(max_steps=60)], "<b>store", "rank == 8").decode()
    assert "&lt;b&gt;store" in text
    assert "<b>store" not in text


def test_adapters(tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).resolve().parents[2] / "landscape" / "assets" / "demo-store.zip") as archive:
        archive.extractall(tmp_path)
    store = Store.open(tmp_path / "demo")
    source = next(item for item in store.runs() if item.streams())
    packed = zipfile.ZipFile(io.BytesIO(adapter_bytes(source, 80)))
    assert [Path(name).name for name in packed.namelist()] == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(StoreError, match="no snapshot of step 81; the nearest is 80"):
        adapter_bytes(source, 81)


SHIPPED = Path(__file__).resolve().parents[2] / "experiments" / "reproduction.csv"


def test_verdicts(tmp_path: Path) -> None:
    store = write([run(max_steps=60)], tmp_path / "store")
    assert find_table(store.path) == SHIPPED
    assert set(read_verdicts(SHIPPED)["verdict"]) <= set(VERDICTS)
    path = store.path / "reproduction.csv"
    path.write_text(",".join(COLUMNS) + "\nMGPO,Table 2,GSM8K,50.1,,,tiny,not comparable\n")
    assert find_table(store.path) == path
    assert read_verdicts(path)["verdict"].tolist() == ["not comparable"]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(StoreError, match="no column 'paper'"):
        read_verdicts(path)


def test_verdicts_lie_in_the_store(tmp_path: Path) -> None:
    store = write([run(max_steps=60)], tmp_path / "store")
    (tmp_path / "elsewhere.csv").write_text(",".join(COLUMNS) + "\n")
    (store.path / "reproduction.csv").symlink_to(tmp_path / "elsewhere.csv")
    assert find_table(store.path) == SHIPPED
