"""The batches of one optimizer step, kept so that a rule can differentiate them again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from landscape.training.rng import RngState

if TYPE_CHECKING:
    from landscape.training.trainer import LandscapeTrainer


class StepWindow:
    """`landscape.methods.base.Window` over the trainer's micro-batches; each replays the dropout of its first forward.

    Args:
        model: as the trainer calls it, with DDP's wrapper.
        batches: inputs and the random state before their first forward.
    """

    def __init__(
        self, trainer: LandscapeTrainer, model: nn.Module, batches: list[tuple[dict[str, Tensor], RngState]]
    ) -> None:
        self.parameters: list[nn.Parameter] = trainer.trainable
        self._trainer, self._model, self._batches = trainer, model, batches

    def backward(self, part: int = 0, parts: int = 1) -> Tensor:
        """See `landscape.methods.base.Window.backward`; with dropout, a part of a micro-batch draws its own mask."""
        accelerator, total, seen = self._trainer.accelerator, None, 0
        last = len(self._batches) - 1
        for index, (inputs, state) in enumerate(self._batches):
            size = len(inputs["labels"])
            chosen = [example for example in range(size) if (seen + example) % parts == part]
            seen += size
            # DDP reduces gradients in the backward of the last micro-batch, which all processes must reach.
            if not chosen and not (index == last and accelerator.num_processes > 1):
                continue
            batch = inputs if len(chosen) == size else {key: value[chosen] for key, value in inputs.items()}
            state.restore()
            waits = index < last and accelerator.num_processes > 1
            with accelerator.no_sync(self._model) if waits else contextlib.nullcontext():
                with self._trainer.compute_loss_context_manager():
                    loss, differentiated = self._trainer.objective(self._model, batch)
                accelerator.backward(differentiated)
            total = loss if total is None else total + loss
        return total if total is not None else torch.zeros((), device=self._trainer.args.device)
