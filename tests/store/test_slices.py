"""Slices as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import landscape.slices as measured
from landscape.errors import StoreError
from landscape.store import slices
from landscape.store.slices import (
    FLATNESS,
    SliceFile,
    SliceTrajectory,
    read_slice,
    slice_files,
    slice_path,
    write_slice,
)


def example(dims: int) -> SliceFile:
    rng = np.random.default_rng(dims)
    shape = (3, *(5, 4)[:dims])
    loss = rng.normal(size=shape)
    loss.flat[:2] = np.nan, np.inf
    columns = {name: rng.normal(size=2) for name in ("distance", "loss", "standard_error", "surface_loss")}
    return SliceFile(
        axes=tuple(np.linspace(-1, 1, count) for count in shape[1:]),
        loss=loss,
        standard_error=rng.normal(size=shape),
        evaluated=rng.random(shape) < 0.5,
        origin_loss=float(loss.flat[4]),
        trajectories=tuple(
            SliceTrajectory(run, np.array([0, 7]), rng.normal(size=(2, dims)), **columns, explained_variance=0.25)
            for run in ("lora-r8", "mgpo-r8")
        ),
        flatness=dict.fromkeys(FLATNESS, (np.inf, np.nan, 3.0)),
        info={"id": "x", "settings": {"radius": None}, "draws": [{"cosine": 0.1}]},
    )


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("complete", [True, False])
def test_files_keep_everything(tmp_path: Path, dims: int, complete: bool) -> None:
    item = example(dims) if complete else replace(example(dims), trajectories=(), flatness=None)
    path = slice_path(tmp_path / "analysis", dims, "x")
    write_slice(path, item)
    kept = read_slice(path)
    assert kept.dims == dims
    assert repr(asdict(kept)) == repr(asdict(item))
    for name in ("loss", "standard_error"):
        assert np.array_equal(getattr(kept, name), getattr(item, name), equal_nan=True)
    assert (kept.evaluated.dtype, len(kept.trajectories)) == (np.dtype(bool), 2 * complete)


def test_names_are_those_that_slices_are_measured_with() -> None:
    assert (slices.SPACES, slices.NORMALIZATIONS) == (measured.SPACES, measured.NORMALIZATIONS)


def test_files_from_before_there_were_several_trajectories(tmp_path: Path) -> None:
    item, path = example(2), tmp_path / "slice2d-x.npz"
    write_slice(path, replace(item, info={**item.info, "run": "mgpo-r8"}))
    with np.load(path, allow_pickle=False) as arrays:
        first = {name: array for name, array in arrays.items() if name.startswith("trajectory0_")}
        kept = {name: array for name, array in arrays.items() if not name.startswith("trajectory")}
    del first["trajectory0_run"]
    np.savez(path, **kept, **{name.replace("0", ""): array for name, array in first.items()})
    (trajectory,) = read_slice(path).trajectories
    assert repr(trajectory) == repr(replace(item.trajectories[0], run="mgpo-r8"))
    assert read_slice(path).runs == ("mgpo-r8",)


def test_the_runs_of_a_slice() -> None:
    item = example(1)
    assert replace(item, info={"run": "a", "runs": ["a", "b"]}).runs == ("a", "b")


def test_mean_and_spread_are_over_draws() -> None:
    item = example(2)
    assert item.mean[1:] == pytest.approx((item.loss[0] + item.loss[1] + item.loss[2])[1:] / 3, rel=1e-12)
    assert item.spread[1:] == pytest.approx(np.var(item.loss[:, 1:], axis=0) ** 0.5 * 1.5**0.5)
    one = replace(item, loss=item.loss[:1])
    assert np.isnan(one.spread).all()
    assert one.spread.shape == (5, 4)


def test_unfinished_ones_are_not_listed(tmp_path: Path) -> None:
    assert slice_files(tmp_path / "absent") == []
    for dims, finished in ((1, True), (2, True), (2, False)):
        write_slice(slice_path(tmp_path, dims, "x", finished=finished), example(dims))
    assert [path.name for path in slice_files(tmp_path)] == ["slice1d-x.npz", "slice2d-x.npz"]
    assert [path.name for path in slice_files(tmp_path, 2)] == ["slice2d-x.npz"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.index(b"loss.npy") + 60
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)


def pickle_into(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        np.savez(path, **{**arrays, "loss": np.array([[object()]], dtype=object)})


def shorten(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        np.savez(path, **{**arrays, "axis1": arrays["axis1"][:-1]})


def shorten_trajectory(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        np.savez(path, **{**arrays, "trajectory1_loss": arrays["trajectory1_loss"][:-1]})


def drop(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != "info"})


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "is damaged .*; delete it to measure again"),
    (flip, "is damaged"),
    (pickle_into, r"is damaged \(Object arrays cannot be loaded"),
    (shorten, r"is damaged \(its arrays do not fit each other\)"),
    (shorten_trajectory, r"is damaged \(its arrays do not fit each other\)"),
    (drop, r"is damaged \(no array 'info'\)"),
    (Path.unlink, "cannot read .*: No such file"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "slice2d-x.npz"
    write_slice(path, example(2))
    damage(path)
    with pytest.raises(StoreError, match=message):
        read_slice(path)
