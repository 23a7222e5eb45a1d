"""``landscape analyze slice1d`` and ``slice2d``, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from landscape.analysis import RestoredRun, open_run
from landscape.slices.grid import PreparedSlice
from landscape.store import Run
from landscape.store.slices import read_slice, slice_files
from tests.analysis.trained_runs import Stores, edit_config
from tests.command_line import invoke, payload
from tests.measurement.test_context import state


@pytest.mark.parametrize(("command", "dims"), [("slice1d", 1), ("slice2d", 2)])
def test_the_command(stores: Stores, run: Run, command: str, dims: int) -> None:
    store = run.path.parent.parent
    arguments = ["analyze", command, store, "--points", 5, "--num-examples", 2, "--step", 4]
    result = invoke(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 slice of 1 run to measure: about ")
    assert f"{5**dims + 1} forward passes; one took " in result.stdout
    assert not run.analysis_dir.exists()
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer = payload(result)
    ((row,),) = answer["results"].values()
    assert (row["dims"], row["points"], row["step"]) == (dims, 5**dims, 4)
    assert answer["estimate"]["forwards"] == [5**dims + 1] * 2
    assert read_slice(run.analysis_dir / row["file"]).origin_loss == row["origin_loss"]
    again = invoke(*arguments)
    assert "0 slices of 0 runs to measure (1 known)" in again.stderr
    assert again.stdout.startswith(f"{run.id}: step 4: loss ")
    assert row["file"] in again.stdout


def test_the_command_draws_a_trajectory_on_its_principal_plane(run: Run) -> None:
    store = run.path.parent.parent
    result = invoke("analyze", "slice2d", store, "--trajectory", 5, "--points", 3, "--num-examples", 2)
    assert result.exit_code == 0, result.output
    assert "of the trajectory (slice2d-" in result.stdout
    (path,) = slice_files(run.analysis_dir)
    assert read_slice(path).info["settings"]["directions"] == "pca"


def test_the_command_on_a_line_says_between_which_snapshots(run: Run) -> None:
    arguments = ["--directions", "line", "--points", 3, "--num-examples", 2]
    result = invoke("analyze", "slice1d", run.path.parent.parent, *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{run.id}: steps 0, 4: loss ")
    assert "barrier " in result.stdout


def test_the_command_fails_for_what_is_undefined(run: Run) -> None:
    store = run.path.parent.parent
    result = invoke("analyze", "slice1d", store, "--steps", "0", "--points", 5, "--num-examples", 2, "--json")
    assert result.exit_code == 3
    assert "normalization='none'" in payload(result)["errors"][run.id]


USAGE: list[tuple[list[str], str]] = [
    (["--radius", "0"], "radius: 0.0; allowed: numbers greater than 0"),
    (["--tolerance", "2"], "tolerance: 2.0; allowed"),
    (["--split", "train"], "split: 'train' is not known; allowed: eval, probe"),
    (["--precision", "float8"], "precision: 'float8' is not known; allowed: bfloat16, float16"),
    (["--directions", "randm"], "Did you mean 'random'?"),
    (["--steps", "9"], "--steps: no snapshot at step 9; the nearest is 4"),
    (["--steps", "a"], "--steps: 'a' is not a whole number"),
    (["--steps", "4", "--directions", "line"], "steps: 1 with directions='line'"),
    (["--where", "rank==99"], "none of the 1 runs"),
    (["--common", "9"], "no snapshot of step 9; the nearest is 4"),
    (["--common", "4", "--directions", "line"], "common: 4 with directions='line'"),
    (["--joint"], "runs: 1; one plane of several takes at least 2"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_usage_is_one_line(stores: Stores, arguments: list[str], message: str) -> None:
    result = invoke("analyze", "slice2d", stores("lora"), *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


CHEAP = ["--points", 5, "--num-examples", 2]


def slice2d(run: Run, *arguments: object) -> list[object]:
    return ["analyze", "slice2d", run.path.parent.parent, *CHEAP, *arguments]


def last_line(result: Result, run: Run) -> str:
    """Of what a run failed with."""
    return payload(result)["errors"][run.id].strip().splitlines()[-1]


def test_losses_that_are_not_finite_are_kept_and_counted(run: Run) -> None:
    result = invoke(*slice2d(run, "--radius", "1e30", "--json"))
    assert result.exit_code == 0, result.output
    ((row,),) = payload(result)["results"].values()
    found = read_slice(run.analysis_dir / row["file"])
    assert found.loss[0, 2, 2] == pytest.approx(found.origin_loss, rel=1e-5)
    assert np.isnan(found.loss[0, [0, 0, -1, -1], [0, -1, 0, -1]]).all()
    assert row["not_finite"] == (~np.isfinite(found.loss)).sum() >= 4
    assert found.evaluated.all()
    assert f"{row['not_finite']} points not finite" in invoke(*slice2d(run, "--radius", "1e30")).stdout


def damage(run: Run) -> None:
    path = run.path / "attempts" / "1" / "snapshots-params.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FAILS: dict[str, tuple[Callable[[Run], object], str]] = {
    "damaged": (damage, r"\S+snapshots-params.bin: the snapshot of step 4 is damaged \(checksum\)"),
    "other adapter": (
        lambda run: edit_config(run, "rank: 2", "rank: 3"),
        r"the snapshot of step 4: base_model\S* is \(2, 96\) \S+, the model's \(3, 96\) \S+",
    ),
}


@pytest.mark.parametrize("case", FAILS)
def test_snapshots_that_cannot_be_used(run: Run, case: str) -> None:
    change, message = FAILS[case]
    change(run)
    result = invoke(*slice2d(run, "--json"))
    assert result.exit_code == 3
    assert re.fullmatch(f"landscape.errors.StoreError: {message}", last_line(result, run))
    assert not run.analysis_dir.exists()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[RestoredRun]:
    """The models that are sliced."""
    found: list[RestoredRun] = []

    def keep(run: Run, **options: Any) -> RestoredRun:
        found.append(open_run(run, **options))
        return found[-1]

    monkeypatch.setattr("landscape.analysis.slices.open_run", keep)
    return found


def assert_at_step(opened: list[RestoredRun], step: int) -> None:
    """The model, after all that happened, is the one that a run opened anew has at this step."""
    last = opened[-1]
    found = state(last.model)
    last.load(step)
    expected = state(last.model)
    assert [key for key in expected if key != "random" and found[key] != expected[key]] == []
    assert not any("forward" in vars(module) for module in last.model.modules())


def test_too_little_memory(run: Run, monkeypatch: pytest.MonkeyPatch, opened: list[RestoredRun]) -> None:
    monkeypatch.setattr("landscape.slices.memory.free_bytes", lambda device: 2**18)
    result = invoke(*slice2d(run, "--json"))
    assert result.exit_code == 3
    message = (
        "landscape.errors.LandscapeError: 2 directions of 10944 parameters need 0.000245 GiB of memory on cpu; "
        "0.000244 GiB are free"
    )
    assert last_line(result, run) == message
    assert_at_step(opened, 4)


def test_memory_that_runs_out_on_the_way(run: Run, monkeypatch: pytest.MonkeyPatch, opened: list[RestoredRun]) -> None:
    evaluate, calls = PreparedSlice.evaluate, []

    def full(self: PreparedSlice, coordinates: np.ndarray) -> Any:
        calls.append(coordinates)
        if len(calls) == 2:
            head = opened[0].model.get_submodule("base_model.model.lm_head")
            hook = head.register_forward_pre_hook(lambda *inputs: allocation_fails())
            try:
                return evaluate(self, coordinates)
            finally:
                hook.remove()
        return evaluate(self, coordinates)

    monkeypatch.setattr(PreparedSlice, "evaluate", full)
    result = invoke(*slice2d(run, "--json"))
    assert result.exit_code == 3
    assert last_line(result, run) == (
        "landscape.errors.LandscapeError: out of memory during a forward pass; use smaller batches or "
        "evaluation='in_place'"
    )
    assert_at_step(opened, 4)
    assert invoke(*slice2d(run)).exit_code == 0
    assert len(calls) == 2 + 4


def allocation_fails() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")


def test_an_interrupted_command_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch, opened: list[RestoredRun]) -> None:
    evaluate, calls = PreparedSlice.evaluate, []

    def limited(self: PreparedSlice, coordinates: np.ndarray) -> Any:
        calls.append(coordinates)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(self, coordinates)

    monkeypatch.setattr(PreparedSlice, "evaluate", limited)
    result = invoke(*slice2d(run))
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        130, "interrupted; the same command goes on from here",
    )  # fmt: skip
    assert_at_step(opened, 4)
    assert slice_files(run.analysis_dir) == []
    assert invoke(*slice2d(run)).exit_code == 0
    assert len(calls) == 4 + 2
    (path,) = slice_files(run.analysis_dir)
    assert read_slice(path).evaluated.all()
    assert list(Path(run.analysis_dir).glob("partial-*")) == []
