"""The one definition of the loss, used by training, evaluation, curvature and slices alike.

Loss = Σ cross-entropy over counted labels ÷ number of counted labels, in float32 (float64 for float64 models),
recomputed from the logits: shifted for decoders, as given for encoder-decoders, one label a row for classification.
A model's own ``.loss`` is not it: reductions differ between architectures, and AdaLoRA's adds a penalty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LossKind = Literal["causal", "seq2seq", "classification"]
IGNORE_INDEX = -100


def loss_kind(model: nn.Module) -> LossKind:
    """How the model's logits meet its labels, read from its Hugging Face config.

    Raises:
        ValueError: the model has no Hugging Face config.
    """
    config: Any = getattr(_unwrap(model), "config", None)
    if config is None:
        raise ValueError(f"{type(model).__name__} has no .config: pass a transformers or PEFT model")
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    architectures = [type(_base_model(model)).__name__, *(getattr(config, "architectures", None) or [])]
    return "classification" if "SequenceClassification" in architectures[0] else "causal"


def _unwrap(model: nn.Module) -> nn.Module:
    """Through DistributedDataParallel and torch.compile wrappers."""
    while not hasattr(model, "config") and hasattr(model, "module"):
        model = model.module  # type: ignore[assignment]
    return model


def _base_model(model: nn.Module) -> nn.Module:
    model = _unwrap(model)
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model  # type: ignore[return-value]


@dataclass(frozen=True)
class ExampleLosses:
    """Per-example sums: ``nll`` (examples,) in nats and ``count`` (examples,) of counted labels."""

    nll: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Scalar Σ nll ÷ Σ count; differentiable."""
        return self.nll.sum() / self.count.sum()


def count_labels(labels: Tensor, kind: LossKind) -> Tensor:
    """Counted labels of each example, (examples,): the first position of a decoder predicts nothing."""
    if kind == "classification":
        return (labels.reshape(-1) != IGNORE_INDEX).long()
    return ((labels[:, 1:] if kind == "causal" else labels) != IGNORE_INDEX).sum(dim=1)


def example_losses(logits: Tensor, labels: Tensor, kind: LossKind) -> ExampleLosses:
    """Cross-entropy of each example from (batch, positions, vocabulary) or (batch, classes) logits."""
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    labels = labels.to(logits.device)
    if kind == "classification":
        nll = F.cross_entropy(logits, labels.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none")
        return ExampleLosses(nll, count_labels(labels, kind))
    if kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return ExampleLosses(nll.view(labels.shape).sum(dim=1), (labels != IGNORE_INDEX).sum(dim=1))


def forward_logits(model: nn.Module, batch: Mapping[str, Tensor], kind: LossKind) -> Tensor:
    """Logits (batch, positions, vocabulary) or (batch, classes).

    Labels are handed over only where the architecture builds its decoder input from them (encoder-decoders).
    """
    inputs = {key: value for key, value in batch.items() if key != "labels" or kind == "seq2seq"}
    return model(**inputs).logits


def forward_losses(model: nn.Module, batch: Mapping[str, Tensor], kind: LossKind | None = None) -> ExampleLosses:
    """Run the model on one batch and return its per-example losses."""
    kind = kind or loss_kind(model)
    return example_losses(forward_logits(model, batch, kind), batch["labels"], kind)


@dataclass(frozen=True)
class MeanLoss:
    """A token-weighted mean loss (nats) with its standard error over examples and the counts behind it."""

    value: float
    standard_error: float
    num_examples: int
    num_labels: int


def mean_loss(losses: Iterable[ExampleLosses]) -> MeanLoss:
    """The loss over all batches together, with the ratio estimator's standard error.

    The mean R = Σ nllᵢ ÷ Σ cᵢ is a ratio of two sums over examples, so its standard error is
    √(n/(n-1) · Σ (nllᵢ - R·cᵢ)²) ÷ Σ cᵢ (Cochran, Sampling Techniques, 6.4), not that of independent tokens.
    """
    parts = list(losses)
    nll = torch.cat([part.nll.detach().double().cpu() for part in parts])
    count = torch.cat([part.count.detach().double().cpu() for part in parts])
    return ratio_mean(nll, count)


def ratio_mean(nll: Tensor, count: Tensor) -> MeanLoss:
    """`mean_loss` of already collected per-example sums, both (examples,)."""
    kept = count > 0
    nll, count = nll[kept].double(), count[kept].double()
    n, total = len(nll), float(count.sum())
    if n == 0:
        return MeanLoss(math.nan, math.nan, 0, 0)
    mean = float(nll.sum()) / total
    spread = float(((nll - mean * count) ** 2).sum())
    standard_error = math.sqrt(n / (n - 1) * spread) / total if n > 1 else math.nan
    return MeanLoss(mean, standard_error, n, int(total))
