"""BA-LoRA's regularizers written out in float64."""

from __future__ import annotations

import pytest
import torch

from landscape.methods.ba_lora import BALoRAArguments, LogitRegularizers, consistency, diversity, leading_share
from tests.small_models import KINDS, base_model, batch, lora_model


def logits(seed: int, rows: int = 6, classes: int = 4) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_consistency():
    z, z0 = logits(0), logits(1)
    p, p0 = (x.exp() / x.exp().sum(dim=1, keepdim=True) for x in (z, z0))
    kl = (p0 * (p0 / p).log()).sum() / len(z)
    torch.testing.assert_close(consistency(z, z0, "causal"), kl, rtol=1e-8, atol=0)
    assert float(consistency(z, z, "causal")) == pytest.approx(0, abs=1e-12)
    units = [x / x.square().sum(dim=1, keepdim=True).sqrt() for x in (z, z0)]
    expected = (units[0] - units[1]).square().sum() / len(z)
    torch.testing.assert_close(consistency(z, z0, "classification"), expected, rtol=1e-8, atol=0)


def test_diversity():
    z = logits(2)
    p = z.softmax(dim=1)
    torch.testing.assert_close(diversity(z, "seq2seq"), (p * p.log()).sum() / len(z), rtol=1e-8, atol=0)
    covariance = torch.cov(z.T)
    off = sum(covariance[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    torch.testing.assert_close(diversity(z, "classification"), off, rtol=1e-8, atol=0)
    assert float(diversity(z[:1], "classification")) == 0


def test_leading_share():
    z = logits(3)
    values = torch.linalg.eigvalsh(z.T @ z).flip(0).sqrt()
    torch.testing.assert_close(leading_share(z, 2), values[:2].sum() / values.sum(), rtol=1e-8, atol=0)
    assert float(leading_share(z, 9)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_is_their_weighted_sum_over_counted_rows(kind):
    model, plain, inputs = lora_model(kind), base_model(kind), batch(kind)
    arguments = BALoRAArguments(consistency=0.3, diversity=0.2, singular_values=0.1, k=2)
    rule = LogitRegularizers(model, arguments)
    given = {key: value for key, value in inputs.items() if key != "labels" or kind == "seq2seq"}
    z = model(**given).logits
    wanted = [p.requires_grad for p in model.parameters()]
    found = rule.penalty(model, inputs, z)
    assert [p.requires_grad for p in model.parameters()] == wanted
    with torch.no_grad():
        z0 = plain(**given).logits
    labels = inputs["labels"]
    if kind == "causal":
        z, z0, labels = z[:, :-1], z0[:, :-1], labels[:, 1:]
    rows, rows0 = [], []
    for position in (labels != -100).nonzero().tolist():
        rows.append(z[tuple(position)])
        rows0.append(z0[tuple(position)])
    a, b = torch.stack(rows), torch.stack(rows0)
    expected = 0.3 * consistency(a, b, kind) + 0.2 * diversity(a, kind) - 0.1 * leading_share(a, 2)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    found.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_nothing_counted_is_no_penalty():
    model, inputs = lora_model("causal"), batch("causal")
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert LogitRegularizers(model, BALoRAArguments()).penalty(model, inputs, torch.randn(4, 9, 32)) is None
