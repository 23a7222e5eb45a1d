"""Several runs on one plane: against materialized weights and a dense decomposition; which runs have one; resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landscape.analysis.slice_comparable import check_same_surface
from landscape.analysis.slice_cost import forwards
from landscape.analysis.slice_joint import analyze_joint_slice, joint_target
from landscape.analysis.slice_settings import SliceSettings
from landscape.analysis.slices import summary
from landscape.errors import LandscapeError, StoreError, UsageError
from landscape.measurement import NonFiniteLossError
from landscape.slices.grid import PreparedSlice
from landscape.store import Run, SnapshotReader, Store
from landscape.store.slices import SliceFile, joint_slices_dir, read_slice, slice_files
from landscape.store.snapshots import write_base_tensors
from tests.analysis.materialized import flat, materialized_loss, opened_in_double
from tests.analysis.trained_runs import edit_config, edit_json
from tests.command_line import invoke, payload
from tests.measurement.test_context import state

STEPS = range(5)


def joint(store: Store, runs: list[Run] | None = None, until: int | None = None, **settings: Any) -> SliceFile:
    chosen = SliceSettings(**{"points": 5, "num_examples": 3, **settings})
    return analyze_joint_slice(store, store.runs() if runs is None else runs, chosen, until, device="cpu")


def probe(run: Run) -> dict[int, float]:
    """As training measured it."""
    table = run.evaluations().query("split == 'probe'")
    return dict(zip(table["step"].tolist(), table["loss"].tolist(), strict=True))


def test_the_joint_plane_and_what_lies_on_it(three_methods: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = opened_in_double(monkeypatch)
    found = joint(three_methods)
    runs = three_methods.runs()
    assert found.runs == tuple(run.id for run in runs) == tuple(path.run for path in found.trajectories)
    points = torch.stack([flat(run, step) for run in runs for step in STEPS])
    center = points.mean(dim=0)
    _, sigma, rows = torch.linalg.svd(points - center, full_matrices=False)
    coordinates = np.concatenate([path.coordinates for path in found.trajectories])
    # The sign of a principal component is free.
    signs = torch.tensor(np.sign(coordinates[4])) * torch.sign((points[4] - center) @ rows[:2].T)
    directions = rows[:2] * signs[:, None]
    expected = (points - center) @ directions.T
    np.testing.assert_allclose(coordinates, expected, rtol=1e-8, atol=1e-10)
    shadows = center + expected @ directions
    distances = (points - shadows).norm(dim=1).numpy().reshape(3, 5)
    np.testing.assert_allclose([path.distance for path in found.trajectories], distances, rtol=1e-8)
    assert found.info["explained"] == pytest.approx((sigma[:2] ** 2 / (sigma**2).sum()).tolist(), rel=1e-8)
    inside, total = ((part - center).square().sum(dim=1).view(3, 5).sum(dim=1) for part in (shadows, points))
    assert [path.explained_variance for path in found.trajectories] == pytest.approx((inside / total).tolist())

    model, batches = opened[0].model, opened[0].probe(3)
    for i, j in [(0, 4), (3, 1)]:
        point = center + found.axes[0][i] * directions[0] + found.axes[1][j] * directions[1]
        assert found.loss[0, i, j] == pytest.approx(materialized_loss(model, point, batches), rel=1e-8)
    for index, step in [(0, 4), (1, 2), (2, 3)]:
        path, row = found.trajectories[index], 5 * index + step
        assert path.loss[step] == pytest.approx(materialized_loss(model, points[row], batches), rel=1e-8)
        assert path.surface_loss[step] == pytest.approx(materialized_loss(model, shadows[row], batches), rel=1e-8)


def test_the_true_losses_are_those_of_every_runs_own_training(three_methods: Store) -> None:
    found = joint(three_methods, points=3, num_examples=None, trajectory=3)
    for run, path in zip(three_methods.runs(), found.trajectories, strict=True):
        assert path.steps.tolist() == [0, 2, 4]
        assert path.loss.tolist() == pytest.approx([probe(run)[step] for step in (0, 2, 4)], rel=1e-8)
    row = summary(found)
    assert row["explained_by_run"] == {path.run: path.explained_variance for path in found.trajectories}
    assert row["explained_variance"] == pytest.approx(sum(found.info["explained"]))


def test_a_line_between_two_runs_has_a_barrier(three_methods: Store) -> None:
    runs = three_methods.runs()[:2]
    found = joint(three_methods, runs, dims=1, directions="line", num_examples=None)
    ends = [probe(run)[4] for run in runs]
    assert found.loss[0, [0, -1]].tolist() == pytest.approx(ends, rel=1e-8)
    assert found.info["barrier"] == pytest.approx((found.loss[0] - np.linspace(ends[0], ends[1], 5)).max(), rel=1e-8)
    assert (found.info["anchors"], found.info["step"], found.trajectories) == ([4, 4], None, ())
    earlier = joint(three_methods, runs, 2, dims=1, directions="line", num_examples=None)
    assert earlier.loss[0, 0] == pytest.approx(probe(runs[0])[2], rel=1e-8)


def test_a_plane_through_the_ends_of_three_runs(three_methods: Store) -> None:
    found = joint(three_methods, directions="line", trajectory=2)
    for path in found.trajectories:
        assert path.steps.tolist() == [0, 4]
        assert path.distance[1] == pytest.approx(0, abs=1e-9)
        assert path.surface_loss[1] == pytest.approx(path.loss[1], rel=1e-6)  # the norms round in float32
        assert path.distance[0] > 1e-2
    assert found.trajectories[0].coordinates[1] == pytest.approx([0, 0], abs=1e-12)


def test_order_does_not_matter_and_what_is_known_is_only_read(
    three_methods: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = joint(three_methods, points=3, trajectory=3)
    monkeypatch.setattr("landscape.analysis.slice_joint.open_run", None)
    again = joint(three_methods, three_methods.runs()[::-1], points=3, trajectory=3)
    assert np.array_equal(again.loss, first.loss)
    changes: list[dict[str, Any]] = [{"trajectory": 4}, {"num_examples": 2}, {"points": 4}]
    for changed in changes:
        with pytest.raises(TypeError):
            joint(three_methods, **{"points": 3, "trajectory": 3, **changed})
    with pytest.raises(TypeError):
        joint(three_methods, three_methods.runs()[:2], points=3, trajectory=3)


def test_another_snapshot_makes_another_slice(three_methods: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, runs = SliceSettings().checked(joint=True), three_methods.runs()
    before = joint_target(runs, settings)
    recorded = SnapshotReader.checksum
    monkeypatch.setattr(SnapshotReader, "checksum", lambda self, step: "x" if step == 2 else recorded(self, step))
    assert joint_target(runs, settings).identity != before.identity
    line = SliceSettings(directions="line").checked(joint=True)
    assert joint_target(runs, line).snapshots == tuple(item.split("-")[-1] for item in before.snapshots)


def test_a_diverged_snapshot_is_left_out_of_the_plane(three_methods: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read, lost = SnapshotReader.tensors, three_methods.runs()[1].id

    def diverged(self: SnapshotReader, step: int) -> dict[str, torch.Tensor]:
        tensors = read(self, step)
        gone = step == 4 and lost in str(self._folder)
        return {name: t.fill_(torch.nan) for name, t in tensors.items()} if gone else tensors

    monkeypatch.setattr(SnapshotReader, "tensors", diverged)
    found = joint(three_methods, points=3)
    assert [np.isnan(path.loss).sum() for path in found.trajectories] == [0, 1, 0]
    assert np.isfinite(found.loss).all()
    with pytest.raises(UsageError, match=r"snapshots\[1\]: NaN or infinite parameters; the run had diverged"):
        joint(three_methods, points=3, directions="line")


def test_the_model_is_left_as_found(three_methods: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = opened_in_double(monkeypatch)
    evaluate, calls = PreparedSlice.evaluate, []

    def failing(self: PreparedSlice, coordinates: np.ndarray) -> Any:
        calls.append(state(opened[0].model) if not calls else None)
        if len(calls) == 3:
            raise NonFiniteLossError("the loss is not finite")
        return evaluate(self, coordinates)

    monkeypatch.setattr(PreparedSlice, "evaluate", failing)
    with pytest.raises(LandscapeError, match=r"runs ggpo-.*, lora-.*, mgpo-.*: the loss is not finite"):
        joint(three_methods)
    after = state(opened[0].model)
    assert calls[0] is not None
    assert [key for key in after if after[key] != calls[0][key]] == []


def change_config(old: str, new: str) -> Callable[[Run], None]:
    return lambda run: edit_config(run, old, new)


def change_digest(what: str) -> Callable[[Run], None]:
    return lambda run: edit_json(run.path / "identity.json", lambda values: values["digests"].update({what: "other"}))


def reshape_first_tensor(run: Run) -> None:
    def change(values: dict[str, Any]) -> None:
        first = values["streams"]["params"]["tensors"][0]
        first["shape"] = first["shape"][::-1]

    edit_json(run.path / "attempts" / "1" / "snapshots.json", change)


def rename_first_tensor(run: Run) -> None:
    def change(values: dict[str, Any]) -> None:
        values["streams"]["params"]["tensors"][0]["name"] = "elsewhere"

    edit_json(run.path / "attempts" / "1" / "snapshots.json", change)


FIRST_TENSOR = r"base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_A\.default\.weight"
DIFFERENCES: dict[str, tuple[Callable[[Run], None], str]] = {
    "model": (change_digest("model"), "model: 'tiny' in run ggpo-.*, 'tiny' in run mgpo-"),
    "task": (change_digest("data"), "task: 'arithmetic' in run ggpo-.*, 'arithmetic' in run mgpo-"),
    "dtype": (change_config("dtype: float64", "dtype: float32"), "dtype: 'float64' in run ggpo-.*, 'float32' in"),
    "rank": (
        change_config("rank: 2", "rank: 4"),
        r"rank: 2 in run ggpo-\S+, 4 in run mgpo-\S+; runs on one plane share",
    ),
    "alpha": (change_config("alpha: 16.0", "alpha: 32.0"), "alpha: 16.0 in run ggpo-.*, 32.0 in run mgpo-"),
    "probe": (change_config("probe_examples: 6", "probe_examples: 5"), "probe_examples: 6 in run ggpo-.*, 5 in run"),
    "shape": (reshape_first_tensor, rf"{FIRST_TENSOR}: \(2, 96\) float64 in run ggpo-.*, \(96, 2\) float64 in run"),
    "name": (rename_first_tensor, rf"{FIRST_TENSOR}: \(2, 96\) float64 in run ggpo-\S+, absent in run mgpo-"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_runs_that_do_not_share_a_surface_are_refused_before_anything_is_loaded(
    three_methods: Store, monkeypatch: pytest.MonkeyPatch, difference: str
) -> None:
    change, message = DIFFERENCES[difference]
    change(three_methods.get("mgpo"))
    monkeypatch.setattr("landscape.analysis.slice_joint.open_run", None)
    with pytest.raises(UsageError, match=message):
        joint(three_methods)


def test_a_method_that_rewrote_the_base_model_is_refused(three_methods: Store) -> None:
    run, name = three_methods.get("mgpo"), "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    write_base_tensors(run.path / "attempts" / "1", {name: torch.full((96, 96), 0.5, dtype=torch.float64)})
    message = rf"{name}: frozen at values of checksum \w{{8}} in run ggpo-\S+, frozen .* in run mgpo-"
    with pytest.raises(UsageError, match=message):
        joint(three_methods)


def test_other_scalings_and_probes_are_refused(three_methods: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape.analysis import open_run

    runs = three_methods.runs()[:2]
    first, second = (open_run(run, device="cpu") for run in runs)
    monkeypatch.setattr("landscape.analysis.slice_comparable.open_run", lambda run, **options: second)
    check_same_surface(runs, first, "probe")
    layer: Any = second.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.scaling["default"] *= 2
    with pytest.raises(UsageError, match=r"q_proj\.scaling: {'default': 8.0} in run ggpo-.*, {'default': 16.0} in run"):
        check_same_surface(runs, first, "probe")
    rows: Any = second.data.probe.examples.rows
    rows.targets[0] = "changed"
    layer.scaling["default"] /= 2
    with pytest.raises(UsageError, match=r"probe: examples \w{8} in run ggpo-\S+, examples \w{8} in run lora-"):
        check_same_surface(runs, first, "probe")
    check_same_surface(runs, first, "eval")


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({}, 1, "runs: 1; one plane of several takes at least 2"),
    ({"directions": "line"}, 2, "runs: 2 with directions='line'; a 2D slice goes through one snapshot each of 3"),
    ({"directions": "line", "dims": 1}, 3, "runs: 3 with directions='line'; a 1D slice .* of 2"),
    ({"directions": "random"}, 3, "directions: 'random' of several runs jointly; allowed: line, pca"),
    ({"common": 2}, 3, "common: 2 of several runs jointly; allowed: none"),
    ({"space": "merged"}, 3, "directions: vectors of the adapter; space 'merged' has random directions only"),
    ({"trajectory": 2}, 3, "trajectory: 2; allowed with directions='pca': at least 3"),
]


@pytest.mark.parametrize(("settings", "count", "message"), REFUSED)
def test_refused(three_methods: Store, settings: dict[str, Any], count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        joint(three_methods, three_methods.runs()[:count], **settings)


def test_a_step_that_a_run_lacks(three_methods: Store) -> None:
    with pytest.raises(StoreError, match=r"run ggpo-\S+: no snapshot of step 9; the nearest is 4"):
        joint(three_methods, None, 9)


def command(store: Store, *arguments: object) -> list[object]:
    return [
        "analyze",
        "slice2d",
        store.path,
        "--joint",
        "--points",
        3,
        "--num-examples",
        2,
        "--trajectory",
        3,
        *arguments,
    ]


def test_the_command(three_methods: Store) -> None:
    result = invoke(*command(three_methods, "--dry-run"))
    assert result.exit_code == 0, result.output
    fewest, most = forwards(SliceSettings(points=3).checked(joint=True), 9)
    assert fewest == most == 9 + 2 * 9 + 1
    assert result.stdout.startswith("1 slice of 3 runs to measure: about ")
    assert f"({most} forward passes; one took " in result.stdout
    assert f"on the examples of {three_methods.runs()[0].id};" in result.stdout
    result = invoke(*command(three_methods, "--json"))
    assert result.exit_code == 0, result.output
    ((row,),) = payload(result)["results"].values()
    (path,) = slice_files(joint_slices_dir(three_methods.path))
    assert (row["file"], row["runs"]) == (path.name, [run.id for run in three_methods.runs()])
    assert not any(run.analysis_dir.exists() for run in three_methods.runs())
    again = invoke(*command(three_methods))
    assert "0 slices of 0 runs to measure (1 known)" in again.stderr
    assert again.stdout.startswith("joint: 3 runs: loss ")
    assert "% of the trajectories (slice2d-" in again.stdout
    chosen = invoke(*command(three_methods, "--where", "method in [lora, mgpo]", "--steps", 3, "--json"))
    ((row,),) = payload(chosen)["results"].values()
    assert [run_id[:4] for run_id in row["runs"]] == ["lora", "mgpo"]
    assert row["anchors"] == [3, 3]


def test_an_interrupted_command_goes_on_row_by_row(three_methods: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = PreparedSlice.evaluate, []

    def limited(self: PreparedSlice, coordinates: np.ndarray) -> Any:
        calls.append(coordinates)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, coordinates)

    monkeypatch.setattr(PreparedSlice, "evaluate", limited)
    result = invoke(*command(three_methods))
    assert result.exit_code == 130
    assert "interrupted; the same command goes on from here" in result.stderr
    folder = joint_slices_dir(three_methods.path)
    (unfinished,) = folder.glob("partial-*")
    early = read_slice(unfinished)
    assert early.evaluated.all(axis=2).tolist() == [[True, True, False]]
    result = invoke(*command(three_methods))
    assert result.exit_code == 0, result.output
    assert len(calls) == 3 + 1
    (path,) = slice_files(folder)
    found = read_slice(path)
    assert np.array_equal(found.loss[early.evaluated], early.loss[early.evaluated])
    assert len(found.trajectories) == 3
    assert not unfinished.exists()


def test_an_interruption_between_the_runs_paths(three_methods: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape.analysis import slice_measurement

    project, projected = slice_measurement._projected, []

    def limited(*arguments: Any) -> Any:
        projected.append(arguments[-1].run[:4])
        if len(projected) == 2:
            raise KeyboardInterrupt
        return project(*arguments)

    monkeypatch.setattr(slice_measurement, "_projected", limited)
    with pytest.raises(KeyboardInterrupt):
        joint(three_methods, points=3, trajectory=3)
    found = joint(three_methods, points=3, trajectory=3)
    assert projected == ["ggpo", "lora", "lora", "mgpo"]
    assert [path.run[:4] for path in found.trajectories] == ["ggpo", "lora", "mgpo"]


USAGE: list[tuple[list[object], str]] = [
    (["--steps", "2,4"], "--steps: 2 with --joint; allowed: one, the last whose snapshots count"),
    (["--steps", "9"], "no snapshot of step 9; the nearest is 4"),
    (["--directions", "gradient"], "directions: 'gradient' of several runs jointly; allowed: line, pca"),
    (["--where", "method==lora"], "runs: 1; one plane of several takes at least 2"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_usage_is_one_line(three_methods: Store, arguments: list[object], message: str) -> None:
    result = invoke(*command(three_methods, *arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_damaged_snapshot_is_refused(three_methods: Store) -> None:
    path = three_methods.get("mgpo").path / "attempts" / "1" / "snapshots-params.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = invoke(*command(three_methods))
    assert result.exit_code == 3
    assert "the snapshot of step 4 is damaged (checksum)" in " ".join(result.stderr.split())
    assert not Path(joint_slices_dir(three_methods.path)).exists()
