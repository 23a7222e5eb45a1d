"""Batches prepared once for many forward passes, and the per-example sums of one pass over several points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.loss import IGNORE_INDEX, LossKind, example_losses

Metric = Callable[[Tensor, Tensor], Tensor]
"""From logits (labels, classes) and labels (labels,) to one value a label (labels,), which is averaged over labels."""


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, as `landscape.loss`."""
    return example_losses(logits, labels, "classification").nll


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the likeliest class is the label."""
    return (logits.argmax(dim=-1) == labels).float()


@dataclass(frozen=True)
class Examples:
    """One batch: what the model is given, and which of its predictions count.

    ``rows`` (counted,) are positions in the flattened (examples · positions) predictions, ``labels`` their labels.
    """

    inputs: Mapping[str, Any]
    size: int
    positions: int
    rows: Tensor
    labels: Tensor

    @property
    def num_tokens(self) -> int:
        """Positions that the model computes, padding included."""
        sizes = (value.numel() for value in self.inputs.values() if isinstance(value, Tensor) and value.ndim <= 2)
        return max(sizes, default=self.size * self.positions)

    @property
    def counts(self) -> Tensor:
        """Counted labels of each example, (examples,)."""
        return torch.bincount(self.rows // self.positions, minlength=self.size)

    def sums(self, model: nn.Module, points: int, metric: Metric) -> Tensor:
        """Σ metric over the counted labels of each example at each point, (points, examples) float64.

        The output layer computes only the counted positions, where the model has one that can be asked to.
        """
        inputs = {key: self._repeated(value, points) for key, value in self.inputs.items()}
        steps = torch.arange(points, device=self.rows.device).unsqueeze(1) * (self.size * self.positions)
        rows = (self.rows + steps).flatten()
        with _only(_output_layer(model), rows, points * self.size, self.positions):
            logits = model(**inputs).logits
        logits = logits.flatten(0, -2)
        if len(logits) != len(rows):
            logits = logits[rows]
        values = metric(logits, self.labels.repeat(points)).view(points, -1).double()
        # Summed by example in a fixed order, on every device.
        spread = values.new_zeros(points, self.size * self.positions)
        spread[:, self.rows] = values
        return spread.view(points, self.size, self.positions).sum(dim=2)

    def _repeated(self, value: Any, points: int) -> Any:
        if points == 1 or not isinstance(value, Tensor) or value.ndim == 0 or len(value) != self.size:
            return value
        return value.repeat(points, *[1] * (value.ndim - 1))


def prepare(model: Any, batch: Mapping[str, Any], kind: LossKind) -> Examples:
    """A batch whose labels the model need not see: encoder-decoders get the decoder inputs made from them."""
    labels: Tensor = batch["labels"]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if kind == "classification":
        labels = labels.reshape(-1, 1)
    elif kind == "causal":
        # Position i predicts token i + 1; the last predicts nothing.
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)
    elif "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    flat = labels.flatten()
    rows = (flat != IGNORE_INDEX).nonzero()[:, 0]
    return Examples(inputs, *labels.shape, rows, flat[rows])  # type: ignore[arg-type]


def _output_layer(model: Any) -> nn.Module | None:
    return getattr(model, "get_output_embeddings", lambda: None)()


@contextmanager
def _only(layer: nn.Module | None, rows: Tensor, examples: int, positions: int) -> Iterator[None]:
    """Inside, the output layer sees the hidden states at ``rows`` alone, as one example."""

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args and isinstance(args[0], Tensor) and args[0].shape[:2] == (examples, positions):
            return (args[0].flatten(0, 1)[rows].unsqueeze(0), *args[1:])
        return None

    handle = None if layer is None else layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
