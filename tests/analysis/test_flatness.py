"""The table of flatness, sharpness and gap: every number against the file that it comes from."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from landscape.analysis import analyze_sharpness
from landscape.analysis.flatness import COLUMNS, flatness_correlations, flatness_table
from landscape.analysis.slice_settings import SliceSettings
from landscape.analysis.slices import analyze_slice
from landscape.errors import StoreError, UsageError
from landscape.generalization import generalization_gap
from landscape.store import Run, Store
from landscape.store.slices import SliceFile, slice_path, write_slice
from tests import synthetic_runs
from tests.analysis.trained_runs import FAST
from tests.command_line import invoke, payload

WIDE = {"width": (3.0, 0.5, 4.0), "anisotropy": (2.0, 0.25, 2.0), "nonconvexity": (0.1, 0.05, 2.0)}


def slice_of(run: Run, step: int, identity: str, width: float = 3.0, **changes: Any) -> Path:
    """A slice as its file says it, of which only the numbers matter."""
    settings = dataclasses.asdict(SliceSettings(draws=2).checked()) | changes
    dims = settings["dims"]
    item = SliceFile(
        axes=(np.linspace(-1, 1, 5),) * dims,
        loss=np.zeros((1, *(5,) * dims)),
        standard_error=np.zeros((1, *(5,) * dims)),
        evaluated=np.ones((1, *(5,) * dims), bool),
        origin_loss=1.25,
        trajectories=(),
        flatness=WIDE | {"width": (width, 0.5, 4.0)},
        info={"id": identity, "run": run.id, "step": step, "settings": settings, "num_examples": 128, "draws": []},
    )
    path = slice_path(run.analysis_dir, dims, identity)
    write_slice(path, item)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three synthetic runs evaluated every 10 steps."""
    return synthetic_runs.write([synthetic_runs.run(seed=seed) for seed in range(3)], tmp_path / "store")


def write_eigenvalues(run: Run, values: dict[tuple[str, int], float]) -> None:
    rows = [
        {"step": step, "index": index, "space": space, "value": value / (index + 1), "residual": 1e-3,
         "max_examples": 128, "loss": 1.25}
        for (space, step), value in values.items() for index in (0, 1)
    ]  # fmt: skip
    run.analysis_dir.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(run.analysis_dir / "sharpness.parquet")


def test_every_number_comes_from_its_analysis(run: Run) -> None:
    settings = SliceSettings(points=5, draws=2, num_examples=6, normalization="none", delta=0.05)
    slices = {item.info["step"]: item for item in analyze_slice(run, settings, [0, 3, 4], device="cpu")}
    fast = {**FAST, "num_examples": None}
    sharp = analyze_sharpness(run, [2, 4], **fast).set_index("step")
    balanced = analyze_sharpness(run, [4], space="balanced", **fast).set_index("step")
    table = flatness_table([run], normalization="none", delta=0.05)
    assert tuple(table.columns) == COLUMNS
    assert table["step"].tolist() == [0, 2, 3, 4]
    rows = table.set_index("step")
    for step, item in slices.items():
        assert item.flatness is not None
        for name in ("width", "anisotropy", "nonconvexity"):
            found = rows.loc[step, [name, f"{name}_error"]].tolist()
            np.testing.assert_array_equal(found, item.flatness[name][:2])
        assert rows.loc[step, "slice"] == f"slice2d-{item.info['id']}.npz"
    assert rows.loc[[2, 4], "lambda_max"].tolist() == sharp["value"].tolist()
    assert rows.loc[[2, 4], "lambda_max_residual"].tolist() == sharp["residual"].tolist()
    assert rows.loc[4, "lambda_max_balanced"] == balanced.loc[4, "value"]
    gap = generalization_gap(run.evaluations()).set_index("step")
    assert rows.loc[[0, 2, 4], "gap"].tolist() == gap["gap"].tolist()
    assert rows.loc[[0, 2, 4], "gap_error"].tolist() == gap["standard_error"].tolist()
    assert rows.loc[[0, 2, 4], "loss"].tolist() == gap["train_loss"].tolist()
    assert rows.loc[3, "loss"] == slices[3].origin_loss
    missing = rows.isna()
    assert missing.loc[3, ["gap", "gap_error", "lambda_max", "lambda_max_balanced"]].all()
    assert missing.loc[2, ["width", "width_error", "dims", "slice", "lambda_max_balanced"]].all()
    assert (table["run"].unique().tolist(), table["rank"].unique().tolist()) == ([run.id], [2])


def test_of_several_slices_the_one_of_the_commonest_kind_with_most_draws_counts(store: Store) -> None:
    first, second, third = store.runs()
    slice_of(first, 20, "a", 1.0)
    slice_of(first, 20, "b", 2.0, draws=5)
    slice_of(first, 20, "c", 3.0, points=51)
    slice_of(second, 20, "d", 4.0)
    slice_of(third, 20, "e", 5.0, radius=0.5)
    slice_of(third, 20, "f", 6.0, dims=1)
    table = flatness_table(store.runs())
    assert table["width"].tolist() == [2.0, 4.0]
    assert (table["dims"].tolist(), table["radius"].tolist(), table["num_draws"].tolist()) == ([2, 2], [1, 1], [5, 2])
    assert flatness_table(store.runs(), dims=1)["width"].tolist() == [6.0]
    assert flatness_table(store.runs(), radius=0.5)["width"].tolist() == [5.0]
    slice_of(second, 40, "g", 7.0, dims=1)
    slice_of(second, 20, "h", 8.0, dims=1)
    # Three snapshots have lines and two have planes.
    assert sorted(flatness_table(store.runs())["width"]) == [6.0, 7.0, 8.0]


