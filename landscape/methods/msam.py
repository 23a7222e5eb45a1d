"""Momentum-SAM: the gradient a step of fixed length against the momentum away, for the price of one gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, global_norm
from landscape.methods.displacement import Displacement, trainable
from landscape.methods.mgpo import momentum
from landscape.methods.sam import PROJECTION


class MSAMArguments(Arguments):
    """ρ = 3 is in the authors' commands for all their networks; an adapter, whose norm is of that order, wants less."""

    rho: float = Field(3.0, ge=0, description="length ρ of the perturbation")


class MSAM:
    """θ is stepped with ∇L(θ - ρ·m/‖m‖), m the optimizer's momentum, one norm over all parameters.

    Momentum descends along -m, so the gradient is taken ahead of θ, where the authors find the loss to be higher. The
    first step has no momentum and is unperturbed. The authors keep θ - ρ·m/‖m‖ as the stored weights between steps;
    here θ is stored, and evaluated.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, rho: float = 3.0) -> None:
        self.arguments = MSAMArguments(rho=rho)
        self.optimizer = optimizer
        self.norm = 0.0
        self._displacement = Displacement(trainable(model))

    @torch.no_grad()
    def perturb(self) -> None:
        """θ ← θ - ρ·m/‖m‖; nothing is moved while there is no momentum."""
        if self._displacement.active:
            raise RuntimeError("perturb() twice without restore() between")
        self.norm = 0.0
        found = [momentum(self.optimizer, parameter) for parameter in self._displacement.parameters]
        momenta = [m for m in found if m is not None]
        length = float(global_norm(momenta)) if len(momenta) == len(found) else 0.0
        if length > 0 and math.isfinite(length):
            self._displacement.move(momenta, -self.arguments.rho / length)
            self.norm = self.arguments.rho

    def restore(self, grad_norm: float | None = None) -> None:
        """θ ← the saved copy, bit for bit."""
        self._displacement.restore()

    def metrics(self) -> dict[str, float]:
        """None: the norm is ρ."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing of its own: the momentum is the optimizer's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to continue from."""

    def close(self) -> None:
        """Put the parameters back where they are still perturbed."""
        self._displacement.restore()


def build(model: nn.Module, optimizer: Optimizer, arguments: MSAMArguments, seed: int) -> MSAM:
    """The perturbation of a run; it draws nothing."""
    return MSAM(model, optimizer, rho=arguments.rho)


METHODS.add(
    Method(
        name="msam",
        summary="the gradient at a fixed distance against the momentum: SAM without its second pass",
        source="Momentum-SAM, arXiv 2401.12033, section 2.4, algorithm 1",
        adapter="lora",
        arguments=MSAMArguments,
        perturbation=build,
        over=EVERY_STRUCTURE,
        not_over={"lora-pro": PROJECTION},
        perturbs="trained parameters",
        extra_memory="one copy of the adapter",
    )
)
