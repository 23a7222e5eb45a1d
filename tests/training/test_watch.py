"""Rebounds noticed while training: one warning each, in any Trainer, whatever is logged, resumed or distributed."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.store import Store
from landscape.training import EpisodeWatchCallback, SnapshotCallback
from landscape.training.watch import TAG, EventWatch
from tests.training.replayed_losses import ONSET, RECOVERY, rebound, replay_trainer

ROOT = Path(__file__).resolve().parent.parent.parent


def feed(watch: EventWatch, losses: np.ndarray, first: int = 1) -> list[int]:
    """Steps at which events began."""
    return [step for step, loss in enumerate(losses.tolist(), first) if watch.update(step, loss)]


def test_one_event_a_rebound() -> None:
    watch = EventWatch()
    descended = rebound(seed=1)[100:] - 2 * np.exp(-np.arange(100, 300) / 40)
    begun = feed(watch, np.concatenate([rebound(), descended]))
    assert len(begun) == len(watch.events) == 2
    first, second = watch.events
    assert ONSET < first.step < 190
    assert first.step == begun[0]
    assert ONSET - 20 < first.since < first.step < (first.over or 0) < RECOVERY + 20
    assert 350 < second.step < 390
    assert watch.current is None


def test_a_rebound_is_not_reported_again_by_longer_blocks() -> None:
    x = np.arange(600)
    for height in (1, 3, 10):
        shock = height * np.where(x >= 300, np.exp(-(x - 300) / 15), 0)
        watch = EventWatch()
        feed(watch, 2 + np.exp(-x / 100) + shock + 0.05 * np.random.default_rng(0).standard_normal(600))
        assert len(watch.events) == 1


def test_not_a_number_is_an_event_until_the_loss_is_back() -> None:
    losses = rebound()
    losses[ONSET:] = losses[:ONSET]
    losses[ONSET:] = losses[ONSET - 20 : ONSET].mean() + 0.02 * np.random.default_rng(3).standard_normal(150)
    losses[200:203] = [math.nan, math.inf, math.nan]
    watch = EventWatch()
    assert feed(watch, losses) == [201]
    assert watch.events[0].since == 201
    assert 203 < (watch.events[0].over or 0) < 230
    never = EventWatch()
    assert feed(never, np.full(50, math.nan)) == [1]
    assert never.current is not None


@pytest.mark.parametrize("cut", [0, 3, 40, 149, 185, 260])
def test_a_saved_state_goes_on_as_if_it_had_not_been_saved(cut: int) -> None:
    losses = rebound(noise=0.05, seed=2)
    whole, before, after = EventWatch(), EventWatch(), EventWatch()
    feed(whole, losses)
    feed(before, losses[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    feed(after, losses[cut:], cut + 1)
    assert after.events == whole.events
    assert after.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("arguments", "each_step"),
    [
        ({}, False),
        ({"logging_steps": 2}, False),
        ({"logging_steps": 50}, True),
        ({"gradient_accumulation_steps": 3}, False),
        ({"gradient_accumulation_steps": 3, "logging_steps": 7}, True),
    ],
)
def test_one_warning_and_one_tag(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], each_step: bool
) -> None:
    watch = EpisodeWatchCallback()
    trainer = replay_trainer(tmp_path, rebound().tolist(), [watch], **arguments)
    if each_step:
        watch.watch(trainer)
    with caplog.at_level(logging.WARNING, "landscape.training.watch"):
        trainer.train()
    (event,) = watch.events
    assert [record.getMessage() for record in caplog.records if record.name == "landscape.training.watch"] == [
        f"step {event.step}: the training loss has been rising since step {event.since:g}"
    ]
    tagged = {entry["step"]: entry[TAG] for entry in trainer.state.log_history if TAG in entry}
    assert tagged == {event.step: event.since}
    # Blocks of four logged values and two more in sight: the delay grows with logging_steps, unless steps are watched.
    wait = 1 if each_step else arguments.get("logging_steps", 1)
    assert ONSET < event.step <= ONSET + 25 + 8 * wait
    if each_step:
        expected = EventWatch()
        feed(expected, np.float32(rebound()).astype(float))
        assert watch.events == tuple(expected.events)
        logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
        every = arguments["logging_steps"]
        assert sorted({*range(every, 301, every), event.step}) == logged


@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.parametrize("patience", [0, 10])
def test_stop(tmp_path: Path, patience: int, each_step: bool) -> None:
    watch = EpisodeWatchCallback(stop=True, patience=patience)
    trainer = replay_trainer(tmp_path, rebound().tolist(), [watch])
    if each_step:
        watch.watch(trainer)
    trainer.train()
    assert trainer.state.global_step == watch.events[0].step + patience < RECOVERY


def test_a_rebound_shorter_than_the_patience_does_not_stop(tmp_path: Path) -> None:
    watch = EpisodeWatchCallback(stop=True, patience=200)
    trainer = replay_trainer(tmp_path, rebound().tolist(), [watch])
    trainer.train()
    assert trainer.state.global_step == 300
    assert watch.events[0].over is not None


def test_the_trainers_own_warmup_is_not_watched(tmp_path: Path) -> None:
    for warmup, expected in ((RECOVERY + 20, 0), (0, 1)):
        watch = EpisodeWatchCallback()
        replay_trainer(tmp_path, rebound().tolist(), [watch], warmup_steps=warmup).train()
        assert len(watch.events) == expected
    given = EpisodeWatchCallback(warmup_steps=RECOVERY + 20)
    replay_trainer(tmp_path, rebound().tolist(), [given]).train()
    assert given.events == ()


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.parametrize("at", [100, 180])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(
    tmp_path: Path, at: int, each_step: bool, restore: bool
) -> None:
    losses = rebound().tolist()

    def build(save: bool) -> tuple[Any, EpisodeWatchCallback]:
        watch = EpisodeWatchCallback()
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": at} if save else {}
        trainer = replay_trainer(
            tmp_path, losses, [watch], restore_callback_states_from_checkpoint=restore, logging_steps=2, **saving
        )
        if each_step:
            watch.watch(trainer)
        return trainer, watch

    whole, watch = build(save=True)
    whole.train()
    resumed, _ = build(save=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    again = next(c for c in resumed.callback_handler.callbacks if isinstance(c, EpisodeWatchCallback))
    assert again.events == watch.events != ()
    assert resumed.state.log_history[-2].keys() >= {"loss"}
    tags = [{e["step"]: e[TAG] for e in t.state.log_history if TAG in e} for t in (whole, resumed)]
    assert tags[0] == tags[1]


def test_a_checkpoint_without_the_callback_is_read_from_its_log(tmp_path: Path) -> None:
    losses = rebound().tolist()
    saving = {"save_strategy": "steps", "save_steps": 90}
    replay_trainer(tmp_path, losses, [], **saving).train()
    reference, watch = EpisodeWatchCallback(), EpisodeWatchCallback()
    replay_trainer(tmp_path / "whole", losses, [reference]).train()
    resumed = replay_trainer(tmp_path, losses, [watch], **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-180"))
    assert watch.events == reference.events
    saved = json.loads((tmp_path / "checkpoint-270" / "trainer_state.json").read_text())
    assert "EpisodeWatchCallback" in saved["stateful_callbacks"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("marked", ["save_only_model", "ignore_data_skip", None])
def test_a_jump_at_a_resume_that_changes_the_run(tmp_path: Path, marked: str | None, known: bool) -> None:
    """Without the optimizer's state, or on other batches, the loss may jump: no rebound. Otherwise it is one."""
    descent = 1 + 2 * np.exp(-np.arange(300) / 40) + 0.02 * np.random.default_rng(0).standard_normal(300)
    jumped = descent + 0.5 * (np.arange(300) >= 150) * np.exp(-np.maximum(np.arange(300) - 150, 0) / 30)
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 150} | ({marked: True} if marked else {})
    first = [EpisodeWatchCallback()] if known else []
    replay_trainer(tmp_path, descent.tolist(), list(first), **settings).train()
    watch = EpisodeWatchCallback()
    # Where batches are not skipped the data begin anew, so the losses that come are the first.
    losses = jumped[150:].tolist() + jumped[:150].tolist() if marked == "ignore_data_skip" else jumped.tolist()
    trainer = replay_trainer(tmp_path, losses, [watch], **{**settings, "max_steps": 300})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-150"))
    assert trainer.state.global_step == 300
    assert [150 < event.step < 190 for event in watch.events] == ([] if marked else [True])


