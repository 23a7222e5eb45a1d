"""Small models with their dense Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import dense_hessian, in_double
from tests.small_models import batch, lora_model

SHAPES = {
    "causal": {"hidden_size": 8, "intermediate_size": 12},
    "seq2seq": {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1},
    "classification": {"hidden_size": 8, "intermediate_size": 12},
}


def tiny(kind: str) -> nn.Module:
    """A few hundred trainable parameters, float64 throughout."""
    return in_double(lora_model(kind, rank=1, **SHAPES[kind]))


def ragged(kind: str) -> list[dict[str, Tensor]]:
    """Batches of different sizes and lengths, prompts masked; their mean losses do not average to the loss."""
    return [batch(kind, 4, 9, seed=0), batch(kind, 2, 5, seed=1)]


@dataclass(frozen=True)
class Case:
    model: nn.Module
    batches: list[dict[str, Tensor]]
    hessian: Tensor
    eigenvalues: Tensor  # descending


@pytest.fixture(scope="session")
def case() -> Callable[[str], Case]:
    """By kind; computed once, because measuring leaves a model as it was."""

    @cache
    def make(kind: str) -> Case:
        model, batches = tiny(kind), ragged(kind)
        hessian = dense_hessian(model, batches)
        return Case(model, batches, hessian, torch.linalg.eigvalsh(hessian).flip(0))

    return make
