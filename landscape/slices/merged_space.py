"""Slices through the space of the merged weights W' = W + s·BA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.measurement import free_bytes
from landscape.slices.directions import generator, norm_ratio
from landscape.slices.layers import AdaptedLayer, Forward, adapted_layers, replaced_forwards
from landscape.slices.memory import Scratch, require_memory
from landscape.slices.spaces import Way, as_output, point_rows

HELD_SHARE = 4
"""Directions are held where they take at most one part in so many of the free memory."""


def gaussian(layer: AdaptedLayer, key: tuple[int, ...], like: Tensor) -> Tensor:
    """(out, in) drawn in float32, the same for the same key on the same kind of device, in ``like``'s precision."""
    drawn = torch.randn(layer.shape, generator=generator(like.device, *key), device=like.device)
    return drawn.to(torch.promote_types(torch.float32, like.dtype))


def row_norms(weight: Tensor, normalization: str) -> Tensor:
    """What a normalized direction copies from W' (out, in): (out, 1) for ``filter``, (1, 1) for ``layer``."""
    return weight.norm(dim=1, keepdim=True) if normalization == "filter" else weight.norm().view(1, 1)


def rescaled(direction: Tensor, norms: Tensor | None) -> Tensor:
    """A direction (out, in) with these `row_norms`; None leaves it as it is."""
    if norms is None:
        return direction
    return direction * norm_ratio(norms, row_norms(direction, "filter" if len(norms) > 1 else "layer"))


class MergedSpace:
    """W' + Σ cₖ·Dₖ in every adapted layer, with dense Gaussian Dₖ.

    Memory: W' once (not for half precision and quantized bases, where the layer's own output is added instead, since
    W' would lose the adapter to rounding); the Dₖ of all layers where a quarter of the free memory is enough for them,
    else those of the one layer at work, drawn anew whenever they are needed; one displaced weight.

    Args:
        model: in the state in which it is measured.
        keys: one a direction; the layer's position is appended.
        normalization: as in `landscape.slices.NORMALIZATIONS`, at W'.
    """

    def __init__(self, model: nn.Module, keys: Sequence[tuple[int, ...]], normalization: str) -> None:
        self.dims = len(keys)
        self.point_bytes = 0
        layers = adapted_layers(model)
        dense = sum(layer.dense_bytes for layer in layers if layer.is_dense)
        at_work = (self.dims + 2) * max(layer.dense_bytes for layer in layers)
        require_memory(dense + at_work, layers[0].device, "merged weights and their directions")
        drawn_bytes = self.dims * sum(layer.dense_bytes for layer in layers)
        scratch, hold = Scratch(), HELD_SHARE * drawn_bytes <= free_bytes(layers[0].device) - dense
        self._layers = [
            _dense_layer(layer, [(*key, position) for key in keys], normalization, scratch, hold)
            for position, layer in enumerate(layers)
        ]
        self.num_parameters = sum(dense.layer.shape[0] * dense.layer.shape[1] for dense in self._layers)

    def at_origin(self) -> AbstractContextManager[None]:
        """As `Space.at_origin`: the model as it is."""
        return nullcontext()

    def ways(self, stacks: Sequence[int]) -> list[Way]:
        """Stacking reads or draws every direction once for all points of the stack."""
        return [
            LayerWay("stacked" if stack > 1 else "merged", stack, self._layers) for stack in dict.fromkeys([*stacks, 1])
        ]


class DisplacedLayer(Protocol):
    """An adapted layer and its forward pass at displaced weights."""

    @property
    def layer(self) -> AdaptedLayer:
        """The layer as it is."""
        ...

    def forward(self, coefficients: Tensor) -> Forward:
        """The forward pass for rows of several points (points, dims), one after the other."""
        ...


@dataclass(frozen=True, eq=False)
class LayerWay:
    """Adapted layers compute with displaced weights; no parameter changes."""

    kind: str
    stack: int
    layers: Sequence[DisplacedLayer]

    @contextmanager
    def at(self, coefficients: Tensor) -> Iterator[None]:
        """As `Way.at`."""
        with replaced_forwards({layer.layer.module: layer.forward(coefficients) for layer in self.layers}):
            yield


@dataclass(frozen=True, eq=False)
class _DenseLayer:
    """One layer with W' (out, in) and b (out,) where W' can be held, else with its own output in their place."""

    layer: AdaptedLayer
    keys: list[tuple[int, ...]]
    norms: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    scratch: Scratch
    held: list[Tensor] | None = None
    """The directions; None where they are drawn for every forward pass."""

    def forward(self, coefficients: Tensor) -> Forward:
        """As `DisplacedLayer.forward`."""
        own, points = self.layer.module.forward, coefficients.tolist()

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            directions = self.held or self.directions(x)
            outputs = [
                F.linear(row, self._displaced(directions, point).to(x.dtype), self.bias)
                for row, point in zip(point_rows(x, len(points)), points, strict=True)
            ]
            y = as_output(torch.stack(outputs) if len(outputs) > 1 else outputs[0], x)
            return y if self.weight is not None else own(x, *args, **kwargs) + y

        return forward

    def directions(self, like: Tensor) -> list[Tensor]:
        """Dₖ (out, in), on the device and at least in the precision of ``like``."""
        return [rescaled(gaussian(self.layer, key, like), self.norms) for key in self.keys]

    def _displaced(self, directions: Sequence[Tensor], point: Sequence[float]) -> Tensor:
        """W' + Σ cₖ·Dₖ, or the sum alone; valid until the next one."""
        first, *others = zip(directions, point, strict=True)
        total = self.scratch.like(first[0])
        if self.weight is None:
            torch.mul(first[0], first[1], out=total)
        else:
            torch.add(self.weight, first[0], alpha=first[1], out=total)
        for direction, coefficient in others:
            total.add_(direction, alpha=coefficient)
        return total


def _dense_layer(
    layer: AdaptedLayer, keys: list[tuple[int, ...]], normalization: str, scratch: Scratch, hold: bool
) -> _DenseLayer:
    weight = layer.effective_weight()
    norms = (
        None
        if normalization == "none"
        else row_norms(weight.to(torch.promote_types(weight.dtype, torch.float32)), normalization)
    )
    kept = (weight.contiguous(), layer.bias()) if layer.is_dense else (None, None)
    dense = _DenseLayer(layer, keys, norms, *kept, scratch)
    return replace(dense, held=dense.directions(weight)) if hold else dense
