"""Slow and plain references: what the fast code must agree with, written without it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


class DoubleRMSNorm(nn.Module):
    """Root-mean-square normalization in the input's own precision."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + self.epsilon)


def in_double(model: nn.Module) -> nn.Module:
    """The model with every norm in float64: Llama's and T5's compute theirs in float32 whatever the model's dtype."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
                setattr(parent, name, DoubleRMSNorm(child.weight, child.variance_epsilon))
    return model.double()


Batches = Sequence[Mapping[str, Tensor]]


def reference_loss(model: nn.Module, batches: Batches, parameters: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy over the counted labels of all batches, gathered into one list and averaged.

    Padding positions are left in place; only labels other than -100 are counted.
    """
    nll = []
    for batch in batches:
        labels = batch["labels"]
        encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
        inputs = {key: value for key, value in batch.items() if key != "labels" or encoder_decoder}
        logits = torch.func.functional_call(model, dict(parameters), (), inputs).logits
        if labels.dim() == 2 and not encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]
        log_probabilities = F.log_softmax(logits, dim=-1).reshape(-1, logits.shape[-1])
        labels = labels.reshape(-1)
        counted = (labels != -100).nonzero()[:, 0]
        nll.append(-log_probabilities[counted, labels[counted]])
    return torch.cat(nll).mean()


def flat_loss(model: nn.Module, batches: Batches) -> tuple[Any, Tensor]:
    """``reference_loss`` as a function of one vector (n,) of the trainable parameters, and that vector."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [tensor.numel() for tensor in named.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(named.items(), flat.split(sizes), strict=True)
        return reference_loss(model, batches, {name: part.view_as(tensor) for (name, tensor), part in parts})

    return loss, torch.cat([tensor.reshape(-1) for tensor in named.values()])


def dense_hessian(model: nn.Module, batches: Batches) -> Tensor:
    """(n, n) float64 by forward-mode over reverse-mode differentiation, on a model of `in_double`."""
    loss, theta = flat_loss(model, batches)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # eager attention takes its softmax in float32
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)  # torch's own use
        return torch.func.jacfwd(torch.func.grad(loss))(theta)


def difference_product(model: nn.Module, batches: Batches, vector: Tensor, step: float = 1e-4) -> Tensor:
    """H·v by a central difference of the gradient: independent of every second derivative; error O(step²)."""
    loss, theta = flat_loss(model, batches)
    gradient = torch.func.grad(loss)
    with sdpa_kernel(SDPBackend.MATH):
        return (gradient(theta + step * vector) - gradient(theta - step * vector)) / (2 * step)
