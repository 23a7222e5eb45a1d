"""PiSSA: A and B start as the leading singular directions of W, and the frozen base keeps the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.methods.adapted import adapted_linears
from landscape.methods.base import METHODS, Method, Start
from landscape.methods.frozen_base import base_tensors, dense_weight, refuse_tied, subtract


@torch.no_grad()
def initialize(model: nn.Module, start: Start) -> dict[str, Tensor]:
    """W = U·S·Vᵀ: B = U_r·√(S_r/s), A = √(S_r/s)·V_rᵀ, W ← W - s·BA (eq. 2-4).

    By a full SVD in W's precision, at least float32 (PEFT's refuses float64); the signs of singular vectors are
    arbitrary and cancel in BA.

    Returns:
        The residual base weights, by name.

    Raises:
        UsageError: a quantized base, or layers that share one W.
    """
    layers = adapted_linears(model)
    refuse_tied(layers, "pissa")
    for layer in layers:
        U, S, Vh = torch.linalg.svd(dense_weight(layer, "pissa"), full_matrices=False)
        rank = layer.A.shape[0]
        root = (S[:rank] / layer.scaling).sqrt()
        A, B = root[:, None] * Vh[:rank], U[:, :rank] * root
        layer.A.copy_(A)
        layer.B.copy_(B)
        # Of the factors as they were rounded, so that W + s·BA is the pretrained W.
        subtract(layer, layer.scaling * (layer.B.to(B) @ layer.A.to(A)), "pissa")
    return base_tensors(model, layers)


METHODS.add(
    Method(
        name="pissa",
        summary="LoRA started at the r leading singular directions of W, which leave the frozen base",
        source="PiSSA, arXiv 2404.02948, eq. 2-4",
        adapter="lora",
        initialize=initialize,
    )
)