@pytest.mark.parametrize("each_step", [False, True])
def test_a_restart_of_the_learning_rate_is_no_rebound(tmp_path: Path, each_step: bool) -> None:
    """Two cosine cycles; the loss follows the learning rate up. Told only that the loss rises, the watch would warn."""
    x = np.arange(300)
    rate = 0.5 + 0.5 * np.cos(np.pi * (x % 150) / 150)
    losses = 1 + 2 * np.exp(-x / 40) + 0.5 * (x >= 150) * rate + 0.02 * np.random.default_rng(0).standard_normal(300)
    watch = EpisodeWatchCallback()
    schedule = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}
    trainer = replay_trainer(tmp_path, losses.tolist(), [watch], **schedule)
    if each_step:
        watch.watch(trainer)
    trainer.train()
    assert watch.events == ()
    blind = EventWatch()
    assert feed(blind, losses)[0] < 190


def test_training_again_begins_anew(tmp_path: Path) -> None:
    watch = EpisodeWatchCallback()
    trainer = replay_trainer(tmp_path, rebound().tolist(), [watch])
    trainer.train()
    first = watch.events
    trainer.train()
    assert watch.events == first


def planned_steps(snapshots: SnapshotCallback) -> tuple[int, ...]:
    assert snapshots._capture is not None
    return snapshots._capture.plan.steps


