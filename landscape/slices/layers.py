"""Adapted layers as slices see them, and showing another forward pass in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from landscape.errors import UsageError

Forward = Callable[..., Tensor]


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside, these modules compute something else; hooks on them still run. No tensor is touched."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
        for module, forward in own.items():
            module.forward = forward


@dataclass(frozen=True)
class AdaptedLayer:
    """A linear layer with an adapter of any kind (LoRA, DoRA, AdaLoRA, over any base): x ↦ W'x + b."""

    name: str
    module: Any
    """PEFT's layer, a `LoraLayer` and a module."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.module.out_features, self.module.in_features

    @property
    def is_dense(self) -> bool:
        """Whether W' can be held in the layer's own precision without losing the adapter in its rounding."""
        return self._dtype in (torch.float32, torch.float64)

    @property
    def device(self) -> torch.device:
        """Where the layer's weight is."""
        return self._weight.device

    @property
    def dense_bytes(self) -> int:
        """Memory of a dense (out, in) matrix in at least float32."""
        return self.shape[0] * self.shape[1] * max(4, self._dtype.itemsize)

    def effective_weight(self) -> Tensor:
        """W' (out, in): what the layer does to the identity matrix, in the layer's precision and evaluation mode.

        For LoRA this is W + s·BA, for DoRA the rescaled one, for a quantized base its dequantized weight.
        """
        identity = torch.eye(self.shape[1], dtype=self._dtype, device=self.device)
        return (self.module(identity) - self.module(identity[:1] * 0)).T

    def bias(self) -> Tensor:
        """b (out,)."""
        return self.module(torch.zeros(1, self.shape[1], dtype=self._dtype, device=self.device))[0]

    @property
    def _weight(self) -> Tensor:
        return self.module.get_base_layer().weight

    @property
    def _dtype(self) -> torch.dtype:
        if self._weight.is_floating_point():
            return self._weight.dtype
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """Every linear layer with an active adapter, in module order.

    Raises:
        UsageError: there is none.
    """
    not_linear = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    found = [
        AdaptedLayer(name, module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and module.active_adapters
        and not isinstance(module.get_base_layer(), not_linear)
    ]
    if not found:
        raise UsageError(
            f"space: {type(model).__name__} has no linear layer with an active adapter; allowed: 'adapter'"
        )
    return found


def is_plain_lora(module: nn.Module) -> bool:
    """Whether the forward pass is base(x) + s·B(A(x)) with one adapter in effect."""
    return (
        type(module) is LoraLinear
        and len(module.active_adapters) == 1
        and module.active_adapters[0] in module.lora_A
        and not module.lora_variant
        and not module.merged
        and not module.disable_adapters
        and not any(module.lora_bias.values())
    )


def factors(module: Any) -> tuple[nn.Parameter, nn.Parameter, float]:
    """A (r, in), B (out, r) and s of a plain LoRA layer."""
    adapter = module.active_adapters[0]
    return module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter]


def lora_factors(model: nn.Module) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    """Name, A and B of every adapted linear layer.

    Raises:
        UsageError: there is none, or one is not plain LoRA: W + s·BA is what the caller's formulas are for.
    """
    found = []
    for layer in adapted_layers(model):
        if not is_plain_lora(layer.module):
            kind = type(layer.module).__name__
            raise UsageError(f"model: {layer.name} ({kind}) is not plain, unmerged, enabled LoRA, W + s·BA")
        A, B, _ = factors(layer.module)
        found.append((layer.name, A, B))
    return found
