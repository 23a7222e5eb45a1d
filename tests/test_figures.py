"""The papers' figures from real stores: files, choices, and what is said when a store does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from landscape.analysis.episodes import EpisodeSettings, analyze_episodes
from landscape.errors import StoreError, UsageError
from landscape.figures import FIGURES, FORMATS, load_runs, main, render
from landscape.plots import surface_table, table
from landscape.plots.slices import SurfaceSet
from landscape.store import Store
from tests.synthetic_runs import run, sweep, write
from tests.synthetic_slices import keep, path, slice_file

ROOT = Path(__file__).resolve().parent.parent
MAGIC = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG", "csv": (b"panel,curve", b"surface,title"), "html": b"<"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    runs = sweep(ranks=(16, 128), rates=(3e-4, 5e-4), seeds=2, sharp=True)
    runs += [run(method=method, rank=8, seed=seed) for method in ("lora", "ggpo") for seed in range(2)]
    store = write(runs, tmp_path_factory.mktemp("figures") / "store")
    first, second = (item.run_id for item in runs[-4::2])
    joint = slice_file(first, second, paths=[path(first), path(second, turn=0.3)])
    for item in store.runs():
        analyze_episodes(item, EpisodeSettings(resamples=99))
    keep(store, joint, *(slice_file(name, dims=dims, draws=2) for name in (first, second) for dims in (1, 2)))
    return store


@pytest.fixture(scope="module")
def ablations(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the figures of ablations compare."""
    halves = [{"weight_norm": one, "gradient_norm": not one} for one in (True, False)]
    settings = ((True, "momentum"), (False, "momentum"), (True, "random"))
    ways = [{"adaptive": adaptive, "direction": way} for adaptive, way in settings]
    runs = [run(method="lora"), *(run(method="ggpo", method_args=half) for half in halves)]
    runs += [run(method="mgpo", method_args=way) for way in ways]
    named = [replace(one, run_id=f"{one.method}-r8-lr0.0005-s0-{number:010d}") for number, one in enumerate(runs)]
    return write(named, tmp_path_factory.mktemp("ablations") / "store")