@pytest.mark.parametrize("watch_first", [True, False])
@pytest.mark.parametrize("each_step", [True, False])
def test_snapshots_around_an_event_are_kept(tmp_path: Path, watch_first: bool, each_step: bool) -> None:
    watch = EpisodeWatchCallback()
    snapshots = SnapshotCallback(tmp_path / "store", capture={"policy": "events", "ring": 7, "budget_gb": 1e-6})
    callbacks = [watch, snapshots] if watch_first else [snapshots, watch]
    trainer = replay_trainer(tmp_path / "out", rebound().tolist(), callbacks)
    if each_step:
        watch.watch(trainer)
    trainer.train()
    (event,) = watch.events
    (run,) = Store.open(tmp_path / "store").runs()
    # Besides the planned ones seven up to the event's step, and seven from the next one on, where the warning is known.
    planned = planned_steps(snapshots)
    before = [step for step in range(event.step + 1) if step not in planned][-7:]
    assert run.snapshots().steps.tolist() == sorted({*planned, *before, *range(event.step + 1, event.step + 8)})
    metrics = run.metrics()
    assert metrics["step"].tolist() == list(range(1, 301))
    assert metrics.set_index("step")[TAG].dropna().to_dict() == {event.step: event.since}


def test_a_stopped_run_keeps_the_snapshots_before_it(tmp_path: Path) -> None:
    watch = EpisodeWatchCallback(stop=True)
    snapshots = SnapshotCallback(tmp_path / "store", capture={"policy": "events", "ring": 7, "budget_gb": 1e-6})
    replay_trainer(tmp_path / "out", rebound().tolist(), [snapshots, watch]).train()
    (run,) = Store.open(tmp_path / "store").runs()
    last, planned = watch.events[0].step, planned_steps(snapshots)
    assert planned[-1] == 300 > last
    before = [step for step in range(last + 1) if step not in planned][-7:]
    assert run.snapshots().steps.tolist() == sorted({*before, *(step for step in planned if step <= last)})
    assert run.metrics()[TAG].iloc[-1] == watch.events[0].since


def test_without_a_watch_no_ring_is_held(tmp_path: Path) -> None:
    snapshots = SnapshotCallback(tmp_path / "store", capture={"policy": "events", "ring": 7, "budget_gb": 1e-6})
    replay_trainer(tmp_path / "out", rebound().tolist()[:20], [snapshots]).train()
    assert snapshots._capture is not None
    assert len(snapshots._capture._ring) == 0


@pytest.mark.parametrize("mode", ["logged", "each"])
def test_two_processes_stop_at_the_same_step(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["tests.training.replayed_losses", str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1))
    alone = EpisodeWatchCallback()
    replay_trainer(tmp_path / "alone", rebound().tolist(), [alone]).train()
    # What is logged after a step can stop the other processes in the next one.
    stopped = alone.events[0].step + (mode == "logged")
    assert first == [str(stopped), "1"]
    assert second == [str(stopped), "0"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"patience": -1, "stop": True}, "patience: None and -1 must not be negative"),
        ({"warmup_steps": -5}, "warmup_steps, patience: -5 and 0 must not be negative"),
        ({"threshold": 0}, "threshold: 0 must be greater than 0"),
        ({"patience": 10}, "patience: 10 has no effect without stop=True"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        EpisodeWatchCallback(**arguments)
