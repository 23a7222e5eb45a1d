"""Entropy-SGD: descends the local entropy, whose gradient an inner loop of Langevin dynamics estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, StepRule, Window, noise_generator
from landscape.methods.displacement import Displacement, drop_gradients, trainable


class EntropySGDArguments(Arguments):
    """The authors' for CIFAR-10 (their README and code), γ where its scoping begins. ``average`` is the weight of the
    newest state as in algorithm 1; their code has 0.75 as that of the average.
    """

    inner_steps: int = Field(20, ge=1, description="L: Langevin steps before each step of the optimizer")
    gamma: float = Field(0.03, gt=0, description="γ: how strongly the inner loop is held near θ")
    inner_rate: float = Field(0.1, gt=0, description="η': step size of the inner loop")
    noise: float = Field(1e-4, ge=0, description="ε: thermal noise of the inner loop")
    average: float = Field(0.75, ge=0, lt=1, description="α: weight of the newest inner state in their average")


class EntropySGD(StepRule):
    """The optimizer gets γ·(θ - μ), μ the average of L steps of stochastic gradient Langevin dynamics from θ:

    y ← y - η'·(∇L(y) - γ·(θ - y)) + √η'·ε·ξ,  μ ← (1-α)·μ + α·y,  y = μ = θ at the start (algorithm 1).

    The inner steps differentiate the same window again, under the same dropout; the paper draws a batch for each. The
    optimizer is the run's AdamW, which takes this gradient's direction entry by entry and not its length; the paper's
    is SGD with momentum.
    """

    replays = True

    def __init__(self, model: nn.Module, arguments: EntropySGDArguments, *, seed: int = 0) -> None:
        self.arguments, self.seed, self.step = arguments, seed, 0
        self._displacement = Displacement(trainable(model))

    @torch.no_grad()
    def gradients(self, window: Window) -> Tensor | None:
        """γ·(θ - μ) in place of the gradient at θ, which is the first inner step's; returns the mean inner loss."""
        a, parameters = self.arguments, self._displacement.parameters
        made = [noise_generator(p.device, self.seed, self.step, index) for index, p in enumerate(parameters)]
        self.step += 1
        outer = self._displacement.save()
        mean = [p.detach().clone() for p in parameters]
        losses: list[Tensor] = []
        try:
            for inner in range(a.inner_steps):
                if inner:
                    drop_gradients(parameters)
                    with torch.enable_grad():
                        losses.append(window.backward())
                for p, start, mu, generator in zip(parameters, outer, mean, made, strict=True):
                    gradient = torch.zeros_like(p) if p.grad is None else p.grad
                    thermal = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
                    step = gradient - a.gamma * (start - p)
                    p.data.add_(step, alpha=-a.inner_rate).add_(thermal, alpha=math.sqrt(a.inner_rate) * a.noise)
                    mu.lerp_(p.data, a.average)
        finally:
            self._displacement.restore()
        apart = [p.detach() - mu for p, mu in zip(parameters, mean, strict=True)]
        self.norm = float(torch.nn.utils.get_total_norm(apart))
        for parameter, difference in zip(parameters, apart, strict=True):
            parameter.grad = a.gamma * difference
        return torch.stack(losses).mean() if losses else None

    def state_dict(self) -> dict[str, Tensor]:
        """The step counter, which keys the noise."""
        return {"step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.step = int(state["step"])


def rule(model: nn.Module, optimizer: Optimizer, arguments: EntropySGDArguments, seed: int) -> EntropySGD:
    """The rule of a run."""
    return EntropySGD(model, arguments, seed=seed)


METHODS.add(
    Method(
        name="entropy-sgd",
        summary="steps towards the average of a short Langevin walk, which stays where the loss is low and wide",
        source="Entropy-SGD, arXiv 1611.01838, algorithm 1",
        adapter="lora",
        arguments=EntropySGDArguments,
        rule=rule,
        over=EVERY_STRUCTURE,
        not_over={"lora-pro": "its projection takes the gradients of a loss, not a difference of weights"},
        perturbs="trained parameters",
        passes="L (20)",
        extra_memory="two copies of the adapter",
    )
)