def test_the_papers_figures_are_there_with_what_they_are() -> None:
    assert {"mgpo1", "mgpo2", "mgpo3", "ggpo1", "ggpo2"} <= set(FIGURES)
    for name, script in FIGURES.items():
        assert script.path.name == f"{name}.py"
        assert script.title
        assert script.about
        assert script.source.startswith("LoRA-") == ("In the paper" in script.about)


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_figure_in_every_format(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue("ablations" if name in ("ggpo3", "mgpo4", "table3", "table4") else "store")
    done = render(store, name, tmp_path / "deep" / "out", FORMATS)
    stems = [name, *(f"{name}-{number}" for number in range(2, len(done.figures) + 1))]
    assert [file.name for file in done] == [f"{stem}.{kind}" for stem in stems for kind in FORMATS]
    for file in done:
        assert file.read_bytes().startswith(MAGIC[file.suffix[1:]])
    assert sorted(file.name for file in (tmp_path / "deep" / "out").iterdir()) == sorted(file.name for file in done)
    for stem, figure in zip(stems, done.figures, strict=True):
        drawn = pd.read_csv(tmp_path / "deep" / "out" / f"{stem}.csv")
        expected = surface_table(figure) if isinstance(figure, SurfaceSet) else table(figure)
        np.testing.assert_allclose(drawn["y"], expected["y"])
        assert "cdn" not in (tmp_path / "deep" / "out" / f"{stem}.html").read_text()[:2000]
    assert "arithmetic" in done.remarks[0]


@pytest.mark.parametrize(
    ("name", "panels", "curves", "chosen"),
    [
        ("mgpo1", [""], ["Full FT", "LoRA  r = 16", "LoRA  r = 128"], "lr = 5e-4 (as in the paper; also"),
        ("mgpo2", ["r = 16", "r = 128"], ["Full FT", "LoRA", "LoRA-MGPO"] * 2, "α = r (2 runs with another"),
        ("mgpo3", ["lr = 3e-4", "lr = 5e-4"], ["Full FT", "LoRA", "LoRA-MGPO"] * 2, "r = 128 (the highest of 3)"),
        ("ggpo1", [""], ["LoRA"], "r = 8 (as in the paper; also"),
        (
            "ggpo2",
            ["LoRA", "LoRA-GGPO"],
            [f"{label}, {part}" for label in ("LoRA", "LoRA-GGPO") for part in ("train (clean)", "eval (held out)")],
            "r = 8 (most methods; also",
        ),
        ("stability", ["lr = 3e-4", "lr = 5e-4", "", ""], ["LoRA"] * 4, "r = 128 (the highest of 2)"),
    ],
)  # fmt: skip
def test_what_each_figure_shows(name: str, panels: list[str], curves: list[str], chosen: str, store: Store) -> None:
    [figure] = FIGURES[name].build(load_runs(store).runs)
    assert [panel.title for panel in figure.panels] == panels
    assert [curve.label for curve in figure.curves()] == curves
    assert chosen in figure.chosen


def test_the_curves_are_the_stores_numbers(store: Store, tmp_path: Path) -> None:
    [figure] = render(store, "mgpo2", tmp_path, ["csv"]).figures
    [curve] = [curve for curve in figure.panels[0].curves if curve.label == "LoRA-MGPO"]
    runs = [r for r in store.runs() if r.config.method == "mgpo" and r.config.rank == 16]
    runs = [r for r in runs if r.config.learning_rate == 5e-4]
    assert len(curve.raw) == len(runs) == 2
    for trace, folder in zip(curve.raw, sorted(runs, key=lambda r: r.config.seed), strict=True):
        np.testing.assert_array_equal(trace.y, folder.metrics()["loss_clean"])


def test_ggpo2_insets_the_first_steps(store: Store) -> None:
    [figure] = FIGURES["ggpo2"].build(load_runs(store).runs)
    assert {panel.inset for panel in figure.panels} == {(0, 36)}  # 15 % of 240
    long = [run(method=method, max_steps=2400) for method in ("lora", "ggpo")]
    [figure] = FIGURES["ggpo2"].build(long)
    assert {panel.inset for panel in figure.panels} == {(0, 300)}


def test_where_narrows_the_runs(store: Store, tmp_path: Path) -> None:
    [figure] = render(store, "mgpo2", tmp_path, ["csv"], where="lr==3e-4 and rank!=16").figures
    assert [panel.title for panel in figure.panels] == ["r = 128"]
    assert "lr = 3e-4" in figure.chosen
    assert "no runs of Full FT." not in figure.missing


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("mgpo22", ["svg"]), {}, UsageError, "figure: 'mgpo22' is not known.*Did you mean 'mgpo2'"),
        (("mgpo2", ["jpg"]), {}, UsageError, "format: 'jpg' is not known; allowed: csv, html, pdf, png, svg"),
        (("mgpo2", ["svg"]), {"where": "rank>1000"}, UsageError, "none of the 24 runs in .* matches"),
        (("mgpo2", ["svg"]), {"where": "rnk>1"}, UsageError, "unknown key 'rnk'.*'rank'"),
        (("mgpo1", ["svg"]), {"where": "method==mgpo"}, StoreError, "figure mgpo1 needs runs of method lora .*mgpo: 8"),
        (("stability", ["svg"]), {"where": "method==ggpo"}, StoreError, "needs eigenvalues along the runs"),
        (("slice1d", ["svg"]), {"where": "method==full"}, StoreError, "landscape analyze slice1d STORE"),
        (("slice2d", ["svg"]), {"where": "rank==16"}, StoreError, "slices on planes: landscape analyze slice2d STORE"),
        (("ggpo2", ["svg"]), {"where": "method==full"}, StoreError, "figure ggpo2 needs runs of method lora or ggpo"),
    ],
)
def test_errors_before_anything_is_written(
    arguments: tuple, options: dict, error: type, message: str, store: Store, tmp_path: Path
) -> None:
    name, formats = arguments
    with pytest.raises(error, match=message):
        render(store, name, tmp_path / "out", formats, **options)
    assert not (tmp_path / "out").exists()


def test_no_store_and_no_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        render(tmp_path / "nothing", "mgpo1", tmp_path, ["svg"])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*file"):
        render(store, "mgpo1", tmp_path / "file" / "out", ["svg"])


