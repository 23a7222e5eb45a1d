"""AdaLoRA: W + s·P·diag(λ)·Q, whose singular values are pruned by importance down to a rank budget (PEFT's).

PEFT holds Q as ``lora_A``, λ as ``lora_E`` and P as ``lora_B``. Two things have to be done for it: its allocation is
called after each optimizer step, and its orthogonality penalty, which it adds to the model's own ``.loss`` alone, is
differentiated beside the cross-entropy that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import AdaLoraConfig
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import UsageError
from landscape.methods.base import METHODS, Arguments, Method, StepRule


class AdaLoRAArguments(Arguments):
    """Section 4.1 of the paper has initial_ratio, beta1 and beta2, and tries 0.1, 0.3 and 0.5 for orthogonality, of
    which the authors' scripts for GLUE take 0.1. The budget's steps are set task by task there, here they are shares of
    the schedule: those scripts have 9 and 58 % for MNLI, 17 and 52 % for MRPC.
    """

    initial_ratio: float = Field(1.5, gt=1, description="initial over final rank; the config's rank is the final one")
    warmup: float = Field(0.15, ge=0, lt=1, description="share of the schedule before pruning begins")
    final: float = Field(0.5, ge=0, lt=1, description="share of the schedule with the final budget")
    interval: int = Field(1, ge=1, description="steps between allocations while the budget falls")
    beta1: float = Field(0.85, gt=0, lt=1, description="decay of the averaged sensitivity")
    beta2: float = Field(0.85, gt=0, lt=1, description="decay of its averaged uncertainty")
    orthogonality: float = Field(0.1, ge=0, description="γ: weight of the penalty that keeps P and Q orthogonal")
    total_steps: int | None = Field(None, ge=1, description="length of the budget's schedule; null: the schedule's")


def initial_rank(rank: int, arguments: AdaLoRAArguments) -> int:
    """The rank before pruning."""
    return math.ceil(arguments.initial_ratio * rank)


def resolve(arguments: AdaLoRAArguments, steps: int) -> AdaLoRAArguments:
    """With the schedule's length filled in.

    Raises:
        UsageError: no step is left in which the budget could fall.
    """
    total = arguments.total_steps or steps
    if _first(arguments, total) >= total - _last(arguments, total):
        raise UsageError(
            f"method_args.warmup, final: {arguments.warmup} and {arguments.final} of {total} steps leave none in which "
            "the rank budget falls; allowed: together less than 1, and a longer run"
        )
    return arguments.model_copy(update={"total_steps": total})


def _first(arguments: AdaLoRAArguments, total: int) -> int:
    return int(arguments.warmup * total)


def _last(arguments: AdaLoRAArguments, total: int) -> int:
    return max(int(arguments.final * total), 1)


def peft_config(keywords: dict[str, Any], arguments: AdaLoRAArguments) -> AdaLoraConfig:
    """PEFT's config, with shares of the schedule turned into steps."""
    rank, total = keywords["r"], arguments.total_steps or 1
    return AdaLoraConfig(
        **{key: value for key, value in keywords.items() if key != "r"},
        init_r=initial_rank(rank, arguments),
        target_r=rank,
        tinit=_first(arguments, total),
        tfinal=_last(arguments, total),
        deltaT=arguments.interval,
        beta1=arguments.beta1,
        beta2=arguments.beta2,
        orth_reg_weight=arguments.orthogonality,
        total_step=total,
    )


class RankAllocation(StepRule):
    """PEFT's allocation and penalty for one model.

    Args:
        model: a `peft.PeftModel` with AdaLoRA.
    """

    def __init__(self, model: nn.Module, arguments: AdaLoRAArguments) -> None:
        self.arguments = arguments
        self.adalora: Any = model.base_model
        self.config = self.adalora.peft_config["default"]
        named = list(model.named_parameters())
        self.factors = [p for name, p in named if "lora_A" in name or "lora_B" in name]
        self.singular_values = {name: p for name, p in self.adalora.model.named_parameters() if "lora_E" in name}
        self.scored = [p for name, p in named if any(f"lora_{part}" in name for part in "ABE")]
        self.last_penalty = 0.0

    def penalty(self, model: nn.Module, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """γ · the mean over P and Q of ‖PᵀP - I‖_F, as the authors' code has it (eq. 4 has the squared norm)."""
        deviations = []
        for p in self.factors:
            gram = p @ p.T if p.shape[0] < p.shape[1] else p.T @ p
            deviations.append(torch.linalg.norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))
        total = self.arguments.orthogonality * torch.stack(deviations).mean()
        self.last_penalty = float(total.detach())
        return total

    def after_step(self, step: int) -> None:
        """Score every triplet and mask what exceeds the budget (eq. 6-11, appendix A); not after a skipped step."""
        if all(p.grad is not None for p in self.scored):
            self.adalora.update_and_allocate(step)

    @property
    def kept(self) -> int:
        """Singular values that are not masked, over all layers."""
        pattern = self.config.rank_pattern
        if not pattern:
            return sum(p.numel() for p in self.singular_values.values())
        return sum(sum(_flat(mask)) for mask in pattern.values())

    def metrics(self) -> dict[str, float]:
        """``adalora_ranks`` (singular values kept, all layers together) and ``adalora_penalty``."""
        return {"adalora_ranks": float(self.kept), "adalora_penalty": self.last_penalty}

    def state_dict(self) -> dict[str, Tensor]:
        """Importance averages and the mask."""
        allocator = self.adalora.rankallocator
        state = {
            f"{part}.{name}": value
            for part in ("ipt", "exp_avg_ipt", "exp_avg_unc")
            for name, value in getattr(allocator, part).items()
        }
        for name, mask in (self.config.rank_pattern or {}).items():
            state[f"mask.{name}"] = torch.tensor(_flat(mask))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        allocator, masks = self.adalora.rankallocator, {}
        device = self.factors[0].device
        for key, value in state.items():
            part, _, name = key.partition(".")
            if part == "mask":
                masks[name] = value.tolist()
            else:
                getattr(allocator, part)[name] = value.to(device)
        self.config.rank_pattern = masks or None


def _flat(mask: Any) -> list[bool]:
    return torch.as_tensor(mask).flatten().tolist()


def rule(model: nn.Module, optimizer: Optimizer, arguments: AdaLoRAArguments, seed: int) -> RankAllocation:
    """The rule of a run."""
    return RankAllocation(model, arguments)


METHODS.add(
    Method(
        name="adalora",
        summary="LoRA in SVD form; the least important singular values are pruned down to the rank on average",
        source="AdaLoRA, arXiv 2303.10512, eq. 3, 4 and 6-11, appendix A",
        adapter="adalora",
        arguments=AdaLoRAArguments,
        peft=peft_config,
        rule=rule,
        largest_rank=initial_rank,
        resolve=resolve,
        extra_memory="three averages of the adapter's size",
    )
)
