"""The loss of a model over fixed batches as a function of coordinates: values and gradients, nearby too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from landscape.curvature.coordinates import Coordinates, coordinates
from landscape.curvature.cross_entropy import twice_differentiable_losses
from landscape.errors import UsageError
from landscape.loss import ExampleLosses, LossKind, forward_logits, loss_kind
from landscape.measurement import Batch, NonFiniteLossError, count_batches, measuring


class Objective:
    """L(θ) = Σ nll ÷ Σ counted labels over all batches together, as a function of n coordinates θ.

    Each batch is one forward pass, weighted by its share of the counted labels, so how examples are dealt to batches
    does not matter. The model is measured in evaluation mode and left exactly as found, also after an exception.

    Args:
        model: a transformers or PEFT model (decoder, encoder-decoder or sequence classification) in any mode.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        space: ``adapter``, ``merged`` or ``balanced``, see `landscape.curvature.coordinates.SPACES`.
        balance: with ``adapter`` it means ``balanced``.

    Attributes:
        space: one of `SPACES`.
        names: of the coordinates' tensors, ``sizes`` their numbers of elements, ``size`` their total n.
        dtype: of all vectors: the coordinates' own, at least float32.
        num_examples: with at least one counted label; ``num_labels``, all counted labels.

    Raises:
        UsageError: unknown space, nothing trainable, or unusable batches.
    """

    def __init__(
        self, model: nn.Module, batches: Batch | Iterable[Batch], *, space: str = "adapter", balance: bool = False
    ) -> None:
        self.model = _unwrap_parallel(model)
        self.coordinates: Coordinates = coordinates(self.model, space, balance)
        self.space, self.names, self.tensors = (
            self.coordinates.space,
            self.coordinates.names,
            self.coordinates.tensors,
        )
        self.sizes = [tensor.numel() for tensor in self.tensors]
        self.size = sum(self.sizes)
        self.device = self.tensors[0].device
        self.dtype = torch.float32
        for tensor in self.tensors:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.kind: LossKind = loss_kind(self.model)
        counted = count_batches(batches, self.kind, next(self.model.parameters()).device)
        self.batches = counted.batches
        self.num_examples, self.num_labels = counted.num_examples, counted.num_labels

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The state in which the model is evaluated: `measuring`, with the coordinates in place."""
        with measuring(self.model), self.coordinates.installed():
            yield

    @property
    def theta(self) -> Tensor:
        """A copy of the coordinates, (n,)."""
        flat = self.zeros()
        self.add_flat(flat, self.tensors)
        return flat

    @property
    def loss(self) -> float:
        """L at the coordinates as they are now, in nats a counted label."""
        return self.loss_at(None)

    def loss_at(self, offset: Tensor | None) -> float:
        """L(θ + offset), offset (n,); the coordinates are restored bit for bit.

        Raises:
            UsageError: the offset has another shape.
            NonFiniteLossError: the loss is NaN or infinite.
        """
        with self.displaced(offset), self.installed(), torch.no_grad():
            return self._checked(sum(float(self.losses(batch).nll.double().sum()) for batch in self.batches))

    def value_and_gradient_at(self, offset: Tensor | None) -> tuple[float, Tensor]:
        """L(θ + offset) and its gradient (n,) there; raises as `loss_at`."""
        gradient, total = self.zeros(), 0.0
        with self.displaced(offset), self.installed():
            for batch in self.batches:
                losses = self.losses(batch)
                total += float(losses.nll.detach().double().sum())
                self.add_flat(gradient, self.gradients(losses))
        return self._checked(total), gradient

    @contextmanager
    def displaced(self, offset: Tensor | None) -> Iterator[None]:
        """Inside, the coordinates are θ + offset."""
        if offset is None:
            yield
            return
        if offset.shape != (self.size,):
            raise UsageError(f"offset: shape {tuple(offset.shape)}; needed: ({self.size},)")
        saved = [tensor.detach().clone() for tensor in self.tensors]
        try:
            with torch.no_grad():
                for tensor, part in zip(self.tensors, self.split(offset), strict=True):
                    tensor.add_(part)
            yield
        finally:
            with torch.no_grad():
                for tensor, own in zip(self.tensors, saved, strict=True):
                    tensor.copy_(own)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """The model's logits for one of the batches; only where `installed`."""
        return forward_logits(self.model, batch, self.kind)

    def losses(self, batch: dict[str, Any]) -> ExampleLosses:
        """Per-example losses of one of the batches; only where `installed`."""
        return twice_differentiable_losses(self.logits(batch), batch["labels"], self.kind)

    def gradients(self, losses: ExampleLosses, create_graph: bool = False) -> list[Tensor | None]:
        """A batch's contribution to ∇L, one entry a tensor; None where the loss does not depend on it."""
        share = losses.nll.sum() / self.num_labels
        if not share.requires_grad:
            return [None] * len(self.tensors)
        return list(torch.autograd.grad(share, self.tensors, create_graph=create_graph, allow_unused=True))

    def zeros(self) -> Tensor:
        """(n,) zeros that may be written to whatever mode the caller is in."""
        with torch.inference_mode(False):
            return torch.zeros(self.size, dtype=self.dtype, device=self.device)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector (n,) as tensors with the shapes, dtypes and devices of the coordinates."""
        return [
            part.view_as(tensor).to(tensor.device, tensor.dtype)
            for part, tensor in zip(vector.split(self.sizes), self.tensors, strict=True)
        ]

    def add_flat(self, total: Tensor, tensors: Iterable[Tensor | None]) -> None:
        """Add tensors shaped like the coordinates, None for zeros, to a vector (n,)."""
        for part, tensor in zip(total.split(self.sizes), tensors, strict=True):
            if tensor is not None:
                part.add_(tensor.detach().reshape(-1).to(self.device, self.dtype))

    def _checked(self, total: float) -> float:
        loss = total / self.num_labels
        if not abs(loss) < float("inf"):
            raise NonFiniteLossError(f"the loss is {loss}; the parameters have diverged")
        return loss


def _unwrap_parallel(model: nn.Module) -> nn.Module:
    """DistributedDataParallel's reducer waits for hooks that `torch.autograd.grad` never fires."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