def test_equal_stores_give_equal_files(store: Store, tmp_path: Path) -> None:
    for name, kind in [("ggpo1", "svg"), ("ggpo1", "html"), ("ggpo1", "csv"), ("slice2d", "svg"), ("slice2d", "html")]:
        first, second = (render(store, name, tmp_path / folder, [kind]) for folder in "ab")
        for one, other in zip(first, second, strict=True):
            assert one.read_bytes() == other.read_bytes(), (name, kind)


def test_slices_of_a_store_and_those_its_runs_share(store: Store, tmp_path: Path) -> None:
    done = render(store, "slice2d", tmp_path, ["html"])
    assert [figure.curves.title for figure in done.figures] == [
        "LoRA and LoRA-GGPO on one common plane", "Loss around LoRA and LoRA-GGPO",
    ]  # fmt: skip
    [lora] = render(store, "slice2d", tmp_path, ["csv"], where="method==lora and rank==8").figures[1:]
    assert lora.curves.title == "Loss around LoRA"
    text = (tmp_path / "slice2d.html").read_text()
    assert '"name": "3D"' in text
    # In two dimensions until somebody asks: a browser grants few WebGL views.
    assert text.count('"type": "surface"') == 1
    assert text.index('"type": "surface"') > text.index("const views")


def test_damaged_slices_are_left_out_and_said(tmp_path: Path) -> None:
    runs = [run(), run(method="mgpo")]
    store = write(runs, tmp_path / "store")
    first, second = (item.run_id for item in runs)
    keep(store, slice_file(first, second), slice_file(first), slice_file(second))
    for folder in (store.path, store.get(first).path):
        [file] = (folder / "analysis").glob("slice2d-*.npz")
        file.write_bytes(b"torn")
    done = render(store, "slice2d", tmp_path, ["csv"])
    assert [figure.curves.title for figure in done.figures] == ["Loss around LoRA-MGPO"]
    assert "is damaged" in done.remarks[-1]
    assert "is damaged" in next(data for data in load_runs(store).runs if data.run_id == first).problems[0]


def test_damaged_runs_are_left_out_and_said(tmp_path: Path) -> None:
    store = write([run(seed=seed) for seed in range(3)] + [run(method="mgpo")], tmp_path / "store")
    first, second, *_ = store.runs()
    (first.path / "config.yaml").write_text("method: [")
    (second.path / "metrics.parquet").write_bytes(b"not parquet")
    loaded = load_runs(store)
    assert len(loaded.runs) == 3
    assert loaded.unreadable[0].startswith(first.id)
    [damaged] = [data for data in loaded.runs if data.problems]
    assert damaged.run_id == second.id
    assert "metrics.parquet is damaged" in damaged.problems[0]
    [figure] = render(store, "mgpo1", tmp_path, ["csv"]).figures
    assert "1 run that could not be read." in figure.missing
    assert [len(curve.raw) for curve in figure.curves()] == [1]


def test_a_damaged_analysis_is_a_problem_of_its_run_only(tmp_path: Path) -> None:
    store = write([run(sharp=True)], tmp_path / "store")
    (store.runs()[0].analysis_dir / "sharpness.parquet").write_bytes(b"PAR1 torn")
    [data] = load_runs(store).runs
    assert data.sharpness is None
    assert "sharpness.parquet is damaged" in data.problems[0]


def test_runs_that_have_not_begun_are_read(tmp_path: Path) -> None:
    from landscape.config import RunConfig

    store = Store.create(tmp_path / "store")
    store.add(RunConfig.parse({"alpha": 16}), "lora-r8-lr1e-4-s0-0123456789", {"data": "d", "model": "m"})
    [data] = load_runs(store).runs
    assert (data.state, len(data.metrics), data.seconds) == ("queued", 0, None)


def test_a_script_runs_alone(store: Store, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "figures" / "mgpo2.py"),
        str(store.path),
        "-o",
        str(tmp_path),
        "--format",
        "csv",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "mgpo2.csv")
    assert "lr = 5e-4" in done.stderr


def test_a_script_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("mgpo2", [str(tmp_path), "-o", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
