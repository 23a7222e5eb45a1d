"""A Trainer that steps through losses that were written down before, so that tests of callbacks know what comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from landscape.training import EpisodeWatchCallback

STEPS = 300
ONSET, RECOVERY = 150, 230


def rebound(noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """(300,) a descent with a bump from step 150 to 230 that is highest at 190; step s has value s - 1."""
    x = np.arange(STEPS)
    bump = 0.6 * np.clip(np.minimum(x - ONSET, RECOVERY - x) / 40, 0, None)
    return 1 + 2 * np.exp(-x / 40) + bump + noise * np.random.default_rng(seed).standard_normal(STEPS)


class _Replay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, value: Tensor) -> dict[str, Tensor]:
        return {"loss": value.mean() + 0 * self.weight.sum()}


class ReplayTrainer(Trainer):
    """Takes its examples in order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)


def replay_trainer(folder: Path, losses: Sequence[float], callbacks: list[Any], **arguments: Any) -> ReplayTrainer:
    """A Trainer whose optimizer step s has loss ``losses[s - 1]``, whatever the accumulation and the processes."""
    accumulation = arguments.get("gradient_accumulation_steps", 1)
    settings: dict[str, Any] = {
        "max_steps": len(losses), "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": 1, "use_cpu": True, "logging_nan_inf_filter": False,
    }  # fmt: skip
    args = TrainingArguments(str(folder), **{**settings, **arguments})
    repeats = accumulation * args.world_size
    rows = [{"value": torch.tensor(float(value))} for value in losses for _ in range(repeats)]
    trainer = ReplayTrainer(_Replay(), args, train_dataset=rows, callbacks=callbacks)  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    return trainer


def main() -> None:
    """One of several processes: trains until the watch stops it and writes where that was."""
    folder = Path(sys.argv[1])
    watch = EpisodeWatchCallback(stop=True, warmup_steps=0)
    logging = 10 if sys.argv[2] == "each" else 1
    trainer = replay_trainer(folder / "out", rebound().tolist(), [watch], ddp_backend="gloo", logging_steps=logging)
    if sys.argv[2] == "each":
        watch.watch(trainer)
    trainer.train()
    rank = trainer.args.process_index
    (folder / f"{rank}.txt").write_text(f"{trainer.state.global_step} {len(watch.events)}")
    torch.distributed.barrier()
    # Gloo's threads sometimes wait for each other for ever when the group is taken down, or abort at exit.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
