"""Curvature matrices of the loss, which are only ever multiplied by vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.curvature.graphs import GRAPHS, Graph, NoSecondDerivativeError
from landscape.curvature.memory import PRODUCTS, Plan, Product, graph_bytes_of, make_plan, memory_budget
from landscape.curvature.objective import Objective
from landscape.errors import UsageError, unknown
from landscape.measurement import Batch, NonFiniteLossError, differentiating, slice_batch

Matrix = Literal["hessian", "ggn"]
MATRICES = tuple(GRAPHS)


class CurvatureOperator:
    """H = ∇²L, or its Gauss-Newton part, of the loss over all batches together; ``operator @ v`` is H·v.

    Products are exact, reverse over reverse. The graph of the gradient is built once a batch and reused, which makes a
    product cost about 1.3 gradients instead of 2.5. Where the graphs exceed the memory budget they are rebuilt for
    every product, in passes of as few examples as fit, and where not even one example's graph fits, or an operation of
    the model has no second derivative (4-bit layers, fused kernels), products are central differences of gradients:
    2 gradients each, with a relative error below 3e-3 on the tests' float32 models.
    `plan` says which, and on what estimate.

    The operator is a picture of the coordinates at the time it was built or refreshed; changing them in place while it
    is in use is an error. A parameter on which the loss does not depend has zero rows.

    Args:
        model: a transformers or PEFT model (decoder, encoder-decoder or sequence classification) in any mode; it is
            measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        matrix: ``hessian``, or ``ggn``: generalized Gauss-Newton, which is the Fisher information here.
        space: ``adapter``, ``merged`` or ``balanced``, see `landscape.curvature.coordinates.SPACES`.
        balance: with ``adapter`` it means ``balanced``.
        product: ``reuse`` (keep every graph), ``rebuild``, ``finite_difference``, or ``auto``: what fits.
        memory_bytes: the budget for graphs; default: 4 GiB on a CPU (or half of what is
            free where that is less), half of what is free on CUDA.

    Attributes:
        size: n; vectors are (n,).
        gradient: ∇L, (n,).
        loss: L in nats, with ``num_examples`` and ``num_labels`` behind it.
        num_matvecs: products so far.
        retained_bytes: memory held by the retained graphs, parameters not counted.
        num_retained: how many of the ``num_batches`` graphs are kept.
        plan: how products are made.

    Raises:
        UsageError: an unknown space, matrix or product, nothing trainable, unusable batches, a loss that differs
            between two evaluations of an example or does not depend on the coordinates, or, unless ``auto``, an
            operation without a second derivative.
        NonFiniteLossError: the loss is NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batch | Iterable[Batch],
        *,
        matrix: Matrix = "hessian",
        space: str = "adapter",
        balance: bool = False,
        product: Product = "auto",
        memory_bytes: int | None = None,
    ) -> None:
        _check_choices(matrix, product)
        self.objective = Objective(model, batches, space=space, balance=balance)
        self.matrix = matrix
        self.space, self.names, self.sizes = self.objective.space, self.objective.names, self.objective.sizes
        self.size, self.dtype, self.device = self.objective.size, self.objective.dtype, self.objective.device
        self.num_examples, self.num_labels = self.objective.num_examples, self.objective.num_labels
        self.num_matvecs = 0
        budget = memory_budget(self.device) if memory_bytes is None else memory_bytes
        longest = max(self.objective.batches, key=_positions)
        _check_repeatable(self.objective, slice_batch(longest, 0, 1))
        self.plan = self._plan(product, longest, budget)
        self._batches = [part for batch in self.objective.batches for part in _split(batch, self.plan.rows)]
        self.num_batches = len(self._batches)
        self._take_up()

    def refresh(self) -> None:
        """Take up the values that the parameters have now; the graphs of the old ones are dropped first.

        Raises:
            UsageError: the loss does not depend on the coordinates, or factors that can no longer be balanced.
            NonFiniteLossError: the loss is NaN or infinite.
        """
        self.objective.coordinates.refresh()
        self._take_up()

    @property
    def num_retained(self) -> int:
        """How many batches keep their graph."""
        return sum(graph is not None for graph in self._graphs)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """H·v for v of shape (n,); the result has the operator's dtype and device."""
        if vector.shape != (self.size,):
            raise UsageError(f"vector: shape {tuple(vector.shape)}; the Hessian has {self.size} rows")
        self.num_matvecs += 1
        if self.plan.product == "finite_difference":
            return self._difference(vector)
        product = self.objective.zeros()
        if self.num_retained == self.num_batches:
            with differentiating(self.objective.model):
                self._add_products(product, vector)
        else:
            with self.objective.installed():
                self._add_products(product, vector)
        return product

    def _add_products(self, product: Tensor, vector: Tensor) -> None:
        parts = self.objective.split(vector)
        for batch, kept in zip(self._batches, self._graphs, strict=True):
            graph = kept or GRAPHS[self.matrix](self.objective, batch)
            self.objective.add_flat(product, graph.multiply(self.objective, parts, retain=kept is not None))

    def _difference(self, vector: Tensor) -> Tensor:
        """(∇L(θ + hv) - ∇L(θ - hv)) ÷ 2h, with h where rounding and truncation are about equal."""
        norm = float(vector.norm())
        if norm == 0:
            return torch.zeros_like(vector)
        scale = max(1.0, float(self.objective.theta.norm()))
        offset = vector * (_rounding(self.objective.model) ** (1 / 3) * scale / norm)
        (_, ahead), (_, behind) = (self.objective.value_and_gradient_at(sign * offset) for sign in (1, -1))
        return (ahead - behind) * (norm / (2 * float(offset.norm())))

    def _plan(self, product: Product, longest: dict[str, Any], budget: int) -> Plan:
        """From the graph of one example of the longest batch, which is built and thrown away."""
        shapes = [(len(batch["labels"]), _positions(batch)) for batch in self.objective.batches]
        if product in ("reuse", "finite_difference"):
            return make_plan(product, 0, shapes, budget)
        try:
            example_bytes = self._graph_bytes(slice_batch(longest, 0, 1))
        except NoSecondDerivativeError:
            if product != "auto" or self.matrix != "hessian":
                raise
            return make_plan("finite_difference", 0, shapes, budget)
        plan = make_plan(product, example_bytes, shapes, budget)
        if plan.product == "finite_difference" and self.matrix != "hessian":
            return make_plan("rebuild", example_bytes, shapes, budget)
        return plan

    def _graph_bytes(self, batch: dict[str, Any]) -> int:
        with self.objective.installed():
            graph = GRAPHS[self.matrix](self.objective, batch)
            held = graph_bytes_of(graph.outputs, self._owned())
            # A missing second derivative may show only here.
            zeros = [torch.zeros_like(tensor) for tensor in self.objective.tensors]
            graph.multiply(self.objective, zeros, retain=False)
        return held

    def _owned(self) -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in self.objective.model.parameters()}

    def _take_up(self) -> None:
        """Build the graphs that are to be kept, with the loss and its gradient."""
        objective, loss = self.objective, 0.0
        self._graphs: list[Graph | None] = []  # the old ones go first
        self.retained_bytes = 0
        self.gradient = objective.zeros()
        used = [False] * len(objective.tensors)
        with objective.installed():
            for position, batch in enumerate(self._batches):
                graph = GRAPHS[self.matrix](objective, batch) if position < self.plan.retained else None
                losses = graph.losses if graph else objective.losses(batch)
                gradients = graph.gradients if graph else objective.gradients(losses)
                total = float(losses.nll.detach().double().sum())
                if not math.isfinite(total):
                    raise NonFiniteLossError(f"batches[{position}]: the loss is {total}; the parameters have diverged")
                loss += total
                objective.add_flat(self.gradient, gradients)
                used = [seen or gradient is not None for seen, gradient in zip(used, gradients, strict=True)]
                self._graphs.append(graph)
                self.retained_bytes += graph_bytes_of(graph.outputs, self._owned()) if graph else 0
        if not any(used):
            raise UsageError(
                f"model: the loss depends on none of its {len(used)} trainable tensors; is the adapter off or merged?"
            )
        self.loss = loss / self.num_labels


