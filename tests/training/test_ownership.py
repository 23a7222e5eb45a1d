"""One owner at a time, what becomes of one that has lost its run, and of one that runs out of memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.store import LeaseHeldError, LeaseLostError, Run, Store
from landscape.store.leases import MOST_DEATHS, machine_identity
from landscape.training import ownership, train
from landscape.training.ownership import is_out_of_memory
from landscape.training.trainer import LandscapeTrainer
from tests.store.test_leases import pretend_elsewhere
from tests.training.conftest import QUICK, assert_equal_weights, curve, final_weights

SMALLER = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds two examples at a time; with a list of the steps at which it does not hold more."""
    plain, from_step = LandscapeTrainer.training_step, [0]

    def training_step(self: LandscapeTrainer, model: Any, inputs: Any, num_items: Any = None) -> torch.Tensor:
        if len(inputs["labels"]) > 2 and self.state.global_step >= from_step[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(self, model, inputs, num_items)

    monkeypatch.setattr(LandscapeTrainer, "training_step", training_step)
    return from_step


@pytest.mark.usefixtures("little_memory")
def test_out_of_memory_is_tried_once_more_with_half_the_micro_batch(trained: Callable[..., Run]) -> None:
    run = trained()
    assert (run.status.state, run.status.step, run.status.overrides) == ("done", 6, SMALLER)
    assert (run.config.per_device_train_batch_size, run.config.gradient_accumulation_steps) == (4, 1)
    assert json.loads((run.attempt_dir() / "attempt.json").read_text())["overrides"] == SMALLER
    assert run.status.attempt == 2
    halved = trained(**SMALLER)
    assert halved.id != run.id
    assert halved.status.overrides == {}
    pd.testing.assert_frame_equal(curve(run), curve(halved), check_exact=True)
    assert_equal_weights(final_weights(run), final_weights(halved))


def test_memory_that_runs_out_later_costs_the_steps_behind_the_checkpoint(
    trained: Callable[..., Run], little_memory: list[int]
) -> None:
    little_memory[0] = 5
    run = trained()
    assert run.status.overrides == SMALLER
    assert json.loads((run.attempt_dir() / "attempt.json").read_text())["resume_step"] == 4
    little_memory[0] = 99
    before = trained()
    assert curve(run)["loss_clean"][:4].tolist() == curve(before)["loss_clean"][:4].tolist()


@pytest.mark.usefixtures("little_memory")
def test_a_resumed_run_keeps_to_the_smaller_batch(trained: Callable[..., Run], tmp_path: Path) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise KeyboardInterrupt

    config = RunConfig.parse(QUICK)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "store", on_step=interrupt)
    result = train(config, tmp_path / "store")
    run = Store.open(tmp_path / "store").get(result.run_id)
    assert (run.status.overrides, run.status.attempt) == (SMALLER, 3)
    pd.testing.assert_frame_equal(curve(run), curve(trained()), check_exact=True)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("batch", "attempts"), [(8, 2), (3, 1)])
def test_once_more_and_not_again(tmp_path: Path, batch: int, attempts: int) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(RunConfig.parse({**QUICK, "per_device_train_batch_size": batch}), tmp_path)
    (run,) = Store.open(tmp_path).runs()
    assert (run.status.state, run.status.attempt) == ("failed", attempts)
    assert "out of memory" in (run.status.error or "")
    assert not run.is_leased


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("any words"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (StoreError("No space left on device"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_run_that_was_taken_over_meanwhile_is_its_successors(trained: Callable[..., Run], tmp_path: Path) -> None:
    """The first owner is suspended at step 3, long enough for another to take over and to finish; then it wakes up."""
    config, store = RunConfig.parse(QUICK), tmp_path / "store"

    def be_suspended(line: dict[str, Any]) -> None:
        if line["step"] == 3 and not seen:
            (run,) = Store.open(store).runs()
            pretend_elsewhere(run.path)
            seen.append(train(config, store, expired=run.last_claim.mark).state)  # type: ignore[union-attr]

    seen: list[str] = []
    with pytest.raises(LeaseLostError):
        train(config, store, on_step=be_suspended)
    (run,) = Store.open(store).runs()
    expected = trained()
    assert seen == ["done"]
    assert (run.status.state, run.status.step, run.status.attempt) == ("done", 6, 2)
    pd.testing.assert_frame_equal(curve(run), curve(expected), check_exact=True)
    assert_equal_weights(final_weights(run), final_weights(expected))
    assert run.evaluations()["step"].tolist() == expected.evaluations()["step"].tolist()


def held(store: Path, seconds: float) -> tuple[RunConfig, Run]:
    """A run that was interrupted, with a lease of another machine on it."""
    config = RunConfig.parse({**QUICK, "max_steps": 2})
    train(config, store)
    (run,) = Store.open(store).runs()
    run.set_status(state="interrupted")
    lease = run.claim()
    lease._ended.set()
    pretend_elsewhere(run.path, lease.number, seconds=seconds)
    return config, run


def test_a_lease_of_another_machine_is_watched_until_it_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_POLL_SECONDS", 0.05)
    config, run = held(tmp_path, seconds=0.4)
    assert train(config, tmp_path).state == "done"
    assert run.status.attempt == 3


def test_a_lease_of_another_machine_that_is_renewed_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = held(tmp_path, seconds=600)
    path = run.path / "leases" / "2.json"

    def beat(_: float) -> None:
        path.write_bytes(path.read_bytes() + b"x")

    monkeypatch.setattr(ownership.time, "sleep", beat)
    with pytest.raises(LeaseHeldError, match="on far"):
        train(config, tmp_path)
    assert run.status.state == "interrupted"


def test_a_run_that_kills_its_processes_is_given_up(tmp_path: Path) -> None:
    config = RunConfig.parse({**QUICK, "max_steps": 2, "lr_scheduler_steps": 4})
    train(config, tmp_path)
    (run,) = Store.open(tmp_path).runs()
    for _ in range(MOST_DEATHS):
        lease = run.claim(step=2)
        lease._ended.set()
        pretend_elsewhere(run.path, lease.number, machine=machine_identity(), birth="0")
    longer = config.replace(max_steps=4)
    with pytest.raises(StoreError, match=f"died {MOST_DEATHS} times in a row at step 2"):
        train(longer, tmp_path)
    assert run.status.state == "failed"
    assert train(longer, tmp_path).step == 4, "whoever asks again gets another try"
