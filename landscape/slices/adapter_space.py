"""Slices through the space of the trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.slices.coordinates import Coordinates
from landscape.slices.layers import Forward, factors, is_plain_lora, replaced_forwards
from landscape.slices.spaces import Way, as_output, point_rows

Values = dict[int, Tensor]
"""Displaced values, (points, *shape), by the identity of the parameter."""


class AdapterSpace:
    """θ + Σ cₖ·dₖ with θ and dₖ vectors of the trainable parameters.

    Args:
        directions: (dims, n).
        origin: θ, (n,).
    """

    def __init__(self, model: nn.Module, coordinates: Coordinates, directions: Tensor, origin: Tensor) -> None:
        self.coordinates, self.directions, self.origin = coordinates, directions, origin
        self.dims = len(directions)
        self.num_parameters = coordinates.size
        self.point_bytes = origin.nbytes
        self._layers = _replaceable(model, coordinates)

    def points(self, coefficients: Tensor) -> Tensor:
        """(points, n) from (points, dims)."""
        return torch.addmm(self.origin, coefficients.to(self.directions), self.directions)

    def at_origin(self) -> AbstractContextManager[None]:
        """As `Space.at_origin`."""
        return at_point(self.coordinates, self.origin)

    def ways(self, stacks: Sequence[int]) -> list[Way]:
        """Layers that are replaced compute for several points; any other model moves its parameters."""
        in_place = InPlace(self)
        if self._layers is None:
            return [in_place]
        first, *others = [Layered("stacked", stack, self, self._layers, _stacked_lora) for stack in stacks]
        merged = [Layered("merged", 1, self, self._layers, _merged_lora)] if can_merge(self._layers) else []
        return [first, *merged, *others, in_place]


@dataclass(frozen=True, eq=False)
class InPlace:
    """The parameters read from a displaced copy; the originals are never written."""

    space: AdapterSpace
    kind = "in_place"
    stack = 1

    @contextmanager
    def at(self, coefficients: Tensor) -> Iterator[None]:
        """As `Way.at`."""
        with at_point(self.space.coordinates, self.space.points(coefficients)[0]):
            yield


@contextmanager
def at_point(coordinates: Coordinates, point: Tensor) -> Iterator[None]:
    """Inside, the parameters have the values of ``point`` (n,)."""
    originals = [parameter.data for parameter in coordinates.parameters]
    try:
        for parameter, part in zip(coordinates.parameters, coordinates.split(point), strict=True):
            parameter.data = part.to(parameter.device, parameter.dtype)
        yield
    finally:
        for parameter, original in zip(coordinates.parameters, originals, strict=True):
            parameter.data = original


@dataclass(frozen=True, eq=False)
class Layered:
    """The layers that hold the parameters compute with displaced values instead; no parameter changes."""

    kind: str
    stack: int
    space: AdapterSpace
    layers: Sequence[nn.Module]
    lora_forward: Callable[[Any, Values], Forward]

    @contextmanager
    def at(self, coefficients: Tensor) -> Iterator[None]:
        """As `Way.at`."""
        coordinates = self.space.coordinates
        parts = coordinates.split(self.space.points(coefficients))
        pairs = zip(coordinates.parameters, parts, strict=True)
        values = {id(parameter): part.to(parameter.device, parameter.dtype) for parameter, part in pairs}
        with replaced_forwards({layer: self._forward(layer, values) for layer in self.layers}):
            yield

    def _forward(self, layer: nn.Module, values: Values) -> Forward:
        return _stacked_linear(layer, values) if isinstance(layer, nn.Linear) else self.lora_forward(layer, values)


def _replaceable(model: nn.Module, coordinates: Coordinates) -> list[nn.Module] | None:
    """Plain LoRA and linear layers that together hold every trainable parameter; None where others hold some."""
    left = {id(parameter) for parameter in coordinates.parameters}
    layers: list[nn.Module] = []
    # A LoRA layer comes before the linear layers A and B inside it.
    for module in model.modules():
        if is_plain_lora(module):
            A, B, _ = factors(module)
            held = {id(A), id(B)}
            replaceable = held <= left
        else:
            held = {id(parameter) for parameter in module.parameters(recurse=False)} & left
            replaceable = type(module) is nn.Linear
        if held and replaceable:
            layers.append(module)
            left -= held
    return None if left else layers


def can_merge(layers: Sequence[nn.Module]) -> bool:
    """A weight in half precision would round the adapter away."""
    for layer in layers:
        if is_plain_lora(layer):
            weight: Any = layer.get_base_layer().weight  # type: ignore[operator]
            if weight.dtype not in (torch.float32, torch.float64) or weight.dtype != factors(layer)[0].dtype:
                return False
    return any(map(is_plain_lora, layers))


def _stacked_linear(layer: nn.Linear, values: Values) -> Forward:
    weight = values.get(id(layer.weight), layer.weight.unsqueeze(0))
    bias = None if layer.bias is None else values.get(id(layer.bias), layer.bias.unsqueeze(0))
    points = max(len(weight), 1 if bias is None else len(bias))
    weight = weight.expand(points, -1, -1).transpose(1, 2)

    def forward(x: Tensor) -> Tensor:
        rows = point_rows(x, points)
        y = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
        return as_output(y, x)

    return forward


def _stacked_lora(layer: Any, values: Values) -> Forward:
    """base(x) + s·B(A(x)), the base product over the rows of all points together."""
    A, B, scaling = factors(layer)
    down, up = values[id(A)].transpose(1, 2), values[id(B)].transpose(1, 2)
    base = layer.base_layer

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = base(x, *args, **kwargs)
        hidden = torch.bmm(point_rows(x, len(down)).to(down.dtype), down)
        return low_rank_added(y, hidden, up, x, scaling)

    return forward


def low_rank_added(y: Tensor, hidden: Tensor, up: Tensor, x: Tensor, scaling: float = 1.0) -> Tensor:
    """A layer's output ``y`` for ``x`` plus s·hidden @ up of each point, in the memory of ``y`` where it can be.

    Args:
        hidden: (points, rows, k).
        up: (points, k, out).
    """
    rows = point_rows(y, len(up))
    if y.is_contiguous() and rows.dtype == hidden.dtype == up.dtype:
        return as_output(rows.baddbmm_(hidden, up, alpha=scaling), x)
    return as_output((rows + torch.bmm(hidden, up) * scaling).to(y.dtype), x)


def _merged_lora(layer: Any, values: Values) -> Forward:
    """(W + s·BA)x + b of one point, W + s·BA made anew in every call."""
    A, B, scaling = factors(layer)
    down, up, base, frozen = values[id(A)][0], values[id(B)][0], layer.base_layer, frozen_weight(layer)

    def forward(x: Tensor) -> Tensor:
        return F.linear(x, torch.addmm(frozen, up, down, alpha=scaling), base.bias)

    return forward


def frozen_weight(layer: Any) -> Tensor:
    """W (out, in) of a LoRA layer, without its adapter; GPT-2's Conv1D keeps it as (in, out)."""
    return layer.base_layer.weight.T if layer.fan_in_fan_out else layer.base_layer.weight
