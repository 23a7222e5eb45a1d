"""Flat-LoRA: Gaussian noise on W' = W + s·BA, row by row as large as the row, growing over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import METHODS, Arguments, Method
from landscape.methods.ggpo import GGPO


class FlatLoRAArguments(Arguments):
    """σ is that of the paper for T5-base and for Llama 2-7B (sections 4.1 and 4.3)."""

    sigma: float = Field(0.05, ge=0, description="σ at the end: size of the noise relative to the weights")
    ramp_steps: int | None = Field(None, ge=1, description="T of the cosine ramp; null: the schedule's length")
    apply: Literal["auto", "swap", "regenerate"] = Field("auto", description="as for ggpo")
    offload: bool = Field(False, description="with swap: the saved copy of W in (pinned) host memory")


def resolve(arguments: FlatLoRAArguments, steps: int) -> FlatLoRAArguments:
    """With the ramp's length filled in."""
    return arguments.model_copy(update={"ramp_steps": arguments.ramp_steps or steps})


class FlatLoRA:
    """ε_ij ~ N(0, σ_t²/n · ‖W'_i‖²), σ_t = σ·(1 - cos(πt/T))/2 in step t = 0, 1, …, and σ from T on.

    One draw an optimizer step, held over its micro-batches: `landscape.methods.ggpo.GGPO` without its gradient term.
    """

    def __init__(self, model: nn.Module, *, seed: int = 0, **arguments: Any) -> None:
        self.arguments = FlatLoRAArguments(**arguments)
        self.norm = 0.0
        a = self.arguments
        self.noise = GGPO(model, seed=seed, sigma=a.sigma, gradient_norm=False, apply=a.apply, offload=a.offload)

    @property
    def sigma(self) -> float:
        """σ_t of the step to come."""
        length = self.arguments.ramp_steps or 1
        return self.arguments.sigma * (1 - math.cos(math.pi * min(self.noise.step / length, 1.0))) / 2

    def perturb(self) -> None:
        """Draw ε at this step's size."""
        self.noise.sigma = self.sigma
        self.noise.perturb()
        self.norm = self.noise.norm

    def restore(self, grad_norm: float | None = None) -> None:
        """Put W back bit for bit."""
        self.noise.restore(grad_norm)

    def metrics(self) -> dict[str, float]:
        """``flat_lora_sigma``: σ_t of this step."""
        return {"flat_lora_sigma": self.noise.sigma}

    def state_dict(self) -> dict[str, Tensor]:
        """The step counter."""
        return self.noise.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.noise.load_state_dict(state)

    def close(self) -> None:
        """Restore."""
        self.noise.close()


def build(model: nn.Module, optimizer: Optimizer, arguments: FlatLoRAArguments, seed: int) -> FlatLoRA:
    """The perturbation of a run; the optimizer is not needed."""
    return FlatLoRA(model, seed=seed, **arguments.model_dump())


METHODS.add(
    Method(
        name="flat-lora",
        summary="LoRA under Gaussian noise on W', scaled by its rows' norms and growing along a cosine",
        source="Flat-LoRA, arXiv 2409.14396 v2, eq. 6 and 7; the cosine: nblt/Flat-LoRA",
        adapter="lora",
        arguments=FlatLoRAArguments,
        perturbation=build,
        resolve=resolve,
        perturbs="frozen W",
        extra_memory="swap: one copy of W (or pinned host); regenerate: one layer",
        execution_arguments=frozenset({"apply", "offload"}),
    )
)
