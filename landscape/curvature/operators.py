"""The Hessian of the loss as a matrix that is only ever multiplied by vectors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.errors import UsageError, unknown
from landscape.loss import ExampleLosses, LossKind, forward_losses, loss_kind
from landscape.measurement import Batch, NonFiniteLossError, count_batches, differentiating, measuring

SPACES = ("adapter",)
"""Coordinates in which curvature can be measured; ``adapter`` is every parameter that requires a gradient."""

DEFAULT_GRAPH_BYTES = 4 * 2**30
"""Memory that retained gradient graphs may take by default on a CPU; on CUDA it is half of what is free."""

_NO_SECOND_DERIVATIVE = (
    "is not implemented",
    "once_differentiable",
    "does not currently support double backward",
    "not differentiable twice",
)


class HessianOperator:
    """H = ∇²L of the loss L = Σ nll ÷ Σ counted labels over all batches together; ``operator @ v`` is H·v.

    Products are reverse over reverse and exact (Pearlmutter, Fast Exact Multiplication by the Hessian, 1994). The graph
    of the gradient is built once a batch and reused, which makes a product cost about 1.4 gradients instead of 2.5;
    batches whose graphs exceed the memory budget are rebuilt for every product. Each batch is one forward pass,
    weighted by its share of the counted labels, so how examples are dealt to batches does not matter.

    The operator is a picture of the parameters at the time it was built; changing them in place while it is in use is
    an error. A parameter on which the loss does not depend has zero rows.

    Args:
        model: a transformers or PEFT model (decoder, encoder-decoder or sequence classification) in any mode; it is
            measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        space: ``adapter``: all parameters that require a gradient, in the order of ``named_parameters()``.
        reuse_graph: keep every graph (True), none (False), or as many as fit the budget (``auto``).
        graph_bytes: the budget of ``auto`` in bytes; the default is `DEFAULT_GRAPH_BYTES`. On top of it comes the graph
            of the one batch at work.

    Attributes:
        size: number of parameters n; vectors are (n,).
        dtype: of the vectors: the parameters' own, at least float32.
        gradient: ∇L, (n,).
        loss: L in nats, with ``num_examples`` and ``num_labels`` behind it.
        num_matvecs: products so far.
        retained_bytes: memory held by the retained graphs, parameters not counted.
        num_retained: how many of the ``num_batches`` graphs are kept.

    Raises:
        UsageError: unknown space, nothing trainable, unusable batches, a loss that differs between two evaluations or
            does not depend on the trainable parameters, or an operation without a second derivative.
        NonFiniteLossError: the loss is NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batch | Iterable[Batch],
        *,
        space: str = "adapter",
        reuse_graph: bool | Literal["auto"] = "auto",
        graph_bytes: int | None = None,
    ) -> None:
        check_space(space)
        self.space = space
        self._model = _unwrap_parallel(model)
        named = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        if not named:
            raise UsageError("model: no parameter requires a gradient; attach an adapter or unfreeze what is measured")
        self.names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.size = sum(self._sizes)
        self.device = self._parameters[0].device
        self.dtype = torch.float32
        for parameter in self._parameters:
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)
        self._kind: LossKind = loss_kind(self._model)
        counted = count_batches(batches, self._kind, next(self._model.parameters()).device)
        self._batches = counted.batches
        self.num_batches = len(counted.batches)
        self.num_examples, self.num_labels = counted.num_examples, counted.num_labels
        self.num_matvecs = 0
        self.retained_bytes = 0
        self._graphs: list[list[Tensor | None] | None] = [None] * self.num_batches
        with differentiating(self._model):
            self.gradient = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        self._build(reuse_graph, _graph_budget(self.device) if graph_bytes is None else graph_bytes)

    @property
    def num_retained(self) -> int:
        """How many batches keep their gradient graph."""
        return sum(graph is not None for graph in self._graphs)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """H·v for v of shape (n,); the result has the operator's dtype and device."""
        if vector.shape != (self.size,):
            raise UsageError(f"vector: shape {tuple(vector.shape)}; the Hessian has {self.size} rows")
        self.num_matvecs += 1
        context = differentiating if self.num_retained == self.num_batches else measuring
        with context(self._model):
            parts = [
                part.view_as(parameter).to(parameter.device, parameter.dtype)
                for part, parameter in zip(vector.split(self._sizes), self._parameters, strict=True)
            ]
            product = torch.zeros_like(self.gradient)
            for batch, graph in zip(self._batches, self._graphs, strict=True):
                gradients = graph or self._batch_gradient(self._batch_losses(batch), create_graph=True)
                self._add_flat(product, self._differentiate(gradients, parts, retain=graph is not None))
        return product

    def _build(self, reuse_graph: bool | Literal["auto"], budget: int) -> None:
        """Evaluate every batch twice, the second time with its gradient, and keep the graphs that are to be kept."""
        loss = 0.0
        parameters_bytes = {tensor.untyped_storage().data_ptr() for tensor in self._model.parameters()}
        eps = max(torch.finfo(p.dtype).eps for p in self._model.parameters() if p.is_floating_point())
        tolerance = min(64 * eps, 1e-3)
        used = [False] * len(self._parameters)
        with measuring(self._model):
            for position, batch in enumerate(self._batches):
                with torch.no_grad():
                    first = self._batch_losses(batch)
                second = self._batch_losses(batch)
                _check_losses(first, second, position, tolerance)
                loss += float(second.nll.detach().double().sum())
                gradients = self._batch_gradient(second, create_graph=reuse_graph is not False)
                self._add_flat(self.gradient, gradients)
                used = [seen or gradient is not None for seen, gradient in zip(used, gradients, strict=True)]
                if reuse_graph is False:
                    continue
                held = graph_bytes_of(gradients, parameters_bytes)
                if reuse_graph is True or self.retained_bytes + held <= budget:
                    self._graphs[position] = gradients
                    self.retained_bytes += held
        if not any(used):
            raise UsageError(
                f"model: the loss depends on none of its {len(used)} trainable tensors; is the adapter off or merged?"
            )
        self.loss = loss / self.num_labels

    def _batch_losses(self, batch: dict[str, Any]) -> ExampleLosses:
        return forward_losses(self._model, batch, self._kind)

    def _batch_gradient(self, losses: ExampleLosses, create_graph: bool) -> list[Tensor | None]:
        """The batch's contribution to ∇L, one entry a parameter; None where the loss does not depend on it."""
        share = losses.nll.sum() / self.num_labels
        if not share.requires_grad:
            return [None] * len(self._parameters)
        with _second_derivatives():
            gradients = torch.autograd.grad(share, self._parameters, create_graph=create_graph, allow_unused=True)
        for name, gradient in zip(self.names, gradients, strict=True):
            # Cross-entropy is linear in no parameter: a gradient without a graph was cut from it by some kernel.
            if create_graph and gradient is not None and not gradient.requires_grad:
                raise UsageError(f"model: the gradient of {name} cannot be differentiated again; {_ADVICE}")
        return list(gradients)

    def _differentiate(self, gradients: list[Tensor | None], parts: list[Tensor], retain: bool) -> list[Tensor | None]:
        """∂(gᵀv)/∂θ of one batch."""
        pairs = [(gradient, part) for gradient, part in zip(gradients, parts, strict=True) if gradient is not None]
        if not pairs:
            return [None] * len(parts)
        outputs, vectors = zip(*pairs, strict=True)
        with _second_derivatives():
            return list(torch.autograd.grad(outputs, self._parameters, vectors, retain_graph=retain, allow_unused=True))

    def _add_flat(self, total: Tensor, tensors: list[Tensor | None]) -> None:
        for part, tensor in zip(total.split(self._sizes), tensors, strict=True):
            if tensor is not None:
                part.add_(tensor.detach().reshape(-1).to(self.device, self.dtype))


