"""Initializations that move a part of W into the adapter: W ← W - s·BA, so that the model starts where it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from landscape.errors import UsageError
from landscape.methods.adapted import AdaptedLinear


def dense_weight(layer: AdaptedLinear, method: str) -> Tensor:
    """W (out, in) of a layer in at least float32.

    Raises:
        UsageError: the base is quantized, so that nothing can be subtracted from it.
    """
    weight = layer.weight
    if weight is None:
        raise UsageError(f"method: {method!r} rewrites base weights, and {layer.name} is quantized; use 'lora'")
    return weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)


@torch.no_grad()
def subtract(layer: AdaptedLinear, update: Tensor, method: str) -> None:
    """W ← W - update, (out, in), rounded once to W's dtype."""
    residual = dense_weight(layer, method) - update
    target: Tensor = layer.base.weight  # type: ignore[assignment]
    target.copy_(residual.T if layer.transposed else residual)


def base_tensors(model: nn.Module, layers: Sequence[AdaptedLinear]) -> dict[str, Tensor]:
    """The layers' base weights by their names in the model, to be stored beside the snapshots."""
    rewritten = {id(layer.base.weight) for layer in layers}
    return {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False) if id(p) in rewritten}


def refuse_tied(layers: Sequence[AdaptedLinear], method: str) -> None:
    """Two layers that share one W cannot both take their part out of it.

    Raises:
        UsageError: names the second of them.
    """
    owner: dict[int, str] = {}
    for layer in layers:
        first = owner.setdefault(layer.base.weight.data_ptr(), layer.name)  # type: ignore[operator]
        if first != layer.name:
            raise UsageError(f"method: {method!r} rewrites base weights, and {layer.name} shares its W with {first}")
