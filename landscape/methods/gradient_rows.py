"""Squared row norms of dL/dW for frozen layers, which have no ``.grad``: by proxy or exactly."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from landscape.methods.adapted import AdaptedLinear


class GradientRows(Protocol):
    """Row norms of the last optimizer step's gradient."""

    squared: list[Tensor | None]
    """One (out,) tensor a layer, None before the first step."""

    def update(self) -> None:
        """Read this step's gradients; between the last backward and ``zero_grad``."""
        ...

    def close(self) -> None:
        """Remove hooks."""
        ...


class ProxyGradientRows:
    """‖(∂L/∂B)ᵢ‖² = ‖s·(GAᵀ)ᵢ‖²: the rows of G seen through the row space of A. Free, and additive over batches.

    It is not on the scale of ‖Gᵢ‖² (at Kaiming initialization E = s²·r/(3n)·‖Gᵢ‖²), but it is the only object with
    one row per output that "extracting the gradients of A and B", as the paper describes, can give.
    """

    def __init__(self, layers: list[AdaptedLinear]) -> None:
        self.layers = layers
        self.squared: list[Tensor | None] = [None] * len(layers)

    def update(self) -> None:
        """Read B's gradients; rows that are not finite keep the values of the step before."""
        for i, layer in enumerate(self.layers):
            if layer.B.grad is not None:
                rows = layer.B.grad.to(_wide(layer.B)).square().sum(dim=1)
                if bool(rows.isfinite().all()):
                    self.squared[i] = rows

    def close(self) -> None:
        """Nothing to remove."""


class ExactGradientRows:
    """‖Gᵢ‖² with G = δᵀX summed over the whole accumulation window, since ‖ΣG‖² is not Σ‖G‖².

    X is the layer's input and δ the gradient at the adapted layer's output; G (out, in) is held for every layer.
    Under data parallelism G is averaged over processes, as the gradients of the adapter are.
    """

    def __init__(self, layers: list[AdaptedLinear]) -> None:
        self.layers = layers
        self.squared: list[Tensor | None] = [None] * len(layers)
        self._sums: list[Tensor | None] = [None] * len(layers)
        self._handles = [
            layer.module.register_forward_hook(self._watch(i))  # type: ignore[union-attr]
            for i, layer in enumerate(layers)
        ]

    def _watch(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Activation checkpointing runs the forward again; only the pass whose output gets a gradient counts.
            if torch.is_grad_enabled() and output.requires_grad:
                x = inputs[0].detach()
                output.register_hook(lambda delta: self._add(index, delta, x))

        return hook

    def _add(self, index: int, delta: Tensor, x: Tensor) -> None:
        wide = _wide(self.layers[index].B)
        gradient = delta.detach().flatten(0, -2).to(wide).T @ x.flatten(0, -2).to(wide)
        previous = self._sums[index]
        self._sums[index] = gradient if previous is None else previous.add_(gradient)

    def update(self) -> None:
        """Reduce the window's gradients to row norms and forget them."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        for i, gradient in enumerate(self._sums):
            if gradient is None:
                continue
            if distributed:
                torch.distributed.all_reduce(gradient)
                gradient.div_(torch.distributed.get_world_size())
            rows = gradient.square().sum(dim=1)
            if bool(rows.isfinite().all()):
                self.squared[i] = rows
        self._sums = [None] * len(self.layers)

    def close(self) -> None:
        """Remove the forward hooks."""
        for handle in self._handles:
            handle.remove()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
