"""The loss of a split at the present weights, with its standard error and the task's metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape.data import Split, task_metrics
from landscape.data.metrics import matthews_correlation
from landscape.loss import LossKind, example_losses, ratio_mean


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, kind: LossKind, *, batch_size: int, process: int = 0, num_processes: int = 1
) -> dict[str, float]:
    """Evaluate every example of the split once, in eval mode; the model's mode and the random state stay as they are.

    Returns:
        ``loss`` (nats a counted label) with its ``standard_error`` over examples, ``num_examples``, ``num_labels``;
        of texts ``exact_match`` (all labels of an example are the argmax, which is what greedy decoding would get
        right) and ``token_accuracy``; where the task has classes ``accuracy`` (a model of text chooses among the label
        words alone); of two classes also ``f1``, of class 1 (NaN where it is neither predicted nor true), and
        ``matthews_correlation``. Each has its ``<metric>_standard_error``.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    device = next(model.parameters()).device
    nll, count, metrics = [], [], []
    try:
        mine = range(process, len(split), num_processes)
        for batch in split.batches(batch_size, indices=list(mine)):
            inputs = {key: value.to(device) for key, value in batch.items()}
            logits = model(**{k: v for k, v in inputs.items() if k != "labels" or kind == "seq2seq"}).logits
            losses = _losses(logits, inputs["labels"], kind)
            nll.append(losses[0])
            count.append(losses[1])
            found = task_metrics(logits, inputs["labels"], kind, split.label_tokens)
            metrics.append({key: value.double().cpu() for key, value in found.items()})
    finally:
        for module, training in modes.items():
            module.training = training
    values = {"nll": torch.cat(nll), "count": torch.cat(count)} if nll else {}
    values.update({key: torch.cat([m[key] for m in metrics]) for key in (metrics[0] if metrics else {})})
    return _summary(_gathered(values, num_processes), kind)


def _losses(logits: Tensor, labels: Tensor, kind: LossKind) -> tuple[Tensor, Tensor]:
    losses = example_losses(logits, labels, kind)
    return losses.nll.double().cpu(), losses.count.double().cpu()


def _gathered(values: dict[str, Tensor], num_processes: int) -> dict[str, Tensor]:
    if num_processes == 1:
        return values
    parts: list[Any] = [None] * num_processes
    torch.distributed.all_gather_object(parts, values)
    keys = {key for part in parts for key in part}
    return {key: torch.cat([part[key] for part in parts if key in part]) for key in sorted(keys)}


def _summary(values: dict[str, Tensor], kind: LossKind) -> dict[str, float]:
    loss = ratio_mean(values["nll"], values["count"])
    right = ratio_mean(values["exact_match"], torch.ones_like(values["exact_match"]))
    summary: dict[str, float] = {
        "loss": loss.value,
        "standard_error": loss.standard_error,
        "num_examples": loss.num_examples,
        "num_labels": loss.num_labels,
    }
    if kind != "classification":
        tokens = ratio_mean(values["tokens_correct"], values["tokens_counted"])
        summary |= {
            "exact_match": right.value,
            "exact_match_standard_error": right.standard_error,
            "token_accuracy": tokens.value,
            "token_accuracy_standard_error": tokens.standard_error,
        }
    return summary | (_class_summary(values) if "true" in values else {})


def _class_summary(values: dict[str, Tensor]) -> dict[str, float]:
    """Of the examples whose class is known, which a text that was cut before its label is not."""
    known = values["true"] >= 0
    predicted, true = values["predicted"][known], values["true"][known]
    accuracy = ratio_mean((predicted == true).double(), torch.ones_like(true))
    summary = {"accuracy": accuracy.value, "accuracy_standard_error": accuracy.standard_error}
    if "f1_counted" in values:
        f1 = ratio_mean(values["f1_hits"], values["f1_counted"])
        matthews = matthews_correlation(predicted.numpy(), true.numpy())
        summary |= {
            "f1": f1.value,
            "f1_standard_error": f1.standard_error,
            "matthews_correlation": matthews.value,
            "matthews_correlation_standard_error": matthews.standard_error,
        }
    return summary
