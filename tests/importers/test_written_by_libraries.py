"""Logs that transformers and TensorBoard wrote themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from landscape.errors import UsageError
from landscape.importers import read_log
from tests.importers.small_trainer import train_a_line


def test_trainer_state_of_a_trainer(tmp_path: Path) -> None:
    trainer = train_a_line(tmp_path, 12, eval_steps=6)
    log = read_log(tmp_path)
    assert (log.format, len(log.runs)) == ("trainer_state.json", 1)
    run, column = log.select("loss")[0]
    curve = run.curve(column)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert curve.steps.tolist() == list(range(1, 13))
    assert curve.values.tolist() == [entry["loss"] for entry in history]
    assert curve.learning_rate is not None
    assert curve.learning_rate.tolist() == [entry["learning_rate"] for entry in history]
    assert curve.epoch_steps == pytest.approx((4, 8))
    assert run.curve("eval_loss").steps.tolist() == [6, 12]
    assert run.curve("grad_norm").steps.tolist() == list(range(1, 13))


def _write(folder: Path, first: int, last: int, offset: float = 0.0) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in range(first, last):
            writer.add_scalar("train/loss", offset + step, step)
            writer.add_scalar("train/learning_rate", 0.5, step, new_style=True)
        writer.add_histogram("weights", torch.arange(4.0), last)
        writer.add_text("words", "none of them a scalar")


def test_tensorboard_folders_with_two_runs_and_a_resume(tmp_path: Path) -> None:
    _write(tmp_path / "a", 0, 6)
    _write(tmp_path / "b", 0, 3)
    first = next((tmp_path / "a").iterdir())
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))  # begun before the other one
    _write(tmp_path / "a", 4, 8, offset=100)
    log = read_log(tmp_path)
    assert [(run.name, sorted(run.columns)) for run in log.runs] == [
        ("a", ["train/learning_rate", "train/loss"]),
        ("b", ["train/learning_rate", "train/loss"]),
    ]
    curve = log.runs[0].curve("train/loss")
    assert curve.values.tolist() == [0, 1, 2, 3, 104, 105, 106, 107]
    assert curve.resume_steps == (4,)
    assert curve.learning_rate is not None
    assert curve.learning_rate.tolist() == [0.5] * 8
    assert log.runs[1].curve("train/loss").steps.tolist() == [0, 1, 2]


def test_an_event_file_alone_and_cut_off(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(4):
            writer.add_scalar("loss", step, step)
    path = next(tmp_path.iterdir())
    renamed = path.rename(tmp_path / "events.log")  # told by its content
    assert read_log(renamed).runs[0].curve("loss").steps.tolist() == [0, 1, 2, 3]
    data = renamed.read_bytes()
    for cut in (1, 10, 20):
        renamed.write_bytes(data[:-cut])
        log = read_log(renamed)
        assert log.runs[0].curve("loss").steps.tolist() == [0, 1, 2]
        assert log.notes == ("events.log is cut off: its last record was left out",)


def test_without_scalars_and_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("words", "none of them a scalar")
    with pytest.raises(UsageError, match="its event files hold no scalars"):
        read_log(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(UsageError, match=r"needs TensorBoard: pip install 'lora-landscape\[tensorboard\]'"):
        read_log(tmp_path)
