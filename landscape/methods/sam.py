"""SAM: the gradient where the loss is highest nearby, to first order."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, StepRule, Window, global_norm
from landscape.methods.displacement import Displacement, drop_gradients, trainable

PROJECTION = "its projection takes gradients at A and B themselves, not at a perturbed A and B"
"""Why LoRA-Pro is no adapter below methods that perturb A and B."""


class SAMArguments(Arguments):
    """The paper's default."""

    rho: float = Field(0.05, ge=0, description="radius ρ of the neighborhood")


class SAM(StepRule):
    """θ is stepped with ∇L(θ + ε), ε = ρ·g/‖g‖, g = ∇L(θ) (eq. 2 and 3, p = 2), one norm over all parameters.

    Both gradients are of the whole accumulation window, so that accumulating is one large batch; the second replays
    the dropout of the first.
    """

    replays = True

    def __init__(self, model: nn.Module, *, rho: float = 0.05) -> None:
        self.arguments = SAMArguments(rho=rho)
        self._displacement = Displacement(trainable(model))

    def gradients(self, window: Window) -> Tensor | None:
        """The gradient at θ + ε in place of that at θ; nothing is done where the latter is zero or not finite."""
        moved = [p for p in window.parameters if p.grad is not None]
        first = [p.grad for p in moved if p.grad is not None]
        length = float(global_norm(first))
        self.norm = 0.0
        if not (length > 0 and math.isfinite(length)):
            return None
        zero = torch.zeros(())
        direction = [p.grad if p.grad is not None else zero.to(p).expand_as(p) for p in self._displacement.parameters]
        self._displacement.move(direction, self.arguments.rho / length)
        self.norm = self.arguments.rho
        drop_gradients(window.parameters)
        try:
            return window.backward()
        finally:
            self._displacement.restore()


def rule(model: nn.Module, optimizer: Optimizer, arguments: SAMArguments, seed: int) -> SAM:
    """The rule of a run; it draws nothing."""
    values: dict[str, Any] = arguments.model_dump()
    return SAM(model, **values)


METHODS.add(
    Method(
        name="sam",
        summary="steps with the gradient at the highest loss within ρ, to first order",
        source="SAM, arXiv 2010.01412, eq. 2-3, algorithm 1",
        adapter="lora",
        arguments=SAMArguments,
        rule=rule,
        over=EVERY_STRUCTURE,
        not_over={"lora-pro": PROJECTION},
        perturbs="trained parameters",
        passes="2",
        extra_memory="one copy of the adapter",
    )
)
