"""LoRA+: B learns faster than A."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn
from torch.optim import AdamW

from landscape.methods.base import METHODS, AdamSettings, Arguments, Method


class LoRAPlusArguments(Arguments):
    """The ratio of the papers' tables (LoRA-MGPO, appendix B.3)."""

    ratio: float = Field(16.0, gt=0, description="λ: B's learning rate over A's, which is the config's")


def optimizer(model: nn.Module, arguments: LoRAPlusArguments, settings: AdamSettings) -> AdamW:
    """AdamW with the config's learning rate for A (and a trained head), and λ times it for B.

    The learning rate of B is logged as ``learning_rate_lora_B``.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fast = [p for name, p in named if ".lora_B." in name]
    slow = [p for name, p in named if ".lora_B." not in name]
    rate = settings.learning_rate
    return torch.optim.AdamW(
        [{"params": slow, "lr": rate}, {"params": fast, "lr": arguments.ratio * rate, "name": "lora_B"}],
        lr=rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


METHODS.add(
    Method(
        name="lora-plus",
        summary="LoRA whose B has a higher learning rate than its A",
        source="LoRA+, arXiv 2402.12354; its ratio: LoRA-MGPO, appendix B.3",
        adapter="lora",
        arguments=LoRAPlusArguments,
        optimizer=optimizer,
    )
)
