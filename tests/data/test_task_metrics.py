"""Exact match and token accuracy against a loop over examples and positions."""

from __future__ import annotations

import math

import pytest
import torch

from landscape.data import task_metrics


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_text_metrics_against_a_loop(kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6, 3, generator=generator)
    labels = torch.randint(0, 3, (40, 6), generator=generator)
    labels[torch.rand(40, 6, generator=generator) < 0.5] = -100
    labels[0] = -100
    metrics = task_metrics(logits, labels, kind)
    shift = 1 if kind == "causal" else 0
    for row in range(40):
        pairs = [
            (int(logits[row, position - shift].argmax()), int(labels[row, position]))
            for position in range(shift, 6)
            if labels[row, position] != -100
        ]
        right = sum(predicted == label for predicted, label in pairs)
        assert (int(metrics["tokens_correct"][row]), int(metrics["tokens_counted"][row])) == (right, len(pairs))
        exact = float(metrics["exact_match"][row])
        assert math.isnan(exact) if not pairs else exact == float(right == len(pairs))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_classification_accuracy(shape):
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0], [1.0, 0.0]])
    metrics = task_metrics(logits, torch.tensor([0, 0, 1, 0]).reshape(shape), "classification")
    assert metrics["exact_match"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert metrics["tokens_counted"].tolist() == [1, 1, 1, 1]