OTHER_UNITS: list[dict[str, Any]] = [
    {"space": "merged"},
    {"normalization": "layer"},
    {"delta": 0.2},
    {"directions": "top"},
    {"common": 40},
]


@pytest.mark.parametrize("changes", OTHER_UNITS)
def test_slices_in_other_units_stay_out(store: Store, changes: dict[str, Any]) -> None:
    run = store.runs()[0]
    slice_of(run, 20, "a", **changes)
    assert flatness_table([run]).empty
    slice_of(run, 20, "b", common=20)
    assert flatness_table([run])["slice"].tolist() == ["slice2d-b.npz"]


def test_infinite_widths_are_widths_and_diverged_eigenvalues_are_none(store: Store) -> None:
    run = store.runs()[0]
    slice_of(run, 20, "a", math.inf)
    write_eigenvalues(run, {("adapter", 20): math.nan, ("adapter", 40): 5.0, ("preconditioned", 60): 7.0})
    rows = flatness_table([run]).set_index("step")
    assert rows.index.tolist() == [20, 40]
    assert rows["width"].tolist() == pytest.approx([math.inf, math.nan], nan_ok=True)
    assert rows["lambda_max"].tolist() == pytest.approx([math.nan, 5.0], nan_ok=True)


def fill(store: Store) -> None:
    """Widths that fall as λmax rises, over 3 runs with 4 snapshots each."""
    for number, run in enumerate(store.runs()):
        tops = {step: 10.0 + step + number for step in (20, 40, 60, 80)}
        write_eigenvalues(run, {("adapter", step): top for step, top in tops.items()})
        for step, top in tops.items():
            slice_of(run, step, f"s{step}", 1 / top)


def test_correlations(store: Store) -> None:
    fill(store)
    table = flatness_table(store.runs())
    found = flatness_correlations(table).set_index(["x", "y"])
    assert found.index.tolist() == [("width", "lambda_max"), ("width", "gap"), ("lambda_max", "gap")]
    first = found.loc[("width", "lambda_max")]
    assert (first["spearman"], first["n"], first["num_runs"], first["resampled"]) == (pytest.approx(-1), 12, 3, "rows")
    assert (first["low"], first["high"]) == pytest.approx((-1, -1))
    expected: Any = spearmanr(table["lambda_max"], table["gap"])
    assert found.loc[("lambda_max", "gap"), "spearman"] == pytest.approx(expected.statistic, rel=1e-12)
    few = flatness_correlations(flatness_table(store.runs()[:1]))
    assert few["remark"].tolist() == ["too few: 4 rows, at least 8"] * 3
    write_eigenvalues(store.runs()[0], {("balanced", 20): 1.0})
    assert len(flatness_correlations(flatness_table(store.runs()))) == 5


def test_the_command(store: Store, tmp_path: Path) -> None:
    fill(store)
    slice_of(store.runs()[0], 80, "s80", math.inf)
    table = flatness_table(store.runs())
    expected: Any = spearmanr(table["width"], table["lambda_max"])
    assert -1 < expected.statistic < 0
    result = invoke("analyze", "flatness", store.path)
    assert result.exit_code == 0, result.output
    assert "2D slices of radius 1 on 128 examples" in result.stdout
    assert "inf ± 0.5" in result.stdout
    assert "width inf: the loss does not rise by 0.1 within the slice; slice with a larger --radius" in result.stdout
    assert f"width ~ lambda_max: Spearman ρ = {expected.statistic:.2f} [" in result.stdout
    assert "n = 12 from 3 runs; rows of one run are not independent: the interval is too narrow" in result.stdout
    assert "balanced" not in result.stdout
    answer = payload(invoke("analyze", "flatness", store.path, "--json", "--where", "seed<2"))
    assert [row["width"] for row in answer["rows"]][2:4] == [table["width"][2], None]
    assert len(answer["rows"]) == 8
    assert [row["y"] for row in answer["correlations"]] == ["lambda_max", "gap", "gap"]
    for suffix in ("csv", "json"):
        result = invoke("analyze", "flatness", store.path, "-o", tmp_path / f"table.{suffix}")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{tmp_path / 'table'}.{suffix}\n")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), table, check_dtype=False)
    written = json.loads((tmp_path / "table.json").read_text())
    assert len(written["rows"]) == 12
    assert written["rows"][1]["lambda_max"] == table["lambda_max"][1]
    few = invoke("analyze", "flatness", store.path, "--where", "seed==0")
    assert "width ~ gap: too few: 4 rows, at least 8" in few.stdout


USAGE: list[tuple[list[object], str]] = [
    (["-o", "table.txt"], "--output: 'table.txt'; allowed: names that end in .csv or .json"),
    (["--space", "merge"], "Did you mean 'merged'?"),
    (["--normalization", "rows"], "normalization: 'rows' is not known; allowed: filter, layer, none"),
    (["--dims", 3], "dims: 3; allowed: 1, 2"),
    ([], "no random slices with space=adapter, normalization=filter, delta=0.1 and no sharpness in these runs"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_usage_is_one_line(store: Store, arguments: list[object], message: str) -> None:
    result = invoke("analyze", "flatness", store.path, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_damaged_slice_is_named(store: Store) -> None:
    path = slice_of(store.runs()[0], 20, "a")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StoreError, match=r"slice2d-a.npz is damaged .* delete it to measure again"):
        flatness_table(store.runs())
    result = invoke("analyze", "flatness", store.path)
    assert result.exit_code == 2
    shutil.rmtree(path.parent)
    with pytest.raises(UsageError, match="dims: 0; allowed: 1, 2"):
        flatness_table(store.runs(), dims=0)
