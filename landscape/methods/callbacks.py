"""The perturbations as ``transformers.TrainerCallback``s, for anyone's Trainer and for TRL's SFTTrainer.

>>> trainer = SFTTrainer(model=peft_model, ..., callbacks=[MGPOCallback(rho=0.05)])
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from landscape.methods.base import METHODS, Perturbation

logger = logging.getLogger(__name__)


class PerturbationCallback(TrainerCallback):
    """Perturbs in ``on_step_begin`` and restores in ``on_pre_optimizer_step``, once an optimizer step.

    An exception between the two leaves the model perturbed: call `close` (the shared trainer does) before using it.

    Args:
        build: (model, optimizer) → perturbation, called when training begins.
        trainer: gives the gradient norm *before* clipping. Without it the norm is computed after clipping, which is
            another number wherever clipping is on (``max_grad_norm > 0``, transformers' default is 1.0); a warning
            says so. It can also be given later by `watch`.
    """

    def __init__(self, build: Callable[[nn.Module, Optimizer], Perturbation], trainer: Trainer | None = None) -> None:
        self.build = build
        self.perturbation: Perturbation | None = None
        self.grad_norm: float | None = None
        self._watching = False
        if trainer is not None:
            self.watch(trainer)

    def watch(self, trainer: Trainer) -> None:
        """Read the gradient norm that the trainer computes before it clips."""
        original = trainer._get_grad_norm

        def get_grad_norm(model: nn.Module, grad_norm: Any = None) -> Any:
            grad_norm = original(model, grad_norm=grad_norm)
            self.grad_norm = float(grad_norm)
            return grad_norm

        trainer._get_grad_norm = get_grad_norm  # type: ignore[method-assign]
        self._watching = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the perturbation for this model and optimizer."""
        self.perturbation = self.build(kwargs["model"], kwargs["optimizer"])
        if args.max_grad_norm and not self._watching:
            logger.warning(
                "max_grad_norm is %g: the perturbation sees gradient norms after clipping. Give this callback the "
                "trainer (callback.watch(trainer)), or set max_grad_norm=0 as the papers do.",
                args.max_grad_norm,
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first micro-batch of an optimizer step."""
        if self.perturbation is not None:
            self.perturbation.perturb()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the last backward; runs also where a loss scaler will skip the step."""
        if self.perturbation is not None:
            self.perturbation.restore(self.grad_norm)
            self.grad_norm = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove hooks."""
        self.close()

    def close(self) -> None:
        """Restore the weights if they are perturbed and remove every hook."""
        if self.perturbation is not None:
            self.perturbation.close()


class MGPOCallback(PerturbationCallback):
    """MGPO in anyone's Trainer; arguments as `landscape.methods.mgpo.MGPOArguments`."""

    def __init__(self, *, trainer: Trainer | None = None, seed: int = 0, **arguments: Any) -> None:
        super().__init__(_factory("mgpo", arguments, seed), trainer)


class GGPOCallback(PerturbationCallback):
    """GGPO in anyone's Trainer; arguments as `landscape.methods.ggpo.GGPOArguments`."""

    def __init__(self, *, seed: int = 0, **arguments: Any) -> None:
        super().__init__(_factory("ggpo", arguments, seed))
        self._watching = True  # it uses no gradient norm, so clipping is no concern


def _factory(name: str, arguments: dict[str, Any], seed: int) -> Callable[[nn.Module, Optimizer], Perturbation]:
    method = METHODS[name]
    parsed = method.parse_arguments(arguments)
    factory = method.perturbation
    if factory is None:
        raise ValueError(f"method {name!r} perturbs nothing")
    return lambda model, optimizer: factory(model, optimizer, parsed, seed)
