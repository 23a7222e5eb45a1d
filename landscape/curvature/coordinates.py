"""The coordinates in which curvature is measured: tensors on which the loss depends, and how the model is made to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.curvature.gauge import balanced_factors, check_balanceable
from landscape.errors import UsageError, unknown

SPACES = ("adapter", "merged", "balanced")
"""``adapter``: every parameter that requires a gradient. ``merged``: the weights W' = W + sBA of the adapted layers.
``balanced``: as ``adapter``, with LoRA's B̂ = √s·B and Â = √s·A in the gauge in which B̂ᵀB̂ = ÂÂᵀ."""

_NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """n numbers on which the loss depends.

    Args:
        space: one of `SPACES`.
        names: of the tensors: those of the parameters, or ``<module>.weight`` for merged weights.
        tensors: leaves that require a gradient; n is their total size.
        installed: inside this context the model's forward pass depends on ``tensors``; afterwards the model is as it
            was, down to the same tensor objects.
        refresh: follow parameters that were changed in place.
    """

    space: str
    names: list[str]
    tensors: list[Tensor]
    installed: Callable[[], AbstractContextManager[None]]
    refresh: Callable[[], None] = lambda: None


def coordinates(model: nn.Module, space: str = "adapter", balance: bool = False) -> Coordinates:
    """The coordinates of a space on a model, which is not changed until they are installed.

    Raises:
        UsageError: unknown space, ``balance`` with another space than ``adapter``, nothing trainable, no adapted
            linear layer to merge, or factors that cannot be balanced (see `landscape.curvature.gauge`).
    """
    space = check_space(space, balance)
    if space == "merged":
        return _merged(model)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise UsageError("model: no parameter requires a gradient; attach an adapter or unfreeze what is measured")
    if space == "balanced":
        return _balanced(model, named)
    return Coordinates(space, list(named), list(named.values()), nullcontext)


def check_space(space: str, balance: bool = False) -> str:
    """The space that is meant; refuses one that is not in `SPACES`.

    Raises:
        UsageError: lists what is allowed and the nearest match; or ``balance`` does not go with the space.
    """
    if space not in SPACES:
        raise unknown("space", space, SPACES)
    if not balance:
        return space
    if space == "merged":
        raise UsageError("balance: True with space='merged', which has no gauge; allowed: with space='adapter'")
    return "balanced"


def _merged(model: nn.Module) -> Coordinates:
    """Zeros D (out, in) to which the adapted layers' outputs respond as y + xDᵀ: derivatives by D are those by W'.

    It holds for whatever way the adapter has of making W' (DoRA, AdaLoRA), and a quantized base never is unpacked.
    """
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if _is_adapted(module)}
    if not layers:
        raise UsageError("space: 'merged' needs linear layers with an active adapter, and the model has none")
    leaves = {}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if isinstance(base, _NOT_LINEAR):
            raise UsageError(
                f"space: 'merged' is defined for linear layers; {name} is an adapted {type(base).__name__}"
            )
        factor = next(parameter for parameter in layer.parameters() if parameter.requires_grad)
        leaves[name] = factor.detach().new_zeros(layer.out_features, layer.in_features).requires_grad_()

    @contextmanager
    def installed() -> Iterator[None]:
        hooks = [layer.register_forward_hook(_Displacement(leaves[name])) for name, layer in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return Coordinates("merged", [f"{name}.weight" for name in leaves], list(leaves.values()), installed)


def _is_adapted(module: nn.Module) -> bool:
    return (
        isinstance(module, BaseTunerLayer)
        and bool(module.active_adapters)
        and any(parameter.requires_grad for parameter in module.parameters())
    )


@dataclass(frozen=True)
class _Displacement:
    """A forward hook that adds D to a layer's weight."""

    leaf: Tensor

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.linear(inputs[0].to(self.leaf.dtype), self.leaf).to(output.dtype)


def _balanced(model: nn.Module, named: dict[str, nn.Parameter]) -> Coordinates:
    """Â and B̂ in place of A and B, with a scaling of 1."""
    layers: list[tuple[str, Any, str]] = []
    for name, layer in model.named_modules():
        if _is_adapted(layer):
            adapter, *others = map(str, layer.active_adapters)  # type: ignore[union-attr]
            if others:
                raise UsageError(
                    f"balance: {name} has the active adapters {adapter}, {', '.join(others)}; allowed: one"
                )
            check_balanceable(layer, adapter, name=name)
            layers.append((name, layer, adapter))
    if not layers:
        raise UsageError("balance: True needs linear layers with an active LoRA adapter, and the model has none")

    def factors() -> Iterator[tuple[nn.Parameter, Tensor]]:
        for name, layer, adapter in layers:
            A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            yield from zip((A, B), balanced_factors(A, B, layer.scaling[adapter], name=name), strict=True)

    leaves = {id(own): nn.Parameter(balanced) for own, balanced in factors()}

    @torch.no_grad()
    def refresh() -> None:
        for own, balanced in factors():
            leaves[id(own)].copy_(balanced)

    @contextmanager
    def installed() -> Iterator[None]:
        undo: list[tuple[Any, str, Any]] = []

        def put(owner: Any, key: str, value: object) -> None:
            undo.append((owner, key, owner[key]))
            owner[key] = value

        try:
            for _, layer, adapter in layers:
                for part in (layer.lora_A[adapter], layer.lora_B[adapter]):
                    put(part._parameters, "weight", leaves[id(part.weight)])
                put(layer.scaling, adapter, 1.0)
            yield
        finally:
            for owner, key, value in reversed(undo):
                owner[key] = value

    tensors: list[Tensor] = [leaves.get(id(parameter), parameter) for parameter in named.values()]
    return Coordinates("balanced", list(named), tensors, installed, refresh)
