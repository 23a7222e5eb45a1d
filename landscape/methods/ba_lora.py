"""BA-LoRA: three regularizers of the logits, against biases that fine-tuning inherits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from landscape.loss import IGNORE_INDEX, LossKind, forward_logits, loss_kind
from landscape.methods.base import METHODS, Arguments, Method, StepRule

_NO_REFERENCE = "it rewrites the base, and the consistency term compares with the pretrained model"


class BALoRAArguments(Arguments):
    """The released script's."""

    consistency: float = Field(1e-4, ge=0, description="λ₁: nearness to the pretrained model's outputs")
    diversity: float = Field(3e-4, ge=0, description="λ₂: entropy of the outputs, or decorrelation of the classes")
    singular_values: float = Field(1e-4, ge=0, description="λ₃: share of the k largest singular values of the logits")
    k: int = Field(3, ge=1, description="number of those singular values")


def consistency(logits: Tensor, reference: Tensor, kind: LossKind) -> Tensor:
    """How far (rows, classes) outputs are from the pretrained model's.

    Classification: the mean over rows of ‖z/‖z‖ - z₀/‖z₀‖‖². Generation: the mean over rows of KL(p₀ ‖ p).
    """
    if kind == "classification":
        return (F.normalize(logits, dim=1) - F.normalize(reference, dim=1)).square().sum(dim=1).mean()
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True)


def diversity(logits: Tensor, kind: LossKind) -> Tensor:
    """Classification: the sum of squared off-diagonal covariances of the logits over rows, ÷ classes. Generation: minus
    the mean entropy of the outputs, as the paper has it; the released script adds plus the entropy.
    """
    if kind == "classification":
        centered = logits - logits.mean(dim=0)
        covariance = centered.T @ centered / max(len(logits) - 1, 1)
        off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
        return off_diagonal / logits.shape[1]
    logs = logits.log_softmax(1)
    return (logs.exp() * logs).sum(dim=1).mean()


def leading_share(logits: Tensor, k: int) -> Tensor:
    """Σ of the k largest singular values of the (rows, classes) logits ÷ Σ of all."""
    values = torch.linalg.svdvals(logits)
    return values[:k].sum() / values.sum()


class LogitRegularizers(StepRule):
    """λ₁·consistency + λ₂·diversity - λ₃·share of the k largest singular values, over a micro-batch's counted rows.

    All three but the first are no means over examples, so accumulating micro-batches is not one large batch here. The
    reference is the same model with its adapter switched off, in the mode and with the dropout of its own forward.
    """

    def __init__(self, model: nn.Module, arguments: BALoRAArguments) -> None:
        self.arguments = arguments
        self.kind: LossKind = loss_kind(model)
        self.last_penalty = 0.0

    def penalty(self, model: nn.Module, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor | None:
        """The weighted sum; None where the micro-batch counts no label."""
        a, wrapped = self.arguments, model
        rows = counted_rows(logits, inputs["labels"], self.kind)
        if not len(rows):
            return None
        total = a.diversity * diversity(rows, self.kind) - a.singular_values * leading_share(rows, a.k)
        if a.consistency:
            peft: Any = wrapped
            with torch.no_grad(), torch.random.fork_rng(), peft.disable_adapter():
                before = forward_logits(model, inputs, self.kind)
            reference = counted_rows(before, inputs["labels"], self.kind)
            total = total + a.consistency * consistency(rows, reference, self.kind)
        self.last_penalty = float(total.detach())
        return total

    def metrics(self) -> dict[str, float]:
        """``ba_lora_penalty`` of the step's last micro-batch."""
        return {"ba_lora_penalty": self.last_penalty}


def counted_rows(logits: Tensor, labels: Tensor, kind: LossKind) -> Tensor:
    """The logits that predict a counted label, (rows, classes), in at least float32."""
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if kind == "classification":
        return logits[labels.reshape(-1) != IGNORE_INDEX]
    if kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != IGNORE_INDEX]


def rule(model: nn.Module, optimizer: Optimizer, arguments: BALoRAArguments, seed: int) -> LogitRegularizers:
    """The rule of a run."""
    return LogitRegularizers(model, arguments)


METHODS.add(
    Method(
        name="ba-lora",
        summary="LoRA with regularizers of the logits: consistency, diversity and leading singular values",
        source="BA-LoRA, arXiv 2408.04556, section 3; cyp-jlu-ai/BA-LoRA",
        adapter="lora",
        arguments=BALoRAArguments,
        rule=rule,
        over=frozenset({"lora", "dora", "adalora"}),
        not_over={"pissa": _NO_REFERENCE, "lora-ga": _NO_REFERENCE},
        passes="1, and a forward",
        extra_memory="logits of the pretrained model",
    )
)
