"""NLoRA: W + s·B·N·A with a trained r x r matrix between, started from rows and columns of W as Nyström takes them."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.methods.adapted import AdaptedLinear, adapted_linears
from landscape.methods.base import METHODS, Arguments, Method, Start
from landscape.methods.frozen_base import base_tensors, dense_weight, refuse_tied, subtract


class NLoRAArguments(Arguments):
    """The released code's N, which trains; but unlike there, the model starts where it was."""

    pseudo_inverse: bool = Field(False, description="N = (W₁₁)⁺/s: the Nyström approximation itself; false: N = W₁₁")
    residual: bool = Field(True, description="W ← W - s·BNA, so that the model starts where it was; false: W stays")


class MiddleFactor(LoraVariant):
    """PEFT's name for a LoRA layer that computes something else: base(x) + s·B(N(A(x)))."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """N = I, with which the layer is plain LoRA."""
        A: Tensor = module.lora_A[adapter_name].weight
        middle = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        module.lora_N = nn.ParameterDict({adapter_name: nn.Parameter(middle)})

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """The adapted output, from the base layer's."""
        A, B = module.lora_A[active_adapter], module.lora_B[active_adapter]
        hidden = A(module.lora_dropout[active_adapter](x.to(A.weight.dtype)))
        return result + B(F.linear(hidden, module.lora_N[active_adapter])) * module.scaling[active_adapter]


def middle(layer: AdaptedLinear) -> nn.Parameter:
    """N (r, r) of a layer."""
    return layer.module.lora_N[layer.adapter]  # type: ignore[return-value,index]


def prepare(model: nn.Module, seed: int) -> None:
    """Put a trained N = I between B and A of every adapted layer."""
    for layer in adapted_linears(model):
        MiddleFactor.init(layer.module, layer.adapter)
        layer.module.lora_variant[layer.adapter] = MiddleFactor()


@torch.no_grad()
def initialize(model: nn.Module, start: Start) -> dict[str, Tensor]:
    """A = W[:r, :], B = W[:, :r], N = W₁₁ = W[:r, :r].

    With ``pseudo_inverse`` N = W₁₁⁺/s, and s·BNA is the Nyström approximation of W from r rows and columns.

    Returns:
        The residual base weights, by name; none without ``residual``.

    Raises:
        UsageError: a quantized base, or layers that share one W.
    """
    layers, arguments = adapted_linears(model), start.arguments
    if arguments.residual:
        refuse_tied(layers, "nlora")
    for layer in layers:
        weight = dense_weight(layer, "nlora").clone()
        rank = layer.A.shape[0]
        corner = weight[:rank, :rank]
        layer.A.copy_(weight[:rank])
        layer.B.copy_(weight[:, :rank])
        N = middle(layer)
        N.copy_(torch.linalg.pinv(corner) / layer.scaling if arguments.pseudo_inverse else corner)
        if arguments.residual:
            subtract(layer, layer.scaling * (layer.B.to(weight) @ N.to(weight) @ layer.A.to(weight)), "nlora")
    return base_tensors(model, layers) if arguments.residual else {}


METHODS.add(
    Method(
        name="nlora",
        summary="LoRA with a trained r x r matrix between B and A, all three started at rows and columns of W",
        source="NLoRA, arXiv 2502.14482; TracyGuo2001/NLoRA",
        adapter="nlora",
        arguments=NLoRAArguments,
        prepare=prepare,
        initialize=initialize,
        extra_memory="r² numbers a layer",
    )
)
