"""Directions of slices: random ones with their normalizations, the gradient, the update, the balanced origin."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import UsageError, unknown
from landscape.loss import forward_losses, loss_kind
from landscape.measurement import Batch, count_batches, measuring
from landscape.slices.coordinates import Coordinates, Vector, unwrap_parallel
from landscape.slices.layers import lora_factors

NORMALIZATIONS = ("filter", "layer", "none")
"""``filter``: each row has the norm of the weight's row; ``layer``: each tensor that of the weight; ``none``: as drawn.
"""


def check_normalization(normalization: str) -> None:
    """Refuse what is not in `NORMALIZATIONS`.

    Raises:
        UsageError: lists what is allowed and the nearest match.
    """
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A private generator; global ones are neither used nor changed."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) >> 1)


def random_direction(
    model: nn.Module, normalization: str = "filter", *, seed: int = 0, draw: int = 0, axis: int = 0
) -> Tensor:
    """A Gaussian direction (n,) in the space of the trainable parameters, normalized at where they are.

    The draw is keyed by (seed, draw, axis) and made in float32 on the CPU, so it is the same on every device and in
    every precision. Two of them are not made orthogonal: in n dimensions their cosine is about 1/√n.

    Raises:
        UsageError: unknown normalization, or nothing trainable.
    """
    check_normalization(normalization)
    coordinates = Coordinates(model)
    return drawn(coordinates, coordinates.flatten(), normalization, (seed, draw, axis))


def drawn(coordinates: Coordinates, origin: Tensor, normalization: str, key: tuple[int, int, int]) -> Tensor:
    """`random_direction` at another origin (n,)."""
    direction = torch.randn(coordinates.size, generator=generator(torch.device("cpu"), *key))
    return normalized(direction.to(origin), coordinates, origin, normalization)


def normalized(direction: Tensor, coordinates: Coordinates, origin: Tensor, normalization: str) -> Tensor:
    """``direction`` (n,) scaled to the sizes of the parameters at ``origin`` (n,); a new tensor.

    ``filter`` gives every output row of every tensor (rows of A and of B) the norm of that row of the parameters, and
    ``layer`` every tensor its norm; both set tensors of one dimension (biases, DoRA's magnitudes) to zero (Li et al.,
    Visualizing the Loss Landscape of Neural Nets, 2018). Under A → cA, B → B/c the rows scale along, so the slice
    stays the same; under other changes of gauge it does not (see `balanced`).
    """
    if normalization == "none":
        return direction.clone()
    result = torch.zeros_like(direction)
    parts = (coordinates.split(vector) for vector in (result, direction, origin))
    for scaled, part, weight in zip(*parts, strict=True):
        if weight.ndim > 1:
            rows = (len(weight), -1) if normalization == "filter" else (1, -1)
            own, wanted = (tensor.reshape(rows).norm(dim=1, keepdim=True) for tensor in (part, weight))
            scaled.view(rows).copy_(part.reshape(rows) * norm_ratio(wanted, own))
    return result


def norm_ratio(wanted: Tensor, own: Tensor) -> Tensor:
    """wanted ÷ own; 0 where ``own`` is 0, so that a row of zeros stays one."""
    return torch.where(own > 0, wanted / own, 0)


def loss_gradient(model: nn.Module, batches: Batch | Iterable[Batch]) -> Tensor:
    """∇L (n,) of the loss over all batches together; the model is left exactly as found.

    Raises:
        UsageError: nothing trainable, or batches that cannot be measured.
    """
    model, coordinates, kind = unwrap_parallel(model), Coordinates(model), loss_kind(model)
    counted = count_batches(batches, kind, next(model.parameters()).device)
    total = torch.zeros(coordinates.size, dtype=coordinates.dtype, device=coordinates.device)
    with measuring(model):
        for batch in counted.batches:
            share = forward_losses(model, batch, kind).nll.sum() / counted.num_labels
            gradients = torch.autograd.grad(share, coordinates.parameters, allow_unused=True)
            for part, gradient in zip(coordinates.split(total), gradients, strict=True):
                if gradient is not None:
                    part.add_(gradient.to(part))
    return total


def update_direction(model: nn.Module, before: Vector, after: Vector) -> Tensor:
    """The step from one snapshot to another, (n,).

    Raises:
        UsageError: they are equal, or of another adapter.
    """
    coordinates = Coordinates(model)
    difference = coordinates.vector(after, "after") - coordinates.vector(before, "before")
    if not bool(difference.any()):
        raise UsageError("after: equal to before; there is no direction between them")
    return difference


@torch.no_grad()
def balanced(model: nn.Module) -> Tensor:
    """Parameters (n,) of the same function in a gauge of its own: an origin that does not depend on how BA is factored.

    With the singular value decomposition BA = UΣVᵀ (from QR factors of B and Aᵀ), B ← UΣ^½ and A ← Σ^½Vᵀ, so that
    BᵀB = AAᵀ; columns are ordered by Σ, and the largest entry of each column of U is positive. Unique where the
    singular values are distinct. Parameters outside of LoRA layers stay as they are.

    Raises:
        UsageError: a layer's BA has rank below r (B = 0), an adapter that is not plain LoRA, or frozen factors.
    """
    coordinates = Coordinates(model)
    flat = coordinates.flatten()
    parts = {id(p): part for p, part in zip(coordinates.parameters, coordinates.split(flat), strict=True)}
    for name, A, B in lora_factors(unwrap_parallel(model)):
        if id(A) not in parts or id(B) not in parts:
            raise UsageError(f"model: {name} trains only one of A and B; it cannot be balanced")
        left, upper = torch.linalg.qr(parts[id(B)].double())
        right, lower = torch.linalg.qr(parts[id(A)].double().T)
        u, sigma, vt = torch.linalg.svd(upper @ lower.T)
        if sigma[-1] <= sigma[0] * max(left.shape[0], right.shape[0]) * torch.finfo(A.dtype).eps:
            raise UsageError(f"model: BA of {name} has a rank below {len(sigma)}; it cannot be balanced")
        u, v = left @ u, right @ vt.T
        signs = torch.sign(u.gather(0, u.abs().argmax(dim=0, keepdim=True)))
        parts[id(B)].copy_(u * signs * sigma.sqrt())
        parts[id(A)].copy_((v * signs * sigma.sqrt()).T)
    return flat
