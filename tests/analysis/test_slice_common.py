"""Slices at several steps along the same directions: against materialized weights, at the same places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from landscape.analysis import restore
from landscape.analysis.slice_settings import SliceSettings
from landscape.analysis.slices import analyze_slice, summary, targets
from landscape.errors import StoreError, UsageError
from landscape.slices import random_direction
from landscape.store import Run, SnapshotReader, Store
from landscape.store.slices import SliceFile, slice_files
from tests.analysis.materialized import flat, materialized_loss, opened_in_double
from tests.command_line import invoke, payload

STEPS = [0, 2, 4]


@pytest.fixture
def double_run(three_methods: Store) -> Run:
    """A LoRA run of 4 steps in float64."""
    return three_methods.get("lora")


def sliced(run: Run, steps: list[int], **settings: Any) -> list[SliceFile]:
    return analyze_slice(run, SliceSettings(**{"points": 5, "num_examples": 3, **settings}), steps, device="cpu")


def test_random_directions_are_those_of_the_common_step(double_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = opened_in_double(monkeypatch)
    found = sliced(double_run, STEPS, common=2, draws=2, seed=3)
    reference, _ = restore(double_run, 2, device="cpu")
    batches = opened[0].probe(3)
    for item, step, (draw, i, j) in zip(found, STEPS, [(0, 0, 3), (1, 4, 0), (1, 2, 2)], strict=True):
        first, second = (random_direction(reference, "filter", seed=3, draw=draw, axis=axis) for axis in (0, 1))
        point = flat(double_run, step) + item.axes[0][i] * first + item.axes[1][j] * second
        assert item.loss[draw, i, j] == pytest.approx(materialized_loss(opened[0].model, point, batches), rel=1e-8)
        assert item.info["center"] == [0, 0]
        assert (item.info["step"], item.info["common"]["step"]) == (step, 2)
    assert len({item.info["common"]["id"] for item in found}) == 1
    assert all(np.array_equal(item.axes, found[0].axes) for item in found)
    own = sliced(double_run, [2], draws=2, seed=3)[0]
    np.testing.assert_allclose(found[1].loss, own.loss, rtol=1e-8)
    assert found[1].info["id"] != own.info["id"]


def test_principal_planes_are_parallel_and_paths_stay_in_place(
    double_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = opened_in_double(monkeypatch)
    found = sliced(double_run, STEPS, common=4, directions="pca", trajectory=3)
    points = torch.stack([flat(double_run, step) for step in range(5)])
    differences = points[STEPS] - points[4]
    _, _, rows = torch.linalg.svd(differences, full_matrices=False)
    coordinates = [item.trajectories[0].coordinates for item in found]
    # The sign of a principal component is free.
    signs = torch.tensor(np.sign(coordinates[0][0])) * torch.sign(differences[0] @ rows[:2].T)
    directions = rows[:2] * signs[:, None]
    batches = opened[0].probe(3)
    for item, step, (i, j) in zip(found, STEPS, [(0, 4), (3, 1), (2, 0)], strict=True):
        place = (points[step] - points[4]) @ directions.T
        assert item.info["center"] == pytest.approx(place.tolist(), rel=1e-8, abs=1e-12)
        grid = torch.tensor([item.axes[0][i], item.axes[1][j]])
        point = points[step] + (grid - place) @ directions
        assert item.loss[0, i, j] == pytest.approx(materialized_loss(opened[0].model, point, batches), rel=1e-8)
        (path,) = item.trajectories
        own = path.steps.tolist().index(step)
        assert path.distance[own] == pytest.approx(0, abs=1e-9)
        assert path.surface_loss[own] == pytest.approx(path.loss[own], rel=1e-8)
        np.testing.assert_allclose(path.coordinates, coordinates[0], rtol=1e-8, atol=1e-10)
        np.testing.assert_array_equal(item.axes, found[0].axes)
    assert len({item.info["common"]["id"] for item in found}) == 1
    alone = sliced(double_run, [4], directions="pca", trajectory=3)[0]
    np.testing.assert_allclose(found[2].loss, alone.loss, rtol=1e-8)


def test_a_snapshot_that_is_not_among_the_fitted_ones_is_shown_too(run: Run) -> None:
    settings = SliceSettings(directions="pca", trajectory=3, common=4).checked()
    one, two = targets(run, settings, [1, 4])
    assert (one.fitted, one.trajectory, two.trajectory) == ((0, 2, 4), (0, 1, 2, 4), (0, 2, 4))
    assert one.plane == two.plane
    with_trajectory = SliceSettings(directions="random", trajectory=2, common=1).checked()
    assert [goal.trajectory for goal in targets(run, with_trajectory, [1, 4])] == [(0, 1), (0, 4)]


@pytest.mark.parametrize("directions", ["update", "gradient", "top"])
def test_other_directions_are_found_at_the_common_step(run: Run, directions: str) -> None:
    settings: dict[str, Any] = {"dims": 1, "points": 3, "directions": directions}
    (own,), found = sliced(run, [4], **settings), sliced(run, [2, 4], common=4, **settings)
    np.testing.assert_allclose(found[1].loss, own.loss, rtol=1e-5)
    for item in found:
        np.testing.assert_allclose(item.axes[0], own.axes[0], rtol=1e-4)  # eigenvalues are found to a tolerance
        extra = {"update": "since", "gradient": "gradient_norm", "top": "eigenvalues"}[directions]
        assert item.info[extra] == pytest.approx(own.info[extra], rel=1e-4)
    assert found[0].origin_loss == pytest.approx(sliced(run, [2], dims=1, points=3)[0].origin_loss, rel=1e-6)


def test_what_is_shared_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def plane(step: int, **settings: Any) -> str | None:
        return targets(run, SliceSettings(**settings).checked(), [step])[0].plane

    assert plane(4) is None
    assert plane(1, common=2) == plane(4, common=2) is not None
    others = [plane(4, common=3), plane(4, common=2, seed=1), plane(4, common=2, num_examples=2)]
    assert len({plane(4, common=2), *others}) == 4
    before = plane(4, common=2)
    read = SnapshotReader.tensors

    def changed(self: SnapshotReader, step: int) -> dict[str, torch.Tensor]:
        return {name: t + 1e-3 for name, t in read(self, step).items()} if step == 2 else read(self, step)

    monkeypatch.setattr(SnapshotReader, "tensors", changed)
    assert plane(4, common=2) != before


def test_where_filter_normalization_is_undefined_that_of_another_step_serves(run: Run) -> None:
    """At step 0 B = 0: its own rows have no norm."""
    with pytest.raises(UsageError, match="step 0: directions: they do not change the loss"):
        sliced(run, [0], dims=1)
    (found,) = sliced(run, [0], dims=1, common=4)
    assert np.ptp(found.loss) > 0


def test_directions_that_the_common_step_lacks(run: Run) -> None:
    with pytest.raises(UsageError, match=f"run {run.id}, step 0: directions: 'update' at step 0, the first snapshot"):
        sliced(run, [2, 4], common=0, directions="update")
    with pytest.raises(StoreError, match="no snapshot of step 9; the nearest is 4"):
        sliced(run, [4], common=9)


def test_the_command(run: Run) -> None:
    arguments = ["analyze", "slice2d", run.path.parent.parent, "--steps", "0,2,4", "--common", 2]
    arguments += ["--points", 3, "--num-examples", 2]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    (rows,) = payload(result)["results"].values()
    assert [(row["step"], row["common"]["step"]) for row in rows] == [(0, 2), (2, 2), (4, 2)]
    assert len({row["common"]["id"] for row in rows}) == 1
    assert len(slice_files(run.analysis_dir, 2)) == 3
    assert "step 0 (as at 2): loss " in invoke(*arguments).stdout
    assert summary(sliced(run, [4], points=3)[0])["common"] is None
