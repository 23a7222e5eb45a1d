"""The loss against closed forms, against transformers where the two must agree, and where they must not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.loss import ExampleLosses, count_labels, example_losses, forward_losses, loss_kind, mean_loss
from tests.small_models import KINDS, base_model, batch, lora_model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [base_model, lora_model])
def test_kind_is_read_from_the_model(kind, build):
    assert loss_kind(build(kind)) == kind


def test_kind_needs_a_hugging_face_config():
    with pytest.raises(ValueError, match=r"Linear has no \.config"):
        loss_kind(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_own_loss_on_one_batch(kind):
    model, data = lora_model(kind), batch(kind)
    # transformers rounds a decoder's logits to float32 before its loss, whatever their precision.
    tolerance = 1e-6 if kind == "causal" else 1e-8
    own = float(model(**data).loss.detach())
    assert float(forward_losses(model, data).mean.detach()) == pytest.approx(own, rel=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_written_out_label_by_label(kind):
    model, data = lora_model(kind), batch(kind)
    logits = model(**data).logits.detach().numpy()
    labels = data["labels"].numpy()
    found = forward_losses(model, data)
    for row in range(len(labels)):
        if kind == "classification":
            pairs = [(logits[row], labels[row])]
        elif kind == "causal":
            pairs = [(logits[row, i], labels[row, i + 1]) for i in range(labels.shape[1] - 1)]
        else:
            pairs = [(logits[row, i], labels[row, i]) for i in range(labels.shape[1])]
        counted = [(z, y) for z, y in pairs if y != -100]
        nll = sum(np.log(np.exp(z).sum()) - z[y] for z, y in counted)
        assert float(found.nll[row].detach()) == pytest.approx(nll, rel=1e-8)
        assert int(found.count[row]) == len(counted)


def test_half_precision_logits_are_raised_to_float32():
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16)
    labels = torch.tensor([[1, 2, 3], [1, -100, 4]])
    assert example_losses(logits, labels, "causal").nll.dtype == torch.float32


def test_a_decoders_first_label_predicts_nothing():
    labels = torch.tensor([[5, 1, -100], [5, -100, -100]])
    assert count_labels(labels, "causal").tolist() == [1, 0]
    assert count_labels(labels, "seq2seq").tolist() == [2, 1]


def test_mean_is_weighted_by_labels_and_its_error_by_examples():
    rng = np.random.default_rng(0)
    count = rng.integers(1, 9, size=40)
    nll = count * rng.normal(2.0, 0.5, size=40)
    parts = [ExampleLosses(torch.tensor(nll[i : i + 7]), torch.tensor(count[i : i + 7])) for i in range(0, 40, 7)]
    found = mean_loss(parts)
    assert found.value == pytest.approx(nll.sum() / count.sum(), rel=1e-12)
    assert (found.num_examples, found.num_labels) == (40, count.sum())
    # The jackknife knows nothing of the formula; the two agree to O(1/n).
    leave_one_out = (nll.sum() - nll) / (count.sum() - count)
    jackknife = math.sqrt(39 / 40 * ((leave_one_out - leave_one_out.mean()) ** 2).sum())
    assert found.standard_error == pytest.approx(jackknife, rel=0.1)


def test_standard_error_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    deviations = []
    for _ in range(400):
        count = rng.integers(1, 20, size=64)
        nll = np.array([rng.exponential(1.5, size=c).sum() for c in count]) * rng.uniform(0.8, 1.2, size=64)
        found = mean_loss([ExampleLosses(torch.tensor(nll), torch.tensor(count))])
        deviations.append((found.value - 1.5) / found.standard_error)
    # 400 standardized deviations: their variance is 1 within 4·√(2/400), plus the t-distribution's 64/62.
    assert np.var(deviations) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 400) + 2 / 62)


def test_no_label_gives_nan_and_no_error():
    found = mean_loss([ExampleLosses(torch.zeros(2), torch.zeros(2, dtype=torch.long))])
    assert math.isnan(found.value)
    assert found.num_examples == 0
