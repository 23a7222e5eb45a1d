"""What is captured besides every step: Adam's moments, and the steps around a rise of the loss."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from safetensors.torch import load_file

from landscape.config import Capture, RunConfig
from landscape.errors import StoreError
from landscape.store import Store, plan_capture
from landscape.training import recorder, train, trainer
from landscape.training.watch import WatchEvent
from tests.training.conftest import QUICK


def test_adam_moments_are_captured_beside_the_parameters(trained):
    run = trained(capture={"every": 1, "moments": True})
    assert run.streams() == ["adam_v", "params"]
    moments = run.snapshots("adam_v")
    assert moments.steps.tolist() == [1, 2, 3, 4, 5, 6]
    saved = load_file(run.checkpoint_dir / "step-000006" / "optimizer.safetensors")
    last = list(moments.tensors(6).values())
    assert all(torch.equal(saved[f"{i}.exp_avg_sq"], tensor) for i, tensor in enumerate(last))


class AlarmAt:
    """Stands in for the watch on the loss: an event at a given step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, step: int, loss: float) -> WatchEvent | None:
        assert math.isfinite(loss)
        return WatchEvent(step, step - 1) if step == self.at else None


def test_steps_around_an_event_are_kept(tmp_path, monkeypatch):
    capture = Capture(policy="events", ring=2, budget_gb=1e-4)
    config = RunConfig.parse({**QUICK, "max_steps": 20, "eval_steps": 0, "capture": capture.model_dump()})
    monkeypatch.setattr(recorder, "EventWatch", lambda warmup: AlarmAt(12))
    result = train(config, tmp_path / "events")
    run = Store.open(tmp_path / "events").get(result.run_id)
    planned = plan_capture(capture, 20, run.snapshots().layout.record_bytes)
    assert not {10, 11, 12, 13} <= set(planned.steps)
    steps = run.snapshots().steps.tolist()
    # Two before the event and two from it on, besides the planned ones.
    assert steps == sorted({*planned.steps, *_last_unplanned(planned.steps, 12, 2), 12, 13})

    assert run.metrics().set_index("step")["episode_warning"].dropna().to_dict() == {12: 11}

    whole = train(config.replace(capture={"every": 1}, seed=0), tmp_path / "every")
    everything = Store.open(tmp_path / "every").get(whole.run_id).snapshots()
    for step in steps:
        kept, expected = run.snapshots().tensors(step), everything.tensors(step)
        assert all(torch.equal(kept[name], expected[name]) for name in expected)


def _last_unplanned(planned: tuple[int, ...], event: int, count: int) -> list[int]:
    return [step for step in range(event) if step not in planned][-count:]


def test_a_full_disk_fails_the_run_and_keeps_what_was_written(tmp_path, monkeypatch):
    from landscape.store.records import RecordWriter

    original, written = RecordWriter.append, []

    def append(self, step, record):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(step)
        original(self, step, record)

    monkeypatch.setattr(RecordWriter, "append", append)
    config = RunConfig.parse(QUICK)
    with pytest.raises(StoreError, match="No space left on device"):
        train(config, tmp_path)
    run = Store.open(tmp_path).runs()[0]
    assert run.status.state == "failed"
    assert "No space left" in (run.status.error or "")
    assert run.snapshots().steps.tolist() == [0, 1, 2]
    monkeypatch.setattr(RecordWriter, "append", original)
    assert train(config, tmp_path).state == "done"


def test_a_tracker_that_is_not_installed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="report_to: 'tensorbord' is not installed"):
        train(RunConfig.parse({**QUICK, "report_to": ["tensorbord"]}), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_trackers_get_every_step(tmp_path, monkeypatch):
    logged = []
    plain = trainer.training_arguments
    monkeypatch.setattr(trainer.LandscapeTrainer, "log", lambda self, logs, *_: logged.append(logs))
    monkeypatch.setattr(sys.modules["landscape.training.resolve"], "check_trackers", lambda names: None)
    monkeypatch.setattr(trainer, "training_arguments", lambda config, path: plain(config.replace(report_to=[]), path))
    train(RunConfig.parse({**QUICK, "report_to": ["some"]}), tmp_path)
    assert [line["step"] for line in logged if "loss_clean" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("method", ["lora", "mgpo"])
def test_a_resumed_run_watches_on_from_its_own_record(tmp_path, monkeypatch, method):
    seen: list[recorder.EventWatch] = []

    class Kept(recorder.EventWatch):
        def __init__(self, warmup):
            super().__init__(warmup)
            seen.append(self)

    monkeypatch.setattr(recorder, "EventWatch", Kept)
    config = RunConfig.parse({**QUICK, "method": method, "max_steps": 14, "save_steps": 6, "lr_scheduler_steps": 14})
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", on_step=lambda line: _interrupt_at(9, line))
    train(config, tmp_path / "cut")
    whole, _, resumed = seen
    assert resumed.state_dict() == whole.state_dict()


def _interrupt_at(step, line):
    if line["step"] == step:
        raise KeyboardInterrupt
