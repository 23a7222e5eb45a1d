"""The trainable parameters of a model as one vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from landscape.errors import UsageError

Vector = Tensor | Mapping[str, Tensor]
"""A point or direction: flat (n,) in the order of ``named_parameters()``, or tensors by parameter name."""


class Coordinates:
    """The parameters that require a gradient, concatenated in the order of ``named_parameters()``.

    Attributes:
        size: their number n; vectors are (n,).
        dtype: of the vectors: the parameters' own, at least float32.

    Raises:
        UsageError: nothing is trainable.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in unwrap_parallel(model).named_parameters() if p.requires_grad]
        if not named:
            raise UsageError("model: no parameter requires a gradient; attach an adapter or unfreeze what is displaced")
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.size = sum(self.sizes)
        self.device = self.parameters[0].device
        self.dtype = torch.float32
        for parameter in self.parameters:
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)

    def flatten(self) -> Tensor:
        """A copy of where the parameters are, (n,)."""
        return self._join(self.parameters)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of (..., n) as one (..., *shape) a parameter."""
        parts = flat.split(self.sizes, dim=-1)
        return [
            part.view(*flat.shape[:-1], *parameter.shape)
            for part, parameter in zip(parts, self.parameters, strict=True)
        ]

    def vector(self, value: Vector, what: str) -> Tensor:
        """``value`` as (n,) in this dtype, on this device.

        Args:
            what: how an error calls it, e.g. ``directions[0]``.

        Raises:
            UsageError: it belongs to another adapter: a name, shape or size differs.
        """
        if isinstance(value, Tensor):
            if value.shape != (self.size,):
                raise UsageError(f"{what}: shape {tuple(value.shape)}; the model has {self.size} trainable parameters")
            return value.detach().to(self.device, self.dtype)
        if missing := [name for name in self.names if name not in value]:
            raise UsageError(f"{what}: of another adapter: it lacks {len(missing)} tensors, such as {missing[0]}")
        if extra := sorted(value.keys() - set(self.names)):
            raise UsageError(f"{what}: of another adapter: the model does not train {extra[0]} ({len(extra)} such)")
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if value[name].shape != parameter.shape:
                found, own = tuple(value[name].shape), tuple(parameter.shape)
                raise UsageError(f"{what}: of another adapter: {name} is {found}, the model's is {own}")
        return self._join([value[name] for name in self.names])

    def _join(self, tensors: list[nn.Parameter] | list[Tensor]) -> Tensor:
        return torch.cat([tensor.detach().reshape(-1).to(self.device, self.dtype) for tensor in tensors])


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """The model itself: nothing is synchronized between processes while it is measured."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
