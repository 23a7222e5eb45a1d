"""Slices through the space of merged weights, in directions that keep the rank of the adapter to first order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.slices.adapter_space import can_merge, frozen_weight, low_rank_added
from landscape.slices.directions import norm_ratio
from landscape.slices.layers import AdaptedLayer, Forward, adapted_layers, factors, lora_factors
from landscape.slices.memory import Scratch
from landscape.slices.merged_space import LayerWay, gaussian, row_norms
from landscape.slices.spaces import Way, point_rows


class TangentSpace:
    """W' + Σ cₖ·Dₖ where Dₖ is a Gaussian projected on the directions in which A and B can move W'.

    To first order, training moves s·BA by s(B·dA + dB·A): the tangent space of the matrices of rank r at BA. With
    orthonormal bases U of B's columns and V of A's rows, the projection of a dense Gaussian G is
    D = UUᵀG + (1 - UUᵀ)G·VVᵀ, so D is isotropic in that space and independent of how BA is factored; where B = 0
    only G·VVᵀ is left. G has the key of the `MergedSpace` direction, of which D is the tangential part. W' moves along
    a straight line, so its rank exceeds r away from 0. ``layer`` scales D to ‖W'‖; ``filter`` scales each row to the
    row of W', which changes the columns' span: rows stay in the span of A's and dA's rows, but D is then tangent only
    in the units of the scaled outputs.

    Memory: factors of rank 2r, at most 2 adapters a direction.

    Raises:
        UsageError: an adapter that is not plain LoRA.
    """

    def __init__(self, model: nn.Module, keys: Sequence[tuple[int, ...]], normalization: str) -> None:
        lora_factors(model)
        self.dims = len(keys)
        self.point_bytes = 0
        layers = adapted_layers(model)
        self._can_merge = can_merge([layer.module for layer in layers])
        tangents = [
            _tangent_layer(layer, [(*key, position) for key in keys], normalization)
            for position, layer in enumerate(layers)
        ]
        self._stacked = [_StackedTangent(layer, tangent) for layer, tangent in zip(layers, tangents, strict=True)]
        scratch = Scratch()
        self._merged = [
            _MergedTangent(layer, tangent, scratch) for layer, tangent in zip(layers, tangents, strict=True)
        ]
        self.num_parameters = sum(_tangent_dimension(layer) for layer in layers)

    def at_origin(self) -> AbstractContextManager[None]:
        """As `Space.at_origin`: the model as it is."""
        return nullcontext()

    def ways(self, stacks: Sequence[int]) -> list[Way]:
        """Low-rank products beside the base layers, or added into the weight of one point."""
        first, *others = [LayerWay("stacked", stack, self._stacked) for stack in stacks]
        return [first, *([LayerWay("merged", 1, self._merged)] if self._can_merge else []), *others]


@dataclass(frozen=True, eq=False)
class _Tangent:
    """s·BA + Σ cₖ·Dₖ as [c₁·left₁, c₂·left₂, …, own + Σ cₖ·acrossₖ] @ down, of rank r a direction and r for all.

    Attributes:
        left: UᵀG's side of each Dₖ, (dims, out, r).
        across: V's side of each Dₖ, (dims, out, r).
        own: V's side of s·BA, (out, r).
        down: U₁ᵀG₁, U₂ᵀG₂, …, Vᵀ, ((dims + 1)·r, in).
    """

    left: Tensor
    across: Tensor
    own: Tensor
    down: Tensor

    def up(self, coefficients: Tensor) -> Tensor:
        """(points, out, (dims + 1)·r) at points (points, dims)."""
        scales = coefficients.to(self.left)[:, :, None, None]
        left = (scales * self.left).transpose(1, 2).flatten(2)
        return torch.cat([left, self.own + (scales * self.across).sum(dim=1)], dim=2)


@dataclass(frozen=True, eq=False)
class _StackedTangent:
    """base(x) + up(down(x)) for several points, of which ``down`` is the same for all."""

    layer: AdaptedLayer
    tangent: _Tangent

    def forward(self, coefficients: Tensor) -> Forward:
        """As `DisplacedLayer.forward`."""
        base, down = self.layer.module.base_layer, self.tangent.down

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            hidden = F.linear(point_rows(x, len(coefficients)).to(down.dtype), down)
            return low_rank_added(base(x, *args, **kwargs), hidden, self.tangent.up(coefficients).transpose(1, 2), x)

        return forward


@dataclass(frozen=True, eq=False)
class _MergedTangent:
    """(W + up @ down)x + b of one point."""

    layer: AdaptedLayer
    tangent: _Tangent
    scratch: Scratch

    def forward(self, coefficients: Tensor) -> Forward:
        """As `DisplacedLayer.forward`."""
        base, frozen = self.layer.module.base_layer, frozen_weight(self.layer.module)

        def forward(x: Tensor) -> Tensor:
            weight = torch.addmm(
                frozen, self.tangent.up(coefficients)[0], self.tangent.down, out=self.scratch.like(frozen)
            )
            return F.linear(x, weight.to(x.dtype), base.bias)

        return forward


def _tangent_layer(layer: AdaptedLayer, keys: Sequence[tuple[int, ...]], normalization: str) -> _Tangent:
    A, B, scaling = factors(layer.module)
    weight = layer.effective_weight()
    U, V = _basis(B), _basis(A.T)
    left, across, down = [], [], []
    for key in keys:
        drawn = gaussian(layer, key, U)
        right, projected = U.T @ drawn, drawn @ V
        sides = [U, projected - U @ (U.T @ projected)]
        if normalization != "none":
            dense = sides[0] @ right + sides[1] @ V.T
            ratio = norm_ratio(row_norms(weight.to(U.dtype), normalization), row_norms(dense, normalization))
            sides = [side * ratio for side in sides]
        left.append(sides[0])
        across.append(sides[1])
        down.append(right)
    own = scaling * (B.to(U.dtype) @ (A.to(U.dtype) @ V))
    return _Tangent(torch.stack(left), torch.stack(across), own, torch.cat([*down, V.T]))


def _basis(columns: Tensor) -> Tensor:
    """An orthonormal basis (m, rank) of the span of columns (m, r), by singular vectors in at least float32."""
    columns = columns.detach().to(torch.promote_types(columns.dtype, torch.float32))
    U, S, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, S.max() * max(columns.shape) * torch.finfo(columns.dtype).eps < S]


def _tangent_dimension(layer: AdaptedLayer) -> int:
    A, B, _ = factors(layer.module)
    left, right = _basis(B).shape[1], _basis(A.T).shape[1]
    return left * layer.shape[1] + right * layer.shape[0] - left * right
