"""Autograd graphs of one batch, through which vectors are multiplied by its share of a curvature matrix.

Every graph is linear in the vector and can be used again as long as the coordinates are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from landscape.curvature.cross_entropy import twice_differentiable_losses
from landscape.curvature.objective import Objective
from landscape.errors import UsageError
from landscape.loss import ExampleLosses

_NO_SECOND_DERIVATIVE = (
    "is not implemented",
    "once_differentiable",
    "does not currently support double backward",
    "not differentiable twice",
)
_ADVICE = (
    "load the model with attn_implementation='eager' and without fused or compiled kernels, "
    "or use product='finite_difference'"
)

Parts = list[Tensor | None]
"""One entry a tensor of the coordinates; None stands for zeros."""


class NoSecondDerivativeError(UsageError):
    """An operation of the model can be differentiated only once."""


class Graph(Protocol):
    """What one batch contributes."""

    @property
    def losses(self) -> ExampleLosses:
        """Per example."""
        ...

    @property
    def gradients(self) -> Parts:
        """Of the batch's share of the loss."""
        ...

    @property
    def outputs(self) -> Parts:
        """Tensors whose history is what the graph keeps in memory."""
        ...

    def multiply(self, objective: Objective, parts: list[Tensor], retain: bool) -> Parts:
        """The batch's matrix times a vector; the graph is gone afterwards unless retained."""
        ...


@dataclass(frozen=True, eq=False)
class HessianGraph:
    """Of the gradient: H·v = ∂(gᵀv)/∂θ (Pearlmutter, Fast Exact Multiplication by the Hessian, 1994)."""

    losses: ExampleLosses
    gradients: Parts

    @classmethod
    def build(cls, objective: Objective, batch: dict[str, Any]) -> HessianGraph:
        """Only where the objective is installed."""
        losses = objective.losses(batch)
        with _second_derivatives():
            gradients = objective.gradients(losses, create_graph=True)
        _check_differentiable(objective, gradients)
        return cls(losses, gradients)

    @property
    def outputs(self) -> Parts:
        """As `Graph`."""
        return self.gradients

    def multiply(self, objective: Objective, parts: list[Tensor], retain: bool) -> Parts:
        """As `Graph`."""
        return _differentiate(self.gradients, objective.tensors, parts, retain)


@dataclass(frozen=True, eq=False)
class GGNGraph:
    """Of the logits z and of Jᵀu for a placeholder u: G·v = JᵀH_z·Jv, Jv = ∂(vᵀJᵀu)/∂u (double backward trick).

    H_z is the Hessian of the batch's share of the loss by its logits. G is positive semi-definite, and for
    cross-entropy it is the Fisher information (Schraudolph, Fast Curvature Matrix-Vector Products, 2002; Martens, New
    Insights and Perspectives on the Natural Gradient Method, 2020).
    """

    losses: ExampleLosses
    gradients: Parts
    logits: Tensor
    placeholder: Tensor
    transposed: Parts  # Jᵀu
    logit_leaf: Tensor
    logit_gradient: Tensor  # of the loss share by logit_leaf, with its graph

    @classmethod
    def build(cls, objective: Objective, batch: dict[str, Any]) -> GGNGraph:
        """Only where the objective is installed."""
        logits = objective.logits(batch)
        leaf = logits.detach().requires_grad_()
        losses = twice_differentiable_losses(leaf, batch["labels"], objective.kind)
        (logit_gradient,) = torch.autograd.grad(losses.nll.sum() / objective.num_labels, leaf, create_graph=True)
        if not logits.requires_grad:
            nothing: Parts = [None] * len(objective.tensors)
            return cls(losses, nothing, logits, leaf, nothing, leaf, logit_gradient)
        placeholder = torch.zeros_like(logits, requires_grad=True)
        with _second_derivatives():
            transposed: Parts = list(
                torch.autograd.grad(logits, objective.tensors, placeholder, create_graph=True, allow_unused=True)
            )
        _check_differentiable(objective, transposed)
        gradients = _differentiate([logits], objective.tensors, [logit_gradient.detach()], retain=True)
        return cls(losses, gradients, logits, placeholder, transposed, leaf, logit_gradient)

    @property
    def outputs(self) -> Parts:
        """As `Graph`."""
        return [self.logits, self.logit_gradient, *self.transposed]

    def multiply(self, objective: Objective, parts: list[Tensor], retain: bool) -> Parts:
        """As `Graph`."""
        (jv,) = _differentiate(self.transposed, [self.placeholder], parts, retain=True)
        if jv is None:
            return [None] * len(objective.tensors)
        (weighted,) = torch.autograd.grad(self.logit_gradient, self.logit_leaf, jv, retain_graph=retain)
        return _differentiate([self.logits], objective.tensors, [weighted], retain)


GRAPHS: dict[str, Callable[[Objective, dict[str, Any]], Graph]] = {
    "hessian": HessianGraph.build,
    "ggn": GGNGraph.build,
}
"""By matrix: ``hessian``, or ``ggn``, the generalized Gauss-Newton matrix."""


def _differentiate(outputs: Parts, inputs: list[Tensor], vectors: list[Tensor], retain: bool) -> Parts:
    """Σ vectorᵀ·∂output/∂input, one entry an input."""
    pairs = [(output, vector) for output, vector in zip(outputs, vectors, strict=True) if output is not None]
    if not pairs:
        return [None] * len(inputs)
    roots, weights = zip(*pairs, strict=True)
    with _second_derivatives():
        return list(torch.autograd.grad(roots, inputs, weights, retain_graph=retain, allow_unused=True))


def _check_differentiable(objective: Objective, gradients: Parts) -> None:
    for name, gradient in zip(objective.names, gradients, strict=True):
        # Cross-entropy is linear in no parameter: a gradient without a graph was cut from it by some kernel.
        if gradient is not None and not gradient.requires_grad:
            raise NoSecondDerivativeError(f"model: the gradient of {name} cannot be differentiated again; {_ADVICE}")


@contextmanager
def _second_derivatives() -> Iterator[None]:
    """Turn autograd's messages about missing second derivatives and changed parameters into advice."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if any(sign in str(error) for sign in _NO_SECOND_DERIVATIVE):
            raise NoSecondDerivativeError(
                f"model: an operation has no second derivative ({message}); {_ADVICE}"
            ) from error
        if "modified by an inplace operation" in str(error):
            raise UsageError(
                "model: parameters were changed while the Hessian was in use; refresh it or build a new one"
            ) from error
        raise
