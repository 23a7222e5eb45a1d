"""Flat-LoRA's schedule and variances; the noise itself is GGPO's, tested there."""

from __future__ import annotations

import math

import pytest
import torch

from landscape.config import RunConfig
from landscape.methods import GGPO, recipe
from landscape.methods.adapted import adapted_linears
from landscape.methods.flat_lora import FlatLoRA
from tests.small_models import lora_model


def shown(model):
    return [layer.base.weight.detach().clone() for layer in adapted_linears(model)]


def test_the_variance_grows_along_a_cosine_to_that_of_the_rows():
    model = lora_model("causal")
    flat = FlatLoRA(model, sigma=0.3, ramp_steps=4, seed=7)
    layers = adapted_linears(model)
    unit = GGPO(model, sigma=1.0, gradient_norm=False, seed=7)
    with torch.no_grad():
        merged = [layer.dense_weight() + layer.scaling * layer.B @ layer.A for layer in layers]
    squares = sum(float(W.square().sum()) for W in merged)
    before = shown(model)
    for step in range(7):
        sigma = 0.3 * (1 - math.cos(math.pi * min(step / 4, 1))) / 2
        unit.perturb()
        ones = [w - b for w, b in zip(shown(model), before, strict=True)]
        unit.restore()
        flat.perturb()
        found = [w - b for w, b in zip(shown(model), before, strict=True)]
        flat.restore()
        for delta, one in zip(found, ones, strict=True):
            torch.testing.assert_close(delta, sigma * one, rtol=1e-8, atol=1e-14)
        # E‖ε‖² = σ_t²·‖W'‖² over all layers: σ is a relative size.
        assert flat.norm == pytest.approx(sigma * math.sqrt(squares), rel=1e-8)
        assert flat.metrics()["flat_lora_sigma"] == pytest.approx(sigma, rel=1e-12, abs=1e-300)
        assert all(torch.equal(w, b) for w, b in zip(shown(model), before, strict=True))
    assert sigma == pytest.approx(0.3)


def test_rows_have_the_variance_of_their_norm():
    model = lora_model("causal")
    flat = FlatLoRA(model, sigma=0.5, ramp_steps=1)
    flat.noise.step = 1
    layer, before = adapted_linears(model)[0], shown(model)[0]
    merged = layer.dense_weight() + layer.scaling * layer.B.detach() @ layer.A.detach()
    draws = []
    for _ in range(400):
        flat.perturb()
        draws.append(shown(model)[0] - before)
        flat.restore()
    out, columns = layer.shape
    expected = 0.25 / columns * merged.square().sum(dim=1)
    ratio = torch.stack(draws).square().mean(dim=(0, 2)) / expected.detach()
    assert float((ratio - 1).abs().max()) < 4 * math.sqrt(2 / (400 * columns)) * 1.2  # 4 errors, of the worst of `out`
    assert out == len(ratio)


def test_the_ramp_is_as_long_as_the_schedule():
    for changes, length in (({}, 30), ({"lr_scheduler_steps": 50}, 50), ({"method_args": {"ramp_steps": 7}}, 7)):
        made = recipe(RunConfig(method="flat-lora", max_steps=30, **changes))
        assert made.arguments.ramp_steps == length
