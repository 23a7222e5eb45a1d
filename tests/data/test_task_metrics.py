"""Exact match, token accuracy, classes, F1 and Matthews correlation against loops and definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from landscape.data import task_metrics
from landscape.data.metrics import LabelTokens, label_tokens, matthews_correlation


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


def test_f1_of_class_1_against_precision_and_recall():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(50, 2, generator=generator), torch.randint(0, 2, (50,), generator=generator)
    metrics = task_metrics(logits, labels, "classification")
    pairs = [(int(row.argmax()), int(label)) for row, label in zip(logits, labels, strict=True)]
    hits = sum(pair == (1, 1) for pair in pairs)
    precision, recall = hits / sum(said for said, _ in pairs), hits / sum(true for _, true in pairs)
    found = float(metrics["f1_hits"].sum() / metrics["f1_counted"].sum())
    assert found == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-6)


def test_there_is_no_f1_of_three_classes():
    assert "f1_hits" not in task_metrics(torch.randn(4, 3), torch.tensor([0, 1, 2, 1]), "classification")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([[5, 2], [6, 2]], LabelTokens(0, (5, 6))),
        ([[5, 2], [6, 5, 2]], LabelTokens(0, (5, 6))),
        ([[9, 5, 2], [9, 6, 2]], LabelTokens(1, (5, 6))),
        ([[9, 2], [9, 6, 2]], LabelTokens(1, (2, 6))),  # one word begins with the other: the end tells
        ([[5, 1], [6, 1], [7, 1]], LabelTokens(0, (5, 6, 7))),
        ([[5, 1], [5, 3], [7, 1]], None),  # two of three share their first token
        ([[5], [5]], None),
        ([[], [5]], None),
        ([], None),
    ],
)
def test_where_label_words_part(words, found):
    assert label_tokens(words) == found


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_classes_among_the_label_words_against_a_loop(kind):
    """Words 4 5 2 and 4 6 2, after prompts of different lengths; one text is cut before the words part."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.full((30, 8), -100)
    for row in range(30):
        start = row % 4 + (kind == "causal")
        labels[row, start : start + 3] = torch.tensor([4, 5 + row % 2, 2])
    labels[7] = -100
    labels[7, 7] = 4
    labels[8, 1:] = 3  # another task's text
    logits = torch.randn(30, 8, 9, generator=generator)
    metrics = task_metrics(logits, labels, kind, LabelTokens(1, (5, 6)))
    for row in range(30):
        if row in (7, 8):
            assert (int(metrics["predicted"][row]), int(metrics["true"][row])) == (-1, -1)
            continue
        position = row % 4 + 1  # of the logits that predict the second token: a decoder's labels lie one further
        scores = logits[row, position]
        assert int(metrics["predicted"][row]) == int(scores[6] > scores[5])
        assert int(metrics["true"][row]) == row % 2
    hits = int(((metrics["predicted"] == 1) & (metrics["true"] == 1)).sum())
    assert int(metrics["f1_hits"].sum()) == 2 * hits
    assert int(metrics["f1_counted"].sum()) == int((metrics["predicted"] == 1).sum() + (metrics["true"] == 1).sum())


def draws(count, seed=0, agreement=0.75):
    generator = np.random.default_rng(seed)
    true = generator.random(count) < 0.65
    return np.where(generator.random(count) < agreement, true, ~true).astype(int), true.astype(int)


@pytest.mark.parametrize("seed", range(4))
def test_matthews_correlation_against_its_definition(seed):
    predicted, true = draws(60, seed)
    counts = {(p, t): int(((predicted == p) & (true == t)).sum()) for p in (0, 1) for t in (0, 1)}
    tp, tn, fp, fn = counts[1, 1], counts[0, 0], counts[1, 0], counts[0, 1]
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews_correlation(predicted, true).value == pytest.approx(expected, rel=1e-8)


def test_the_error_of_matthews_correlation_against_a_bootstrap():
    """The linear approximation is good to a few percent at 400 examples; the bootstrap's own error is 1.6 percent."""
    predicted, true = draws(400)
    generator = np.random.default_rng(1)
    picks = generator.integers(0, 400, (2000, 400))
    spread = np.std([matthews_correlation(predicted[pick], true[pick]).value for pick in picks], ddof=1)
    assert matthews_correlation(predicted, true).standard_error == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize(("predicted", "true"), [([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1], [1])])
def test_matthews_correlation_of_one_answer_for_all_is_0_without_an_error(predicted, true):
    found = matthews_correlation(np.array(predicted), np.array(true))
    assert found.value == 0
    assert math.isnan(found.standard_error)


def test_matthews_correlation_of_nothing():
    assert math.isnan(matthews_correlation(np.array([]), np.array([])).value)
