"""The models that the slice benchmark displaces, and the bare forward pass that a point is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from curvature_parts.workload import SHAPES
from curvature_parts.workload import build as build_llama
from torch import Tensor, nn

Batch = dict[str, Tensor]
SMOLLM2 = "smollm2-135m"
CASES = (*SHAPES, SMOLLM2)
"""The shared workload at two shapes, and a pretrained model on 4 examples of 32 tokens."""


def build(case: str) -> tuple[nn.Module, Batch]:
    """A LoRA model in evaluation mode, no B of which is zero, and its batch."""
    return build_smollm2() if case == SMOLLM2 else build_llama(case)


def build_smollm2() -> tuple[nn.Module, Batch]:
    """SmolLM2-135M with adapters of rank 16 on all of its linear layers, on random tokens."""
    from landscape.config import RunConfig
    from landscape.methods import attach
    from landscape.models import load_model
    from landscape.training import resolve

    config = resolve(RunConfig.parse({
        "model": SMOLLM2, "method": "lora", "rank": 16, "alpha": 32.0, "learning_rate": 1e-4, "max_steps": 1,
        "dtype": "float32",
    }))  # fmt: skip
    model = attach(load_model(config).model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    ids = torch.randint(5, vocabulary, (4, 32), generator=torch.Generator().manual_seed(2))
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


@torch.no_grad()
def bare_loss(model: Any, batch: Batch) -> float:
    """Transformers' own loss: on these batches every label counts, so it is the loss of every tool here."""
    return float(model(**batch).loss)


@torch.no_grad()
def logits_alone(model: Any, batch: Batch) -> None:
    """The forward pass without any loss."""
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of the clock."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
