"""What sets rsLoRA, DoRA, LoRA+ and AdaLoRA apart from LoRA, against formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.loss import forward_losses, loss_kind
from landscape.methods import METHODS, attach, recipe
from landscape.methods.adapted import adapted_linears
from landscape.methods.base import AdamSettings
from tests.small_models import base_model, batch


def adapted(method: str, rank: int = 3, alpha: float = 6.0, **arguments):
    """A float64 decoder with the method's adapter, whose B is not zero."""
    config = RunConfig(method=method, method_args=arguments, rank=rank, alpha=alpha, max_steps=20)
    model = attach(base_model("causal"), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_E" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_rslora_scales_by_the_root_of_the_rank(rank):
    model = adapted("rslora", rank)
    layer = adapted_linears(model)[0]
    x = torch.randn(5, layer.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x @ (layer.dense_weight() + 6.0 / math.sqrt(rank) * layer.B @ layer.A).T
    torch.testing.assert_close(layer.module(x), expected, rtol=1e-8, atol=1e-12)


def test_dora_gives_every_row_its_magnitude():
    model = adapted("dora")
    for layer in adapted_linears(model):
        magnitude = layer.module.lora_magnitude_vector["default"].weight
        W = layer.dense_weight().detach()
        torch.testing.assert_close(magnitude, W.norm(dim=1), rtol=1e-8, atol=0)  # of W: B was zero when it was set
        with torch.no_grad():
            magnitude.mul_(torch.linspace(0.5, 2, len(magnitude)))
        effective = layer.module(torch.eye(layer.shape[1], dtype=torch.float64)).T
        torch.testing.assert_close(effective.norm(dim=1), magnitude, rtol=1e-8, atol=0)  # eq. 5
        direction = W + layer.scaling * layer.B @ layer.A
        cosines = torch.nn.functional.cosine_similarity(effective, direction, dim=1)
        torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-8, atol=0)


def test_dora_holds_the_norm_constant_in_its_gradient():
    model = adapted("dora")
    layer = adapted_linears(model)[0]
    x = torch.randn(5, layer.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer.module(x).square().sum().backward()
    magnitude = layer.module.lora_magnitude_vector["default"].weight.detach()
    A, B = (factor.detach().clone().requires_grad_() for factor in (layer.A, layer.B))
    merged = layer.dense_weight().detach() + layer.scaling * B @ A
    weight = (magnitude / merged.detach().norm(dim=1))[:, None] * merged  # eq. 11
    (x @ weight.T).square().sum().backward()
    torch.testing.assert_close(layer.A.grad, A.grad, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(layer.B.grad, B.grad, rtol=1e-8, atol=1e-12)


def test_lora_plus_steps_b_further():
    model = adapted("lora-plus")
    settings = AdamSettings(1e-3, (0.9, 0.999), 1e-8, 0.0)
    optimizer = METHODS["lora-plus"].optimizer(model, METHODS["lora-plus"].parse_arguments({}), settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    forward_losses(model, batch("causal")).mean.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    for name, p in model.named_parameters():
        if p.requires_grad:
            rate = 16e-3 if "lora_B" in name else 1e-3
            # Adam's first step: g / (|g| + ε).
            expected = before[name] - rate * gradients[name] / (gradients[name].abs() + 1e-8)
            torch.testing.assert_close(p, expected, rtol=1e-8, atol=1e-12)


def test_lora_plus_trains_the_head_at_the_rate_of_a():
    model = attach(base_model("classification"), RunConfig(method="lora-plus", rank=2))
    settings = AdamSettings(1e-3, (0.9, 0.999), 1e-8, 0.0)
    slow, fast = METHODS["lora-plus"].optimizer(model, METHODS["lora-plus"].parse_arguments({}), settings).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (slow["lr"], fast["lr"], fast["name"]) == (1e-3, 16e-3, "lora_B")
    assert all("lora_B" in names[id(p)] for p in fast["params"])
    assert any("classifier" in names[id(p)] for p in slow["params"])
    assert len(slow["params"]) + len(fast["params"]) == sum(p.requires_grad for p in model.parameters())


# AdaLoRA


def test_adalora_is_a_product_of_three():
    model = adapted("adalora")
    module = next(m for m in model.modules() if hasattr(m, "lora_E"))
    P, E, Q = (getattr(module, f"lora_{part}")["default"].detach() for part in "BEA")
    assert len(E) == 5  # 1.5 times 3, rounded up
    x = torch.randn(4, Q.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = module.base_layer.weight + 6.0 / (5 + 1e-5) * P @ torch.diag(E[:, 0]) @ Q  # PEFT's guard of 1e-5
    torch.testing.assert_close(module(x), x @ weight.T, rtol=1e-8, atol=1e-12)


def rule_of(model, **arguments):
    made = recipe(RunConfig(method="adalora", method_args=arguments, rank=3, max_steps=20))
    return METHODS["adalora"].rule(model, None, made.arguments, 0)


def test_adalora_differentiates_its_penalty_beside_the_loss():
    model = adapted("adalora")
    rule = rule_of(model, orthogonality=0.3)
    inputs = batch("causal")
    penalty = rule.penalty(model, inputs, torch.empty(0))
    deviations = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p.T @ p if "lora_B" in name else p @ p.T
            deviations.append((gram - torch.eye(5, dtype=torch.float64)).square().sum().sqrt())
    torch.testing.assert_close(penalty, 0.3 * sum(deviations) / len(deviations), rtol=1e-8, atol=0)
    # The reported loss is the cross-entropy; the model's own .loss holds PEFT's penalty.
    with torch.no_grad():
        own = model(**inputs).loss
        reported = forward_losses(model, inputs, loss_kind(model)).mean
    assert float(own) > float(reported) + 0.05


def test_adalora_meets_its_rank_budget():
    """Importances, the cubic schedule and the mask of eq. 8-12, written out."""
    steps, first, last = 20, 3, 10
    model = adapted("adalora")
    rule = rule_of(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    layers = sorted({n.replace("lora_E", "%s") for n in named if "lora_E" in n})
    smooth = {n: torch.zeros_like(p) for n, p in named.items()}
    spread = {n: torch.zeros_like(p) for n, p in named.items()}
    kept = []
    for step in range(steps):
        forward_losses(model, batch("causal", seed=step)).mean.backward()
        optimizer.step()
        scores = {}
        if step < steps - last:
            for n, p in named.items():
                sensitivity = (p * p.grad).abs().detach()
                smooth[n] = 0.85 * smooth[n] + 0.15 * sensitivity
                spread[n] = 0.85 * spread[n] + 0.15 * (sensitivity - smooth[n]).abs()
        for layer in layers:
            element = {part: smooth[layer % f"lora_{part}"] * spread[layer % f"lora_{part}"] for part in "ABE"}
            scores[layer] = element["E"][:, 0] + element["A"].mean(dim=1) + element["B"].mean(dim=0)
        rule.after_step(step)
        optimizer.zero_grad()
        left = 1 - (step - first) / (steps - last - first)
        initial, final = 5 * len(layers), 3 * len(layers)
        budget = initial if step <= first else int(final + (initial - final) * max(left, 0) ** 3)
        nonzero = {layer: (named[layer % "lora_E"] != 0)[:, 0] for layer in layers}
        kept.append(sum(int(mask.sum()) for mask in nonzero.values()))
        assert kept[-1] == budget, step
        assert rule.metrics()["adalora_ranks"] == budget
        if first < step < steps - last:
            everything = torch.cat([scores[layer] for layer in layers])
            threshold = everything.sort(descending=True).values[budget - 1]
            for layer in layers:
                assert torch.equal(nonzero[layer], scores[layer] >= threshold)
    assert kept[0] == 5 * len(layers)
    assert kept[-1] == 3 * len(layers)


def test_adalora_state_survives_a_round_trip():
    def run(model, rule, optimizer, steps):
        for step in steps:
            forward_losses(model, batch("causal", seed=step)).mean.backward()
            optimizer.step()
            rule.after_step(step)
            optimizer.zero_grad()

    def started():
        model = adapted("adalora")
        return model, rule_of(model), torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    whole = started()
    run(*whole, range(18))
    for cut in (6, 14):
        first, second = started(), started()
        run(*first, range(cut))
        with torch.no_grad():
            for a, b in zip(second[0].parameters(), first[0].parameters(), strict=True):
                a.copy_(b)
        second[1].load_state_dict({key: value.clone() for key, value in first[1].state_dict().items()})
        assert second[1].kept == first[1].kept
        run(*second, range(cut, 18))
        assert all(torch.equal(a, b) for a, b in zip(second[0].parameters(), whole[0].parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "steps", "message"),
    [
        ({"initial_ratio": 1.0}, 20, r"method_args.initial_ratio: 1.0: .*greater than 1"),
        ({"warmup": 0.6, "final": 0.5}, 20, r"warmup, final: 0.6 and 0.5 of 20 steps leave none"),
        ({}, 1, r"of 1 steps leave none"),
    ],
)
def test_adalora_schedules_that_cannot_be(arguments, steps, message):
    with pytest.raises(UsageError, match=message):
        recipe(RunConfig(method="adalora", method_args=arguments, max_steps=steps))
