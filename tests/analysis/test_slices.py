"""Slices of captured runs: against the losses of the run itself and of displaced models; files, resuming, command."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from landscape import slices
from landscape.analysis import restore
from landscape.analysis.slice_settings import SliceSettings
from landscape.analysis.slices import analyze_slice, results_of, spread, summary, targets
from landscape.errors import StoreError, UsageError
from landscape.loss import forward_losses, mean_loss
from landscape.slices import Coordinates, random_direction
from landscape.slices.grid import PreparedSlice
from landscape.store import Run, SnapshotReader
from landscape.store.slices import SliceFile, read_slice, slice_files
from tests.analysis.trained_runs import Stores, only_run


def sliced(run: Run, steps: list[int] | None = None, **settings: Any) -> SliceFile:
    chosen = {"points": 5, "num_examples": 3, **settings}
    return analyze_slice(run, SliceSettings(**chosen), steps, device="cpu")[0]


def probe_losses(run: Run, split: str = "probe") -> dict[int, float]:
    """As training measured them."""
    table = run.evaluations()
    table = table[table["split"] == split]
    return dict(zip(table["step"].tolist(), table["loss"].tolist(), strict=True))


def test_random_planes_are_the_losses_of_displaced_parameters(run: Run) -> None:
    found = sliced(run, draws=2, seed=3)
    model, data = restore(run, 4, device="cpu")
    batches = list(data.probe.batches(4, range(3)))
    coordinates = Coordinates(model)
    origin = coordinates.flatten()
    for draw, i, j in [(0, 0, 3), (1, 4, 0), (1, 2, 2)]:
        directions = [random_direction(model, "filter", seed=3, draw=draw, axis=axis) for axis in (0, 1)]
        point = origin + found.axes[0][i] * directions[0] + found.axes[1][j] * directions[1]
        with torch.no_grad():
            for parameter, part in zip(coordinates.parameters, coordinates.split(point.float()), strict=True):
                parameter.copy_(part)
            expected = mean_loss(forward_losses(model, batch) for batch in batches).value
            for parameter, part in zip(coordinates.parameters, coordinates.split(origin), strict=True):
                parameter.copy_(part)
        assert found.loss[draw, i, j] == pytest.approx(expected, rel=1e-5)
    assert found.mean == pytest.approx((found.loss[0] + found.loss[1]) / 2)
    assert found.spread == pytest.approx(np.abs(found.loss[0] - found.loss[1]) / np.sqrt(2))
    assert found.evaluated.all()
    assert found.info["settings"]["normalization"] == "filter"


@pytest.mark.parametrize("space", ["merged", "tangent"])
def test_other_spaces_have_the_origin_in_common(run: Run, space: str) -> None:
    found = sliced(run, space=space, num_examples=None)
    assert found.loss[0, 2, 2] == pytest.approx(probe_losses(run)[4], rel=1e-5)
    assert np.ptp(found.loss) > 0


def test_held_out_examples_and_the_precision_are_chosen_and_recorded(run: Run) -> None:
    found = sliced(run, split="eval", num_examples=None, directions="pca")
    assert found.info["split"] == "eval"
    assert found.origin_loss == pytest.approx(probe_losses(run, "eval")[4], rel=1e-5)
    assert found.origin_loss != pytest.approx(probe_losses(run)[4], rel=1e-3)
    assert found.trajectories[0].loss[[0, 2, 4]] == pytest.approx(
        [probe_losses(run, "eval")[step] for step in (0, 2, 4)], rel=1e-5
    )
    coarse = sliced(run, split="eval", num_examples=None, directions="pca", precision="bfloat16")
    assert (found.info["precision"], coarse.info["precision"]) == ("float32", "bfloat16 autocast over float32")
    for one, other in ((found.loss, coarse.loss), (found.trajectories[0].loss, coarse.trajectories[0].loss)):
        assert np.abs(one - other).max() > 1e-6
        np.testing.assert_allclose(one, other, rtol=2**-6)  # bfloat16 keeps 8 bits of every product's factors


def test_the_trajectory_lies_on_its_principal_plane_with_its_true_loss(run: Run) -> None:
    found = sliced(run, directions="pca", num_examples=None)
    (trajectory,), losses = found.trajectories, probe_losses(run)
    assert trajectory.run == run.id
    assert trajectory.steps.tolist() == [0, 1, 2, 3, 4]
    assert trajectory.loss[[0, 2, 4]] == pytest.approx([losses[step] for step in (0, 2, 4)], rel=1e-5)
    assert trajectory.coordinates[-1] == pytest.approx([0, 0], abs=1e-7)
    assert trajectory.surface_loss[-1] == pytest.approx(losses[4], rel=1e-5)
    # Principal components of the differences from the last snapshot, by a dense singular value decomposition.
    flat = [torch.cat([t.flatten() for t in run.snapshots().tensors(step).values()]).double() for step in range(5)]
    differences = torch.stack(flat) - flat[-1]
    _, sigma, _ = torch.linalg.svd(differences, full_matrices=False)
    share = float(sigma[:2].square().sum() / sigma.square().sum())
    assert trajectory.explained_variance == pytest.approx(share, rel=1e-5)
    assert sum(found.info["explained"]) == pytest.approx(share, rel=1e-5)
    lengths = (np.square(trajectory.coordinates).sum(axis=1) + np.square(trajectory.distance)) ** 0.5
    assert lengths == pytest.approx(differences.norm(dim=1).numpy(), rel=1e-4, abs=1e-7)
    for axis, places in zip(found.axes, trajectory.coordinates.T, strict=True):
        assert axis[0] < places.min() < places.max() < axis[-1]


def test_a_diverged_snapshot_is_left_out_of_the_plane(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = SnapshotReader.tensors

    def diverged(self: SnapshotReader, step: int) -> dict[str, torch.Tensor]:
        tensors = read(self, step)
        return {name: t.fill_(torch.nan) for name, t in tensors.items()} if step == 2 else tensors

    monkeypatch.setattr(SnapshotReader, "tensors", diverged)
    found = sliced(run, directions="pca", points=3)
    (trajectory,) = found.trajectories
    assert np.isnan(trajectory.loss).tolist() == [False, False, True, False, False]
    assert np.isfinite(found.loss).all()
    with pytest.raises(UsageError, match=f"run {run.id}, step 2: origin: NaN or infinite parameters"):
        sliced(run, [2])


def test_a_line_has_its_snapshots_at_0_and_1(run: Run) -> None:
    found, losses = sliced(run, [0, 4], dims=1, directions="line", num_examples=None), probe_losses(run)
    assert found.loss[0, [0, -1]] == pytest.approx([losses[0], losses[4]], rel=1e-5)
    straight = np.linspace(found.loss[0, 0], found.loss[0, -1], 5)
    assert found.info["barrier"] == pytest.approx((found.loss[0] - straight).max())
    assert found.info["anchors"] == [0, 4]
    assert found.flatness is None


def test_a_plane_passes_through_three_snapshots(run: Run) -> None:
    found = sliced(run, [0, 2, 4], directions="line", trajectory=5, num_examples=None)
    (trajectory,) = found.trajectories
    assert trajectory.distance[[0, 2, 4]] == pytest.approx(0, abs=1e-5)
    assert trajectory.surface_loss[[0, 2, 4]] == pytest.approx(trajectory.loss[[0, 2, 4]], rel=1e-5)
    assert trajectory.distance[3] > 1e-3


def test_an_update_leads_back_to_the_snapshot_before(run: Run) -> None:
    found = sliced(run, [4], dims=1, points=3, directions="update")
    assert found.info["since"] == 3
    assert found.loss[0, 0] == pytest.approx(sliced(run, [3], dims=1).origin_loss, rel=1e-5)
    with pytest.raises(UsageError, match="step 0: directions: 'update' at step 0, the first snapshot"):
        sliced(run, [0], directions="update")


def test_the_gradient_is_the_slope(run: Run) -> None:
    found = sliced(run, dims=1, points=3, radius=0.002, directions="gradient")
    slope = (found.loss[0, 2] - found.loss[0, 0]) / 0.004
    assert slope == pytest.approx(found.info["gradient_norm"], rel=1e-3)  # the third derivative, over the squared step


def test_the_top_eigenvalue_is_the_curvature(run: Run) -> None:
    found = sliced(run, dims=1, points=3, radius=1e-3, directions="top")
    (eigenvalue,) = found.info["eigenvalues"]
    # The fourth derivative times the squared step is 2 %, and the loss's rounding in float32 over it 1 %.
    assert float(np.diff(found.loss[0], 2)[0]) / 1e-6 == pytest.approx(eigenvalue, rel=0.05)
    default = sliced(run, dims=1, points=3, directions="top")
    assert eigenvalue * default.axes[0][-1] ** 2 / 2 == pytest.approx(1, rel=1e-6)


def test_adaptive_filling_agrees_with_the_whole_grid(run: Run) -> None:
    whole, filled = sliced(run, points=15), sliced(run, points=15, tolerance=0.05)
    assert 49 < filled.evaluated.sum() == filled.info["num_evaluations"] < 225
    assert np.abs(filled.loss - whole.loss).max() <= 0.05 * np.ptp(whole.loss)
    assert filled.loss[filled.evaluated] == pytest.approx(whole.loss[filled.evaluated], rel=1e-5)
    assert np.isnan(filled.standard_error[~filled.evaluated]).all()
    assert filled.info["draws"][0]["converged"]
    assert summary(filled)["error_bound"] <= 0.05 * np.ptp(whole.loss)
    facts = filled.info["draws"][0]
    assert 0 < facts["held_out_error"] < facts["error_bound"]
    assert 0.5 < facts["coverage"] < 1 <= facts["num_tests"]


def test_an_interrupted_slice_goes_on_row_by_row(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = PreparedSlice.evaluate, []

    def limited(self: PreparedSlice, coordinates: np.ndarray) -> Any:
        calls.append(coordinates)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return evaluate(self, coordinates)

    monkeypatch.setattr(PreparedSlice, "evaluate", limited)
    with pytest.raises(KeyboardInterrupt):
        sliced(run, draws=2, trajectory=2, directions="random")
    assert slice_files(run.analysis_dir) == []
    (unfinished,) = run.analysis_dir.glob("partial-*")
    early = read_slice(unfinished)
    assert early.evaluated.all(axis=2).tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    found = sliced(run, draws=2, trajectory=2, directions="random")
    assert len(calls) == 8 + 3
    assert np.array_equal(found.loss[early.evaluated], early.loss[early.evaluated])
    assert [path.run for path in found.trajectories] == [run.id]
    assert not unfinished.exists()
    shutil.rmtree(run.analysis_dir)
    again = sliced(run, draws=2, trajectory=2, directions="random")
    assert found.loss == pytest.approx(again.loss, rel=1e-5)
    assert found.info["id"] == again.info["id"]


def test_an_interrupted_adaptive_slice_goes_on_with_the_next_draw(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill, calls = slices.adaptive_slice, []

    def limited(*args: Any, **options: Any) -> Any:
        calls.append(options["draw"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fill(*args, **options)

    monkeypatch.setattr(slices, "adaptive_slice", limited)
    settings: dict[str, Any] = {"dims": 1, "points": 25, "draws": 2, "tolerance": 0.2}
    with pytest.raises(KeyboardInterrupt):
        sliced(run, **settings)
    found = sliced(run, **settings)
    assert calls == [0, 1, 1]
    assert np.isfinite(found.loss).all()
    assert len(found.info["draws"]) == 2


def test_what_is_known_is_only_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sliced(run)
    monkeypatch.setattr("landscape.analysis.slices.open_run", None)
    assert np.array_equal(sliced(run).loss, first.loss)
    with pytest.raises(TypeError):
        sliced(run, seed=1)


def test_every_snapshot_that_decides_a_plane_decides_its_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [SliceSettings(directions="pca"), SliceSettings(directions="pca", common=4), SliceSettings(trajectory=3)]

    def names() -> list[str]:
        return [targets(run, settings.checked(), [4])[0].identity for settings in variants]

    before = names()
    recorded = SnapshotReader.checksum
    monkeypatch.setattr(SnapshotReader, "checksum", lambda self, step: "x" if step == 2 else recorded(self, step))
    assert [old != new for old, new in zip(before, names(), strict=True)] == [True] * len(variants)


def test_a_snapshot_without_directions_does_not_stop_the_others(run: Run) -> None:
    message = rf"run {run.id}, step 0: directions: they do not change the loss; .*normalization='none'"
    with pytest.raises(UsageError, match=message):
        analyze_slice(run, SliceSettings(points=3, num_examples=3), [0, 4], device="cpu")
    (path,) = slice_files(run.analysis_dir, 2)
    assert read_slice(path).info["step"] == 4


def test_a_damaged_snapshot_is_refused(run: Run) -> None:
    path = run.path / "attempts" / "1" / "snapshots-params.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="the snapshot of step 4 is damaged"):
        sliced(run)


def test_flatness_is_kept(run: Run) -> None:
    found = sliced(run, dims=1, points=9, draws=3, space="merged", delta=0.05)
    assert found.flatness is not None
    value, error, draws = found.flatness["width"]
    widths = []
    for item in results_of(found):
        fine = np.linspace(-1, 1, 20001)
        inside = np.interp(fine, item.coordinates, item.loss) <= item.loss[4] + 0.05
        widths.append(fine[10000:][~inside[10000:]].min() - fine[:10000][~inside[:10000]].max())
    assert draws == 3
    assert value == pytest.approx(np.mean(widths), rel=0.2)  # by straight lines instead of splines
    assert 0 < error < value


BAD: list[tuple[dict[str, Any], str]] = [
    ({"dims": 3}, "dims: 3; allowed: 1, 2"),
    ({"points": 1}, "points: 1; allowed: at least 2"),
    ({"points": 2, "directions": "line"}, "points: 2; allowed: at least 3"),
    ({"radius": 0}, "radius: 0.0; allowed: numbers greater than 0"),
    ({"radius": float("nan")}, "radius: nan; allowed"),
    ({"delta": -1}, "delta: -1.0; allowed: numbers greater than 0"),
    ({"draws": 0}, "draws: 0; allowed: at least 1"),
    ({"num_examples": 0}, "num_examples: 0; allowed: at least 1"),
    ({"seed": -1}, "seed: -1; allowed: at least 0"),
    ({"trajectory": -1}, "trajectory: -1; allowed: at least 0"),
    ({"tolerance": 1}, "tolerance: 1; allowed: greater than 0 and less than 1"),
    ({"directions": "gradiant"}, "Did you mean 'gradient'"),
    ({"normalization": "rows"}, "normalization: 'rows' is not known; allowed: filter, layer, none"),
    ({"space": "merge"}, "Did you mean 'merged'"),
    ({"split": "evals"}, "split: 'evals' is not known; allowed: eval, probe. Did you mean 'eval'"),
    ({"precision": "bf16"}, "precision: 'bf16' is not known; allowed: bfloat16, float16"),
    ({"space": "merged", "directions": "pca"}, "directions: vectors of the adapter; space 'merged'"),
    ({"space": "tangent", "directions": "random", "trajectory": 3}, "trajectory: vectors of the adapter"),
    ({"draws": 2, "directions": "top"}, "draws: 2 with directions='top'; allowed: 1"),
    ({"directions": "pca", "normalization": "filter"}, "normalization: 'filter' with directions='pca'; allowed: none"),
    ({"directions": "pca", "trajectory": 2}, "trajectory: 2; allowed with directions='pca': at least 3"),
    ({"common": -1}, "common: -1; allowed: at least 0"),
    ({"common": 2, "directions": "line"}, "common: 2 with directions='line'; allowed: slices through one snapshot"),
    ({"common": 2, "space": "merged"}, "common: 2 with space='merged'; allowed: adapter"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused_before_anything_is_loaded(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("landscape.analysis.slices.open_run", None)
    with pytest.raises(UsageError, match=message):
        sliced(only_run(stores("lora")), **settings)


def test_defaults() -> None:
    checked = {name: SliceSettings(**settings).checked() for name, settings in {
        "nothing": {}, "trajectory": {"trajectory": 8}, "top": {"directions": "top"},
        "normalized": {"directions": "top", "normalization": "filter"}, "update": {"directions": "update"},
    }.items()}  # fmt: skip
    found = {name: (s.directions, s.normalization, s.radius, s.trajectory) for name, s in checked.items()}
    assert found == {
        "nothing": ("random", "filter", 1.0, 0),
        "trajectory": ("pca", "none", None, 8),
        "top": ("top", "none", None, 0),
        "normalized": ("top", "filter", 1.0, 0),
        "update": ("update", "none", 1.0, 0),
    }
    assert SliceSettings(radius=1).checked().identity() == SliceSettings(radius=1.0).checked().identity()
    assert SliceSettings().checked(joint=True) == SliceSettings(directions="pca").checked()


def test_slices_keep_the_names_that_they_had_before_there_were_newer_settings() -> None:
    assert SliceSettings().checked().identity(anchors=(4,)) == "64240ce05269"
    assert SliceSettings(common=4).checked().identity(anchors=(4,)) != "03f3fe3d48af"


def test_steps_that_do_not_fit(run: Run) -> None:
    with pytest.raises(StoreError, match="no snapshot of step 9; the nearest is 4"):
        sliced(run, [9])
    with pytest.raises(UsageError, match="steps: 1 with directions='line'; a 2D slice goes through 3"):
        sliced(run, [4], directions="line")


def test_spread_steps() -> None:
    assert spread(range(11), 3) == [0, 5, 10]
    assert spread([0, 1], 5) == [0, 1]
    assert spread([0, 1], 1) == [1]
