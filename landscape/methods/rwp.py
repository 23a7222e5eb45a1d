"""RWP: random weight perturbation, mixed with the gradient at the unperturbed weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, StepRule, Window, noise_generator
from landscape.methods.displacement import Displacement, drop_gradients, filter_noise, trainable
from landscape.methods.sam import PROJECTION


class RWPArguments(Arguments):
    """The authors' script for m-RWP has both (train_mrwp_parallel.py of nblt/mARWP)."""

    sigma: float = Field(0.01, ge=0, description="σ: noise of an entry over the norm of its filter")
    mix: float = Field(
        0.5, ge=0, lt=1, description="weight of the unperturbed gradient, 1 - λ of the paper; 0 is plain RWP"
    )


class RWP(StepRule):
    """θ is stepped with λ·∇L(θ + ε) + (1-λ)·∇L(θ), ε_ij ~ N(0, σ²·‖θ_i‖²) with the norm of the entry's filter.

    A filter is a row of A or B, or a whole vector; the rows of B are zero at the start, and so is their noise. Both
    gradients are of the same window (the paper takes two batches on two devices).
    """

    replays = True

    def __init__(self, model: nn.Module, *, sigma: float = 0.01, mix: float = 0.5, seed: int = 0) -> None:
        self.arguments = RWPArguments(sigma=sigma, mix=mix)
        self.first_gradient = mix > 0
        self.seed, self.step = seed, 0
        self._displacement = Displacement(trainable(model))

    @torch.no_grad()
    def gradients(self, window: Window) -> Tensor:
        """The mixture, in place of the gradient at θ."""
        parameters = self._displacement.parameters
        generators = [noise_generator(p.device, self.seed, self.step, index) for index, p in enumerate(parameters)]
        noise = filter_noise(parameters, generators, self.arguments.sigma)
        self.norm = float(torch.nn.utils.get_total_norm(noise))
        self.step += 1
        first = [p.grad for p in parameters]
        drop_gradients(parameters)
        self._displacement.move(noise)
        try:
            with torch.enable_grad():
                loss = window.backward()
        finally:
            self._displacement.restore()
        mix = self.arguments.mix
        for parameter, clean in zip(parameters, first, strict=True):
            if parameter.grad is not None and clean is not None:
                parameter.grad.mul_(1 - mix).add_(clean, alpha=mix)
        return loss

    def state_dict(self) -> dict[str, Tensor]:
        """The step counter, which keys the noise."""
        return {"step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.step = int(state["step"])


def rule(model: nn.Module, optimizer: Optimizer, arguments: RWPArguments, seed: int) -> RWP:
    """The rule of a run."""
    return RWP(model, sigma=arguments.sigma, mix=arguments.mix, seed=seed)


METHODS.add(
    Method(
        name="rwp",
        summary="half the gradient where it is, half under Gaussian noise scaled by filter norms",
        source="m-RWP, arXiv 2211.11489 and 2404.00357; nblt/mARWP",
        adapter="lora",
        arguments=RWPArguments,
        rule=rule,
        over=EVERY_STRUCTURE,
        not_over={"lora-pro": PROJECTION},
        perturbs="trained parameters",
        passes="2",
        extra_memory="one copy of the adapter, its gradient and its noise",
    )
)
