"""LPF-SGD: the gradient of the loss smoothed by a Gaussian filter, by Monte Carlo over parts of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, StepRule, Window, noise_generator
from landscape.methods.displacement import Displacement, drop_gradients, filter_noise, trainable
from landscape.methods.sam import PROJECTION


class LPFSGDArguments(Arguments):
    """The authors' for ResNets on CIFAR (their README): one draw, fixed radius; elsewhere M = 8, γ₀ = 5e-4, α = 15."""

    gamma: float = Field(0.002, ge=0, description="γ₀: noise of an entry over the norm of its filter, at the start")
    draws: int = Field(1, ge=1, description="M: parts of the batch, each under a noise of its own")
    growth: float = Field(0.0, ge=0, description="α: γ grows to (1 + α)·γ₀ along a cosine; 0: fixed")
    ramp_steps: int | None = Field(None, ge=1, description="T of that cosine; null: the schedule's length")


def resolve(arguments: LPFSGDArguments, steps: int) -> LPFSGDArguments:
    """With the ramp's length filled in."""
    return arguments.model_copy(update={"ramp_steps": arguments.ramp_steps or steps})


class LPFSGD(StepRule):
    """θ is stepped with Σ_k ∇L_k(θ + ε_k), L_k the window's loss over the k-th of M parts, ε_k ~ N(0, γ_t²·Σ).

    Σ has ‖θ_i‖² of the entry's filter on its diagonal (a row of A or B), γ_t = γ₀·(1 + α/2·(1 - cos(πt/T))). The
    examples of the whole accumulation window are dealt out to the parts in turns. The unperturbed loss is measured by
    a forward without gradient.
    """

    replays = True
    first_gradient = False

    def __init__(self, model: nn.Module, arguments: LPFSGDArguments, *, seed: int = 0) -> None:
        self.arguments, self.seed, self.step = arguments, seed, 0
        self.gamma = 0.0
        self._displacement = Displacement(trainable(model))

    @torch.no_grad()
    def gradients(self, window: Window) -> Tensor:
        """The filtered gradient; ``norm`` is that of the last draw."""
        parameters, draws = self._displacement.parameters, self.arguments.draws
        progress = min(self.step / (self.arguments.ramp_steps or 1), 1.0)
        self.gamma = self.arguments.gamma * (1 + self.arguments.growth / 2 * (1 - math.cos(math.pi * progress)))
        drop_gradients(parameters)
        total = None
        for draw in range(draws):
            keys = [draw * len(parameters) + index for index in range(len(parameters))]
            made = [noise_generator(p.device, self.seed, self.step, k) for k, p in zip(keys, parameters, strict=True)]
            noise = filter_noise(parameters, made, self.gamma)
            self.norm = float(torch.nn.utils.get_total_norm(noise))
            self._displacement.move(noise)
            try:
                with torch.enable_grad():
                    loss = window.backward(draw, draws)
            finally:
                self._displacement.restore()
            total = loss if total is None else total + loss
        self.step += 1
        assert total is not None
        return total

    def metrics(self) -> dict[str, float]:
        """``lpf_sgd_gamma``: γ_t of this step."""
        return {"lpf_sgd_gamma": self.gamma}

    def state_dict(self) -> dict[str, Tensor]:
        """The step counter, which keys the noise."""
        return {"step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.step = int(state["step"])


def rule(model: nn.Module, optimizer: Optimizer, arguments: LPFSGDArguments, seed: int) -> LPFSGD:
    """The rule of a run."""
    return LPFSGD(model, arguments, seed=seed)


METHODS.add(
    Method(
        name="lpf-sgd",
        summary="the gradient of the loss smoothed by a Gaussian as wide as the filters' norms",
        source="LPF-SGD, arXiv 2201.08025, algorithm 1",
        adapter="lora",
        arguments=LPFSGDArguments,
        rule=rule,
        resolve=resolve,
        over=EVERY_STRUCTURE,
        not_over={"lora-pro": PROJECTION},
        perturbs="trained parameters",
        passes="1, and a forward",
        extra_memory="one copy of the adapter and its noise",
    )
)
