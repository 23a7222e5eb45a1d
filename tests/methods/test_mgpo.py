"""MGPO against equations 3-6 of the paper, written out in float64 without its code."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from landscape.loss import forward_losses
from landscape.methods import METHODS, MGPO
from tests.small_models import batch, lora_model


def written_out(
    steps: int, *, rho: float, beta: float, lr: float, max_scale: float | None, sign: int = 1, adaptive: bool = True
):
    """Equations 3-6 with a hand-written Adam: m of eq. 4 is its first moment up to the factor 1-β₁."""
    model = lora_model("causal")
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    heavy_ball = [torch.zeros_like(p) for p in parameters]
    mean_norm, norms = None, []
    for t in range(1, steps + 1):
        theta = [p.detach().clone() for p in parameters]
        length = math.sqrt(sum(float((m**2).sum()) for m in heavy_ball))
        perturbation = 0.0
        if length > 0 and mean_norm is not None:
            scale = (1 / mean_norm if max_scale is None else min(1 / mean_norm, max_scale)) if adaptive else 1.0
            perturbation = rho * scale
            for p, m in zip(parameters, heavy_ball, strict=True):
                p.data = p.data + sign * perturbation * m / length  # eq. 3 and 5
        norms.append(perturbation)
        gradients = torch.autograd.grad(forward_losses(model, batch("causal", seed=t)).mean, parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        mean_norm = norm if mean_norm is None else beta * mean_norm + (1 - beta) * norm  # eq. 6
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            heavy_ball[i] = 0.9 * heavy_ball[i] + g  # eq. 4
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            update = (first[i] / (1 - 0.9**t)) / ((second[i] / (1 - 0.999**t)).sqrt() + 1e-8)
            p.data = theta[i] - lr * update
    return [p.detach() for p in parameters], norms


def ours(steps: int, *, lr: float, **arguments):
    model = lora_model("causal")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    mgpo = MGPO(model, optimizer, **arguments)
    norms = []
    for t in range(1, steps + 1):
        mgpo.perturb()
        norms.append(mgpo.norm)
        forward_losses(model, batch("causal", seed=t)).mean.backward()
        mgpo.restore()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in parameters], norms


@pytest.mark.parametrize(
    ("arguments", "reference"),
    [
        ({}, {"max_scale": None}),
        ({"max_scale": 0.5}, {"max_scale": 0.5}),
        ({"sign": -1}, {"max_scale": None, "sign": -1}),
        ({"adaptive": False}, {"max_scale": None, "adaptive": False}),
        ({"offload": True}, {"max_scale": None}),
    ],
)
def test_equals_the_paper_written_out(arguments, reference):
    expected, expected_norms = written_out(5, rho=0.05, beta=0.9, lr=1e-2, **reference)
    found, norms = ours(5, rho=0.05, beta=0.9, lr=1e-2, **arguments)
    assert expected_norms[0] == 0
    assert expected_norms[2] > 0
    torch.testing.assert_close(torch.tensor(norms), torch.tensor(expected_norms), rtol=1e-8, atol=0)
    for a, b in zip(found, expected, strict=True):
        # The step divides by √v + 1e-8 where gradients are tiny, which magnifies rounding.
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_zero_radius_is_plain_adam_bit_for_bit():
    plain = lora_model("causal")
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for t in range(1, 5):
        forward_losses(plain, batch("causal", seed=t)).mean.backward()
        optimizer.step()
        optimizer.zero_grad()
    found, _ = ours(4, rho=0.0, lr=1e-2)
    for a, b in zip(found, [p for p in plain.parameters() if p.requires_grad], strict=True):
        assert torch.equal(a, b)


def stepped(model, **arguments):
    """A model with momentum, so that the next perturbation is not zero."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    mgpo = MGPO(model, optimizer, **arguments)
    mgpo.perturb()
    forward_losses(model, batch("causal")).mean.backward()
    mgpo.restore()
    optimizer.step()
    return mgpo, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_restores_bit_for_bit(dtype):
    model = lora_model("causal", dtype)
    mgpo, _ = stepped(model)
    before = [p.detach().clone() for p in mgpo.parameters]
    mgpo.perturb()
    assert any(not torch.equal(p, b) for p, b in zip(mgpo.parameters, before, strict=True))
    mgpo.restore()
    assert all(torch.equal(p, b) for p, b in zip(mgpo.parameters, before, strict=True))


def test_random_direction_has_the_same_norm_and_another_direction():
    momentum, _ = stepped(lora_model("causal"))
    random, _ = stepped(lora_model("causal"), direction="random")
    assert momentum.mean_grad_norm == random.mean_grad_norm
    found = []
    for mgpo in (momentum, random):
        before = [p.detach().clone() for p in mgpo.parameters]
        mgpo.perturb()
        found.append(torch.cat([(p.detach() - b).flatten() for p, b in zip(mgpo.parameters, before, strict=True)]))
        mgpo.restore()
    torch.testing.assert_close(found[0].norm(), found[1].norm(), rtol=1e-8, atol=0)
    assert abs(float(torch.cosine_similarity(found[0], found[1], dim=0))) < 0.3


def test_mean_grad_norm_ignores_steps_that_are_not_finite():
    mgpo, _ = stepped(lora_model("causal"))
    before = mgpo.mean_grad_norm
    mgpo.restore(math.inf)
    mgpo.restore(math.nan)
    assert mgpo.mean_grad_norm == before


def test_state_survives_a_round_trip():
    mgpo, optimizer = stepped(lora_model("causal"))
    other = MGPO(mgpo.parameters, optimizer)
    assert math.isnan(float(other.state_dict()["mean_grad_norm"]))
    other.load_state_dict(mgpo.state_dict())
    assert (other.mean_grad_norm, other.step) == (mgpo.mean_grad_norm, mgpo.step)


def test_warns_once_when_the_perturbation_exceeds_the_adapter(caplog):
    mgpo, _ = stepped(lora_model("causal"), rho=1e6)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            mgpo.perturb()
            mgpo.restore(1.0)
    assert len([r for r in caplog.records if "exceeds the adapter's own norm" in r.message]) == 1


def test_misuse_is_an_error():
    mgpo, _ = stepped(lora_model("causal"))
    mgpo.perturb()
    with pytest.raises(RuntimeError, match="without restore"):
        mgpo.perturb()
    mgpo.close()
    model = lora_model("causal").requires_grad_(False)
    with pytest.raises(ValueError, match="none of these requires a gradient"):
        MGPO(model, torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roh": 0.1}, r"method_args.roh: method 'mgpo' has no such argument.*Did you mean 'rho'"),
        ({"rho": -1}, r"method_args.rho: -1: .*greater than or equal to 0"),
        ({"beta": 1.0}, r"method_args.beta: 1.0: .*less than 1"),
        ({"sign": 2}, r"method_args.sign: 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        METHODS["mgpo"].parse_arguments(arguments)
