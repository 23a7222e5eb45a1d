"""Slices through the space of merged weights, in directions that keep the rank of the adapter to first order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.slices.directions import norm_ratio
from landscape.slices.layers import AdaptedLayer, Forward, adapted_layers, factors, lora_factors
from landscape.slices.merged_space import LayerWay, gaussian, row_norms
from landscape.slices.spaces import Way, as_output, point_rows


class TangentSpace:
    """W' + Σ cₖ·Dₖ where Dₖ is a Gaussian projected on the directions in which A and B can move W'.

    To first order, training moves s·BA by s(B·dA + dB·A): the tangent space of the matrices of rank r at BA. With
    orthonormal bases U of B's columns and V of A's rows, the projection of a dense Gaussian G is
    D = UUᵀG + (1 - UUᵀ)G·VVᵀ, so D is isotropic in that space and independent of how BA is factored; where B = 0
    only G·VVᵀ is left. G has the key of the `MergedSpace` direction, of which D is the tangential part. W' moves along
    a straight line, so its rank exceeds r away from 0. ``layer`` scales D to ‖W'‖; ``filter`` scales each row to the
    row of W', which changes the columns' span: rows stay in the span of A's and dA's rows, but D is then tangent only
    in the units of the scaled outputs.

    Memory: factors of rank 2r, 2 adapters a direction.

    Raises:
        UsageError: an adapter that is not plain LoRA.
    """

    def __init__(self, model: nn.Module, keys: Sequence[tuple[int, ...]], normalization: str) -> None:
        lora_factors(model)
        self.dims = len(keys)
        self.point_bytes = 0
        layers = adapted_layers(model)
        self._layers = [
            _tangent_layer(layer, [(*key, position) for key in keys], normalization)
            for position, layer in enumerate(layers)
        ]
        self.num_parameters = sum(_tangent_dimension(layer) for layer in layers)

    def at_origin(self) -> AbstractContextManager[None]:
        """As `Space.at_origin`: the model as it is."""
        return nullcontext()

    def ways(self, stacks: Sequence[int]) -> list[Way]:
        """Always low-rank products beside the layer's own forward pass."""
        return [LayerWay("stacked", stack, self._layers) for stack in stacks]


@dataclass(frozen=True, eq=False)
class _TangentLayer:
    """One layer with Dₖ = ``left[k]`` (out, 2r) @ ``right[k]`` (2r, in)."""

    layer: AdaptedLayer
    left: Tensor
    right: Tensor

    def forward(self, coefficients: Tensor) -> Forward:
        """As `DisplacedLayer.forward`."""
        own = self.layer.module.forward
        points, (dims, width, _) = len(coefficients), self.right.shape
        down = self.right.flatten(0, 1)
        up = self.left.transpose(0, 1).flatten(1)
        scales = coefficients.to(up).repeat_interleave(width, dim=1).view(points, 1, dims * width)

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            y = own(x, *args, **kwargs)
            hidden = F.linear(point_rows(x, points).to(down.dtype), down) * scales
            return y + as_output(F.linear(hidden.to(up.dtype), up), x).to(y.dtype)

        return forward


def _tangent_layer(layer: AdaptedLayer, keys: Sequence[tuple[int, ...]], normalization: str) -> _TangentLayer:
    A, B, _ = factors(layer.module)
    weight = layer.effective_weight()
    U, V = _basis(B), _basis(A.T)
    left, right = [], []
    for key in keys:
        drawn = gaussian(layer, key, U)
        across = drawn @ V
        up = torch.cat([U, across - U @ (U.T @ across)], dim=1)
        down = torch.cat([U.T @ drawn, V.T])
        if normalization != "none":
            wanted, own = (row_norms(dense.to(U.dtype), normalization) for dense in (weight, up @ down))
            up = up * norm_ratio(wanted, own)
        left.append(up)
        right.append(down)
    return _TangentLayer(layer, torch.stack(left), torch.stack(right))


def _basis(columns: Tensor) -> Tensor:
    """An orthonormal basis (m, rank) of the span of columns (m, r), by singular vectors in at least float32."""
    columns = columns.detach().to(torch.promote_types(columns.dtype, torch.float32))
    U, S, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, S.max() * max(columns.shape) * torch.finfo(columns.dtype).eps < S]


def _tangent_dimension(layer: AdaptedLayer) -> int:
    A, B, _ = factors(layer.module)
    left, right = _basis(B).shape[1], _basis(A.T).shape[1]
    return left * layer.shape[1] + right * layer.shape[0] - left * right
