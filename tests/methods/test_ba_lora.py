"""BA-LoRA's regularizers written out in float64."""

from __future__ import annotations

import pytest
import torch

from landscape.config import RunConfig
from landscape.methods import attach, recipe
from landscape.methods.ba_lora import BALoRAArguments, LogitRegularizers, consistency, diversity, leading_share
from landscape.methods.base import Start
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
    expected = (units[0] - units[1]).square().sum() / z.numel()
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


def trained_a_little(kind: str, method: str, **changes):
    """A float64 model with the method's adapter, its rule, and trained values that are not those of the start."""
    config = RunConfig(method="ba-lora", adapter=method, rank=2, max_steps=20, alpha=4)
    made = recipe(config)
    model = attach(base_model(kind, **changes), config)
    if made.adapter.initialize is not None:
        start = Start(made.adapter_arguments, 0, lambda size: iter([batch(kind, examples=8)]))
        made.adapter.initialize(model, start)
    arguments = BALoRAArguments(consistency=0.3, diversity=0.2, singular_values=0.1, k=2)
    rule = LogitRegularizers(model, arguments)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model, rule


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ["lora", "dora", "adalora", "pissa", "lora-ga", "full"])
def test_the_penalty_is_their_weighted_sum_over_counted_rows(kind, adapter):
    model, rule = trained_a_little(kind, adapter)
    plain, inputs = base_model(kind), batch(kind)
    given = {key: value for key, value in inputs.items() if key != "labels" or kind == "seq2seq"}
    outputs = model(**given).logits
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    requires = [p.requires_grad for p in model.parameters()]
    found = rule.penalty(model, inputs, outputs)
    assert [p.requires_grad for p in model.parameters()] == requires
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    z = model(**given).logits
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
    # The norms of Llama and T5 compute in float32, which magnifies how W - sBA + sBA rounds.
    exact = adapter not in ("pissa", "lora-ga")
    torch.testing.assert_close(found, expected, rtol=1e-8 if exact else 1e-5, atol=1e-12 if exact else 1e-8)
    # Between forward and backward the parameters point elsewhere for a moment; gradients are of their own values.
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(expected, trained, allow_unused=True)
    found.backward()
    assert any(gradient is not None and gradient.any() for gradient in wanted)
    for p, gradient in zip(trained, wanted, strict=True):
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient, rtol=1e-6 if exact else 1e-4, atol=1e-9 if exact else 1e-7)


def test_the_reference_has_no_dropout_and_leaves_the_models_alone():
    model, rule = trained_a_little("classification", "lora", hidden_dropout_prob=0.5)
    inputs = batch("classification")
    model.train()
    model.classifier.eval()
    modes = [module.training for module in model.modules()]
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first, second = (float(rule.penalty(model, inputs, logits)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_the_start_survives_a_round_trip():
    model, rule = trained_a_little("causal", "pissa")
    resumed = LogitRegularizers(model, rule.arguments)  # starts from the trained values
    inputs = batch("causal")
    logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits.detach()
    assert float(resumed.penalty(model, inputs, logits)) != float(rule.penalty(model, inputs, logits))
    resumed.load_state_dict(rule.state_dict())
    assert float(resumed.penalty(model, inputs, logits)) == float(rule.penalty(model, inputs, logits))


def test_nothing_counted_is_no_penalty():
    model, inputs = lora_model("causal"), batch("causal")
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert LogitRegularizers(model, BALoRAArguments()).penalty(model, inputs, torch.randn(4, 9, 32)) is None
