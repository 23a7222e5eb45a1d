"""A window whose loss is a quadratic, so that every step has a closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Quadratic(nn.Module):
    """L(θ) = ½(θ - c)ᵀH(θ - c) in float64, θ a (3, 2) matrix and a (2,) vector, flattened in that order."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
        self.H = root @ root.T / 8
        self.c = torch.randn(8, generator=generator, dtype=torch.float64)
        self.matrix = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
        self.vector = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))

    @property
    def theta(self) -> Tensor:
        """θ, (8,), a copy."""
        return flat([self.matrix.detach(), self.vector.detach()])

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L, (8,)."""
        return self.H @ (theta - self.c)

    def loss(self, theta: Tensor) -> Tensor:
        """L, a scalar."""
        return 0.5 * (theta - self.c) @ self.gradient(theta)


class QuadraticWindow:
    """`landscape.methods.base.Window` over a `Quadratic`; part k of n has 1/n of the loss."""

    def __init__(self, model: Quadratic) -> None:
        self.model = model
        self.parameters: list[nn.Parameter] = list(model.parameters())
        self.visited: list[Tensor] = []

    def backward(self, part: int = 0, parts: int = 1) -> Tensor:
        """Adds the gradient, and notes where it was taken."""
        theta = self.model.theta
        self.visited.append(theta)
        for p, g in zip(self.parameters, unflat(self.model.gradient(theta) / parts), strict=True):
            p.grad = g if p.grad is None else p.grad + g
        return self.model.loss(theta) / parts


def flat(tensors: list[Tensor]) -> Tensor:
    """One vector of all tensors."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflat(vector: Tensor) -> list[Tensor]:
    """The matrix and the vector of an (8,) vector."""
    return [vector[:6].view(3, 2).clone(), vector[6:].clone()]


def grads(model: nn.Module) -> Tensor:
    """All gradients as one vector."""
    return flat([p.grad for p in model.parameters()])  # type: ignore[misc]
