"""A few steps of transformers' own Trainer, for what it writes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainingArguments


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.layer(x)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out}


def train_a_line(folder: Path, steps: int, eval_steps: int) -> Trainer:
    """Epochs of four steps, four steps of warm-up, every step logged; ``folder/checkpoint-<steps>`` is left."""
    draw = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(2, generator=draw), "labels": torch.ones(1)} for _ in range(16)]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, logging_steps=1, eval_strategy="steps", eval_steps=eval_steps, save_steps=steps,
        per_device_train_batch_size=4, warmup_steps=4, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(_Line(), arguments, train_dataset=data, eval_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    return trainer
