"""BA-LoRA: three regularizers of the logits, against biases that fine-tuning inherits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from landscape.loss import IGNORE_INDEX, LossKind, forward_logits, loss_kind
from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, StepRule
from landscape.methods.displacement import trainable


class BALoRAArguments(Arguments):
    """The paper's for generation, and the released script's; for understanding the paper has diversity = 4e-4."""

    consistency: float = Field(1e-4, ge=0, description="λ₁: nearness to the pretrained model's outputs")
    diversity: float = Field(3e-4, ge=0, description="λ₂: entropy of the outputs, or decorrelation of the classes")
    singular_values: float = Field(1e-4, ge=0, description="λ₃: share of the k largest singular values of the logits")
    k: int = Field(3, ge=1, description="number of those singular values")


def consistency(logits: Tensor, reference: Tensor, kind: LossKind) -> Tensor:
    """How far (rows, classes) outputs are from the pretrained model's.

    Classification: the mean over entries of (z/‖z‖ - z₀/‖z₀‖)². Generation: the mean over rows of KL(p₀ ‖ p).
    """
    if kind == "classification":
        return F.mse_loss(F.normalize(logits, dim=1), F.normalize(reference, dim=1))
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True)


def diversity(logits: Tensor, kind: LossKind) -> Tensor:
    """Classification: the sum of squared off-diagonal covariances of the logits over rows, ÷ classes. Generation: minus
    the mean entropy of the outputs.
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
    reference is this model with the trained values that it started from, in eval mode: every adapter that this may be
    laid over starts as the pretrained function, also those that take their part out of the frozen base.
    """

    def __init__(self, model: nn.Module, arguments: BALoRAArguments) -> None:
        self.arguments = arguments
        self.kind: LossKind = loss_kind(model)
        self.last_penalty = 0.0
        self.parameters = trainable(model)
        self.start = [p.detach().clone() for p in self.parameters]

    def penalty(self, model: nn.Module, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor | None:
        """The weighted sum; None where the micro-batch counts no label."""
        a = self.arguments
        rows = counted_rows(logits, inputs["labels"], self.kind)
        if not len(rows):
            return None
        total = a.diversity * diversity(rows, self.kind) - a.singular_values * leading_share(rows, a.k)
        if a.consistency:
            with self._pretrained(model):
                before = forward_logits(model, inputs, self.kind)
            reference = counted_rows(before, inputs["labels"], self.kind)
            total = total + a.consistency * consistency(rows, reference, self.kind)
        self.last_penalty = float(total.detach())
        return total

    @contextmanager
    def _pretrained(self, model: nn.Module) -> Iterator[None]:
        """The starting values in eval mode and without gradients; nothing is copied, the parameters point elsewhere."""
        own = [p.data for p in self.parameters]
        modes = {module: module.training for module in model.modules()}
        try:
            for p, value in zip(self.parameters, self.start, strict=True):
                p.data = value
            model.eval()
            with torch.no_grad():
                yield
        finally:
            for p, value in zip(self.parameters, own, strict=True):
                p.data = value
            for module, training in modes.items():
                module.training = training

    def metrics(self) -> dict[str, float]:
        """``ba_lora_penalty`` of the step's last micro-batch."""
        return {"ba_lora_penalty": self.last_penalty}

    def state_dict(self) -> dict[str, Tensor]:
        """The starting values, which a resumed run has left."""
        return {str(index): value for index, value in enumerate(self.start)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        for index, value in enumerate(self.start):
            value.copy_(state[str(index)])


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
        source="BA-LoRA, arXiv 2408.04556 v2, section 3.2; cyp-jlu-ai/BA-LoRA train.py",
        adapter="lora",
        arguments=BALoRAArguments,
        rule=rule,
        # With `residual: false` NLoRA does not start as the pretrained function, which is the reference.
        over=EVERY_STRUCTURE - {"nlora"},
        passes="1, and a forward",
        extra_memory="one copy of the adapter; logits of the pretrained model",
    )
)
