"""Metrics of each example beside the loss, from the same logits; and those of a whole split with two classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from landscape.loss import LossKind


@dataclass(frozen=True)
class LabelTokens:
    """How the answer of a model of text is read as a class: the one token at which the label words part.

    Attributes:
        offset: how many tokens all label words begin with.
        tokens: of each class, the token that follows; all different.
    """

    offset: int
    tokens: tuple[int, ...]


def label_tokens(words: Sequence[Sequence[int]]) -> LabelTokens | None:
    """Where label words, as the token ids of the counted labels, part; None where no one token tells all of them apart.

    Restricting the arg max to these tokens is the accuracy that LoRA-GA's reproduction code, and with it the code
    released with MGPO, reports for GLUE.
    """
    shortest = min(map(len, words), default=0)
    for offset in range(shortest):
        tokens = tuple(word[offset] for word in words)
        if len(set(tokens)) > 1:
            return LabelTokens(offset, tokens) if len(set(tokens)) == len(tokens) else None
    return None


def task_metrics(
    logits: Tensor, labels: Tensor, kind: LossKind, classes: LabelTokens | None = None
) -> dict[str, Tensor]:
    """Teacher-forced agreement of the arg max with the counted labels.

    Args:
        logits: (batch, positions, vocabulary), or (batch, classes) for classification.
        labels: (batch, positions) with -100 where nothing counts, or (batch,).
        kind: decoders' labels are shifted by one position, as in the loss.
        classes: how a text is read as a class, where the task has classes.

    Returns:
        Per example, each (batch,): ``exact_match`` (float; 1 where every counted label is the arg max, the accuracy
        for classification; nan where none counts), ``tokens_correct`` and ``tokens_counted`` (int64), whose sums'
        quotient is the token accuracy. Where there are classes also ``predicted`` and ``true`` (int64): the most
        probable of the classes and the right one, -1 where the text was cut before the label. With two classes also
        ``f1_hits`` and ``f1_counted`` (int64), 2·TP and 2·TP + FP + FN of class 1, whose sums' quotient is the F1 score
        as GLUE defines it for MRPC.
    """
    from landscape.loss import IGNORE_INDEX

    labels = labels.to(logits.device)
    predicted = logits.argmax(dim=-1)
    if kind == "classification":
        answers, num_classes = {"predicted": predicted, "true": labels.reshape(-1)}, logits.shape[-1]
        predicted, labels = predicted[:, None], labels.reshape(-1, 1)
    else:
        if kind == "causal":
            logits, predicted, labels = logits[:, :-1], predicted[:, :-1], labels[:, 1:]
        answers = _answers(logits, labels, classes) if classes else {}
        num_classes = len(classes.tokens) if classes else 0
    counted = labels != IGNORE_INDEX
    num_correct, num_counted = ((predicted == labels) & counted).sum(dim=1), counted.sum(dim=1)
    exact = (num_correct == num_counted).float().masked_fill(num_counted == 0, float("nan"))
    f1 = _f1(**answers) if num_classes == 2 else {}
    return {"exact_match": exact, "tokens_correct": num_correct, "tokens_counted": num_counted, **answers, **f1}


def _answers(logits: Tensor, labels: Tensor, classes: LabelTokens) -> dict[str, Tensor]:
    """The class that each text names and the most probable one, from logits and labels that are already aligned."""
    import torch

    from landscape.loss import IGNORE_INDEX

    counted = labels != IGNORE_INDEX
    # The first counted label is the first token of the label word.
    position = counted.int().argmax(dim=1) + classes.offset
    inside = position.clamp(max=labels.shape[1] - 1)
    rows = torch.arange(len(labels), device=labels.device)
    tokens = torch.tensor(classes.tokens, device=labels.device)
    predicted = logits[rows, inside][:, tokens].argmax(dim=1)
    named = labels[rows, inside][:, None] == tokens
    known = named.any(dim=1) & (position == inside)
    return {
        "predicted": predicted.masked_fill(~known, -1),
        "true": named.int().argmax(dim=1).masked_fill(~known, -1),
    }


def _f1(predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    said, is_one = (predicted == 1).long(), (true == 1).long()
    return {"f1_hits": 2 * said * is_one, "f1_counted": said + is_one}


@dataclass(frozen=True)
class Correlation:
    """A correlation with its standard error over examples."""

    value: float
    standard_error: float


def matthews_correlation(predicted: np.ndarray, true: np.ndarray) -> Correlation:
    """Matthews' correlation of two classes, GLUE's metric for CoLA: Pearson's correlation of labels that are 0 or 1.

    It is 0 where all predictions (or all labels) are the same, by convention, and has no standard error there (NaN).
    Elsewhere that is the infinitesimal jackknife: the influence of an example on r is z·w − r·(z² + w²)/2 in
    standardized labels z and w (Devlin, Gnanadesikan & Kettenring 1975, Biometrika 62).

    Args:
        predicted: (examples,) 0 or 1.
        true: (examples,) 0 or 1.
    """
    if len(true) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return Correlation(0.0 if len(true) else math.nan, math.nan)
    from scipy import stats

    value, _ = map(float, stats.pearsonr(predicted, true))  # type: ignore[arg-type]
    z, w = ((labels - labels.mean()) / labels.std() for labels in (predicted, true))
    influence = z * w - value * (z**2 + w**2) / 2
    count = len(true)
    return Correlation(value, math.sqrt(float((influence**2).sum()) / (count * (count - 1))))
