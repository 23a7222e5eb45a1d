"""Metrics of each example beside the loss, from the same logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from landscape.loss import LossKind


def task_metrics(logits: Tensor, labels: Tensor, kind: LossKind) -> dict[str, Tensor]:
    """Teacher-forced agreement of the arg max with the counted labels.

    Args:
        logits: (batch, positions, vocabulary), or (batch, classes) for classification.
        labels: (batch, positions) with -100 where nothing counts, or (batch,).
        kind: decoders' labels are shifted by one position, as in the loss.

    Returns:
        Per example, each (batch,): ``exact_match`` (float; 1 where every counted label is the arg max, the accuracy
        for classification; nan where none counts), ``tokens_correct`` and ``tokens_counted`` (int64), whose sums'
        quotient is the token accuracy.
    """
    from landscape.loss import IGNORE_INDEX

    labels = labels.to(logits.device)
    predicted = logits.argmax(dim=-1)
    if kind == "classification":
        predicted, labels = predicted[:, None], labels.reshape(-1, 1)
    elif kind == "causal":
        predicted, labels = predicted[:, :-1], labels[:, 1:]
    counted = labels != IGNORE_INDEX
    num_correct, num_counted = ((predicted == labels) & counted).sum(dim=1), counted.sum(dim=1)
    exact = (num_correct == num_counted).float().masked_fill(num_counted == 0, float("nan"))
    return {"exact_match": exact, "tokens_correct": num_correct, "tokens_counted": num_counted}