def check_space(space: str) -> None:
    """Refuse a space that is not in `SPACES`.

    Raises:
        UsageError: lists what is allowed and the nearest match.
    """
    if space not in SPACES:
        raise unknown("space", space, SPACES)


def graph_bytes_of(outputs: list[Tensor | None], excluded_storages: Collection[int] = ()) -> int:
    """Bytes of the distinct storages that the autograd graph behind ``outputs`` keeps alive.

    Read off the graph's own saved tensors, so it is what the graph holds and not an estimate from shapes (equal to
    counting with ``saved_tensors_hooks``, which would slow down every later pass through the graph).
    """
    storages: dict[int, int] = {}
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn for output in outputs if output is not None and output.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for tensor in _saved_tensors(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in excluded_storages:
                storages[storage.data_ptr()] = storage.nbytes()
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return sum(storages.values())


def _saved_tensors(node: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for name in dir(node):
        if name == "saved_tensors" or name.startswith("_saved_"):
            value = getattr(node, name)
            values = value if isinstance(value, (tuple, list)) else (value,)
            found.extend(item for item in values if isinstance(item, Tensor))
    return found


def _graph_budget(device: torch.device) -> int:
    if device.type != "cuda":
        return DEFAULT_GRAPH_BYTES
    return torch.cuda.mem_get_info(device)[0] // 2


def _unwrap_parallel(model: nn.Module) -> nn.Module:
    """DistributedDataParallel's reducer waits for hooks that `torch.autograd.grad` never fires."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _check_losses(first: ExampleLosses, second: ExampleLosses, position: int, tolerance: float) -> None:
    a, b = first.nll.detach().double(), second.nll.detach().double()
    if not bool(torch.isfinite(b).all()):
        raise NonFiniteLossError(f"batches[{position}]: the loss is {float(b.sum())}; the parameters have diverged")
    difference = float((a - b).abs().max())
    if difference > tolerance * max(1.0, float(b.abs().max())):
        raise UsageError(
            f"batches[{position}]: two evaluations differ by {difference:.3g} nats in one example; "
            "remove what draws random numbers in evaluation mode"
        )


_ADVICE = "load the model with attn_implementation='eager' and without fused or compiled kernels"


@contextmanager
def _second_derivatives() -> Iterator[None]:
    """Turn autograd's messages about missing second derivatives and changed parameters into advice."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if any(sign in str(error) for sign in _NO_SECOND_DERIVATIVE):
            raise UsageError(f"model: an operation has no second derivative ({message}); {_ADVICE}") from error
        if "modified by an inplace operation" in str(error):
            raise UsageError("model: parameters were changed while the Hessian was in use; build a new one") from error
        raise
