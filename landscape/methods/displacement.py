"""Moving the trainable parameters away and putting them back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Displacement:
    """Saved copies of parameters, made at the first move and reused; restoring copies, it never subtracts."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._saved: list[Tensor] = []
        self.active = False

    @torch.no_grad()
    def save(self) -> list[Tensor]:
        """Remember the present values and return them; `restore` goes back to them."""
        if self.active:
            raise RuntimeError("perturb() twice without restore() between")
        if not self._saved:
            self._saved = [torch.empty_like(p) for p in self.parameters]
        torch._foreach_copy_(self._saved, [p.data for p in self.parameters])
        self.active = True
        return self._saved

    @torch.no_grad()
    def move(self, direction: Sequence[Tensor], scale: float = 1.0) -> None:
        """θ ← θ + scale · direction, from saved values."""
        self.save()
        torch._foreach_add_([p.data for p in self.parameters], list(direction), alpha=scale)

    @torch.no_grad()
    def restore(self) -> None:
        """The saved values again; harmless when nothing is saved."""
        if self.active:
            torch._foreach_copy_([p.data for p in self.parameters], self._saved)
            self.active = False


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter that requires gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """``.grad`` ← None, without touching the tensors that it was."""
    for parameter in parameters:
        parameter.grad = None


def filter_noise(parameters: Sequence[Tensor], generators: Sequence[torch.Generator], deviation: float) -> list[Tensor]:
    """Gaussian noise, (same shapes), whose standard deviation is ``deviation`` times the norm of the entry's filter.

    A filter is a row of a matrix (‖θ_i‖ over all other axes), and the whole tensor for vectors.

    Args:
        generators: one for each parameter.
    """
    found = []
    for parameter, generator in zip(parameters, generators, strict=True):
        values = parameter.detach()
        norm = values.flatten(1).norm(dim=1).view(-1, *[1] * (values.dim() - 1)) if values.dim() > 1 else values.norm()
        noise = torch.randn(values.shape, generator=generator, device=values.device, dtype=values.dtype)
        found.append(noise * (deviation * norm))
    return found
