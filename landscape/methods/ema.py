"""EMA: an exponential average of the trained parameters, evaluated and captured beside them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, StepRule
from landscape.methods.displacement import trainable

STREAM = "ema"
"""Snapshot stream of the averages; their evaluations are the splits ``eval-ema`` and ``probe-ema``."""


class EMAArguments(Arguments):
    """No paper sets them: the usual decay, and TensorFlow's warm-up of it, which keeps the start out of short runs."""

    decay: float = Field(0.999, ge=0, lt=1, description="weight of the average in each update")
    warmup: bool = Field(True, description="at most (1 + t) / (10 + t) in step t, so that the start is forgotten")


class EMA(StepRule):
    """θ̄ ← d·θ̄ + (1-d)·θ after every step, from θ̄ = θ at the start; training does not see it.

    A and B are averaged each, which is not the average of BA.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999, warmup: bool = True) -> None:
        self.arguments = EMAArguments(decay=decay, warmup=warmup)
        self.parameters = trainable(model)
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """One update, in step ``step`` + 1."""
        decay, t = self.arguments.decay, step + 1
        if self.arguments.warmup:
            decay = min(decay, (1 + t) / (10 + t))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    def averages(self) -> dict[str, list[Tensor]]:
        """θ̄ under the name of its stream."""
        return {STREAM: self.values}

    def state_dict(self) -> dict[str, Tensor]:
        """θ̄."""
        return {str(index): value for index, value in enumerate(self.values)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        for index, value in enumerate(self.values):
            value.copy_(state[str(index)])


def rule(model: nn.Module, optimizer: Optimizer, arguments: EMAArguments, seed: int) -> EMA:
    """The rule of a run."""
    return EMA(model, decay=arguments.decay, warmup=arguments.warmup)


METHODS.add(
    Method(
        name="ema",
        summary="trains as it would, with an average of the trained parameters evaluated and captured beside them",
        source="Polyak & Juditsky 1992; SWA, arXiv 1803.05407, for the flatness of averages",
        adapter="lora",
        arguments=EMAArguments,
        rule=rule,
        averages=1,
        over=EVERY_STRUCTURE,
        extra_memory="one copy of the adapter",
    )
)
