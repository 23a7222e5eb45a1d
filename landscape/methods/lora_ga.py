"""LoRA-GA: A and B start where their first step is nearest to full fine-tuning's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from pydantic import Field
from torch import Tensor, nn

from landscape.loss import count_labels, forward_losses, loss_kind
from landscape.methods.adapted import AdaptedLinear, adapted_linears
from landscape.methods.base import METHODS, Arguments, Method, Start
from landscape.methods.frozen_base import base_tensors, dense_weight, refuse_tied, subtract


class LoRAGAArguments(Arguments):
    """The reference's (conf/init/gradient.yaml); the command in its reproduce/Readme.md has gamma = 64."""

    gamma: float = Field(16.0, gt=0, description="γ: the larger, the smaller the initial A and B")
    examples: int = Field(8, ge=1, description="training examples whose gradient is decomposed")
    batch_size: int = Field(1, ge=1, description="of them in one backward; changes memory, not the result")
    rank_stabilized: bool = Field(True, description="s = alpha/√r, as the paper's analysis needs; false: alpha/r")


def peft_config(keywords: dict[str, Any], arguments: LoRAGAArguments) -> LoraConfig:
    """Plain LoRA with the scaling; PEFT's own LoRA-GA initialization is another one and is not used."""
    return LoraConfig(**keywords, use_rslora=arguments.rank_stabilized)


def initialize(model: nn.Module, start: Start) -> dict[str, Tensor]:
    """G = ∇_W L = U·S·Vᵀ: A = c·V_{1..r}ᵀ, B = c·U_{r+1..2r}, c = m^¼/√γ, W (m, n) ← W - s·BA (sections 3.2-3.4).

    The gradient is of the loss over the run's first ``examples`` examples, in eval mode, and is moved to the CPU layer
    by layer. PEFT's version also multiplies B by the singular values and scales B alone.

    Returns:
        The rewritten base weights, by name.

    Raises:
        UsageError: a quantized base, or layers that share one W.
    """
    layers = adapted_linears(model)
    refuse_tied(layers, "lora-ga")
    batches = list(_first_examples(start))
    gradients = base_gradients(model, layers, batches)
    with torch.no_grad():
        for layer, gradient in zip(layers, gradients, strict=True):
            wide = dense_weight(layer, "lora-ga")
            U, _, Vh = torch.linalg.svd(gradient.to(wide), full_matrices=False)
            rank = layer.A.shape[0]
            size = layer.shape[0] ** 0.25 / start.arguments.gamma**0.5
            layer.A.copy_(size * Vh[:rank])
            layer.B.copy_(size * U[:, rank : 2 * rank])
            subtract(layer, layer.scaling * (layer.B.to(wide) @ layer.A.to(wide)), "lora-ga")
    return base_tensors(model, layers)


def base_gradients(
    model: nn.Module, layers: Sequence[AdaptedLinear], batches: Sequence[Mapping[str, Tensor]]
) -> list[Tensor]:
    """∇_W of the loss over all batches together, one (out, in) a layer on the CPU; the model is left as found."""
    kind = loss_kind(model)
    total = max(int(sum(count_labels(batch["labels"], kind).sum() for batch in batches)), 1)
    weights: list[nn.Parameter] = [layer.base.weight for layer in layers]  # type: ignore[misc]
    sums = [torch.zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
    device = weights[0].device
    with _differentiating(model, weights, sums):
        for batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items()}
            (forward_losses(model, inputs, kind).nll.sum() / total).backward()
    return [value.T if layer.transposed else value for value, layer in zip(sums, layers, strict=True)]


@contextmanager
def _differentiating(model: nn.Module, weights: list[nn.Parameter], sums: list[Tensor]) -> Iterator[None]:
    """Eval mode, these weights alone requiring gradients, each added to its sum and freed as soon as it is there."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    hooks = []

    def collect(into: Tensor) -> Any:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            into.add_(weight.grad.to(into.device))
            weight.grad = None

        return hook

    model.eval().requires_grad_(False)
    try:
        for weight, into in zip(weights, sums, strict=True):
            weight.requires_grad_(True)
            hooks.append(weight.register_post_accumulate_grad_hook(collect(into)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, wants in wanted.items():
            parameter.requires_grad_(wants)
        for module, training in modes.items():
            module.training = training


def _first_examples(start: Start) -> Iterator[Mapping[str, Tensor]]:
    left, size = start.arguments.examples, start.arguments.batch_size
    for batch in start.batches(size):
        taken = min(size, left)
        yield {key: value[:taken] for key, value in batch.items()}
        left -= taken
        if left <= 0:
            return


def directions(rank: int, arguments: LoRAGAArguments) -> int:
    """Singular directions of the gradient that A and B take between them."""
    return 2 * rank


METHODS.add(
    Method(
        name="lora-ga",
        summary="LoRA started along the singular directions of the first gradient; s·BA leaves the frozen base",
        source="LoRA-GA, arXiv 2407.05000, sections 3.2-3.4; Outsider565/LoRA-GA",
        adapter="lora",
        arguments=LoRAGAArguments,
        peft=peft_config,
        initialize=initialize,
        largest_rank=directions,
        execution_arguments=frozenset({"batch_size"}),
        extra_memory="at the start: a gradient of every adapted W, on the CPU",
    )
)
