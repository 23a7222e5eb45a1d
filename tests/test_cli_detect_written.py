"""``landscape detect`` on logs that transformers, TensorBoard and W&B wrote themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.command_line import invoke, payload
from tests.importers.small_trainer import train_a_line
from tests.test_cli_detect import STEPS, rebound, smooth

WANDB = Path(__file__).parent / "importers" / "data" / "wandb"


def test_the_state_of_a_trainer(tmp_path: Path) -> None:
    train_a_line(tmp_path, 40, eval_steps=2)
    state = tmp_path / "checkpoint-40" / "trainer_state.json"
    expected = {
        "loss": ("steps", "raw", 40),
        "grad_norm": ("steps", "logarithm", 40),
        "eval_loss": ("evaluation", "raw", 20),
    }
    for column, known in expected.items():
        answer = payload(invoke("detect", state, "--column", column, "--json"))
        assert answer["format"] == "trainer_state.json"
        [curve] = answer["curves"]
        assert (curve["kind"], curve["tested_curve"], curve["points"]) == known
        assert curve["learning_rate"]


def test_a_folder_of_tensorboard(tmp_path: Path) -> None:
    for name, values in (("plain", smooth()), ("bumpy", rebound())):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step, value in zip(STEPS.tolist(), values.tolist(), strict=True):
                writer.add_scalar("train/loss", value, step)
    figure = tmp_path / "out.svg"
    result = invoke("detect", tmp_path, "-o", figure, "--json")
    answer = payload(result)
    assert {curve["run"]: curve["count"] for curve in answer["curves"]} == {"plain": 0, "bumpy": 1}
    assert figure.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("run", sorted(path.name for path in WANDB.iterdir() if path.is_dir()))
def test_an_offline_run_of_wandb(run: str) -> None:
    result = invoke("detect", WANDB / run, "--json")
    assert result.exit_code == 0, result.output
    [curve] = payload(result)["curves"]
    assert curve["tested"]
    assert curve["points"] >= 40
    assert curve["count"] == 0  # 1/(1 + step)