def _check_choices(matrix: str, product: str) -> None:
    for key, value, allowed in (("matrix", matrix, MATRICES), ("product", product, PRODUCTS)):
        if value not in allowed:
            raise unknown(key, value, allowed)
    if matrix == "ggn" and product == "finite_difference":
        raise UsageError("product: 'finite_difference' with matrix='ggn'; allowed: auto, reuse, rebuild")


def _positions(batch: dict[str, Any]) -> int:
    """The length of the longest sequence that a batch's graph depends on."""
    return max(int(value.shape[1]) for value in batch.values() if isinstance(value, Tensor) and value.dim() > 1)


def _split(batch: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    count = len(batch["labels"])
    return [batch] if count <= rows else [slice_batch(batch, first, first + rows) for first in range(0, count, rows)]


def _rounding(model: nn.Module) -> float:
    """Of the coarsest floating-point type that the model computes with."""
    return max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())


def _check_repeatable(objective: Objective, batch: dict[str, Any]) -> None:
    """Evaluate one example twice: random numbers in evaluation mode would make every product another matrix's."""
    with objective.installed(), torch.no_grad():
        first, second = (objective.losses(batch).nll.double() for _ in range(2))
    difference = float((first - second).abs().max())
    if difference > min(64 * _rounding(objective.model), 1e-3) * max(1.0, float(second.abs().max())):
        raise UsageError(
            f"model: two evaluations of one example differ by {difference:.3g} nats; "
            "remove what draws random numbers in evaluation mode"
        )
