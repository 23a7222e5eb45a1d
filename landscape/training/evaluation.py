"""The loss of a split at the present weights, with its standard error and the task's metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape.data import Split, task_metrics
from landscape.loss import LossKind, example_losses, ratio_mean


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, kind: LossKind, *, batch_size: int, process: int = 0, num_processes: int = 1
) -> dict[str, float]:
    """Evaluate every example of the split once, in eval mode; the model's mode and the random state stay as they are.

    Returns:
        ``loss`` (nats a counted label) with its ``standard_error`` over examples, ``num_examples``, ``num_labels``;
        ``accuracy`` for classification, else ``exact_match`` (all labels of an example are the argmax, which is what
        greedy decoding would get right) and ``token_accuracy``; each with its ``<metric>_standard_error``.
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
            metrics.append({key: v.double().cpu() for key, v in task_metrics(logits, inputs["labels"], kind).items()})
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
    name = "accuracy" if kind == "classification" else "exact_match"
    summary: dict[str, float] = {
        "loss": loss.value,
        "standard_error": loss.standard_error,
        "num_examples": loss.num_examples,
        "num_labels": loss.num_labels,
        name: right.value,
        f"{name}_standard_error": right.standard_error,
    }
    if kind != "classification":
        tokens = ratio_mean(values["tokens_correct"], values["tokens_counted"])
        summary |= {"token_accuracy": tokens.value, "token_accuracy_standard_error": tokens.standard_error}
    return summary
