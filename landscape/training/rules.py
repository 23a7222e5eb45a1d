"""The rules of a run: built when training begins, called around each optimizer step, part of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from landscape.methods import Recipe
from landscape.methods.base import StepRule

if TYPE_CHECKING:
    from landscape.training.trainer import LandscapeTrainer

_PREFIX = "rule"


class RuleCallback(TrainerCallback):
    """Gives the trainer its rules and tells them of each step; added before whatever reads them.

    Args:
        state: of the checkpoint's perturbation and rules, to continue from.
    """

    def __init__(self, trainer: LandscapeTrainer, made: Recipe, seed: int, state: Mapping[str, Tensor]) -> None:
        self.trainer, self.state = trainer, state
        self.factories = [_bound(method.rule, arguments, seed) for method, arguments in made.parts if method.rule]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Build the rules for this model and optimizer."""
        self.trainer.rules = [build(self.trainer.module, kwargs["optimizer"]) for build in self.factories]
        for index, rule in enumerate(self.trainer.rules):
            prefix = f"{_PREFIX}.{index}."
            saved = {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}
            if self.state:
                rule.load_state_dict(saved)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After ``optimizer.step()``, with the gradients still there."""
        for rule in self.trainer.rules:
            rule.after_step(state.global_step)


def rule_states(rules: list[StepRule]) -> dict[str, Tensor]:
    """Of all rules, for a checkpoint."""
    states = [(index, rule.state_dict()) for index, rule in enumerate(rules)]
    return {f"{_PREFIX}.{index}.{key}": value for index, state in states for key, value in state.items()}


def perturbation_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's state without that of the rules."""
    return {key: value for key, value in state.items() if not key.startswith(f"{_PREFIX}.")}


@contextmanager
def shown(parameters: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Let the parameters have other values, and put their own back bit for bit."""
    own = [parameter.data for parameter in parameters]
    saved = [tensor.clone() for tensor in own]
    torch._foreach_copy_(own, values)
    try:
        yield
    finally:
        torch._foreach_copy_(own, saved)


def _bound(factory: Any, arguments: Any, seed: int) -> Callable[[nn.Module, Optimizer], StepRule]:
    return lambda model, optimizer: factory(model, optimizer, arguments, seed)
