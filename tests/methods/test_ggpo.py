"""GGPO against a materialized W + ε, drawn and written down here without its code."""

from __future__ import annotations

import hashlib
import math
import struct

import pytest
import torch
from torch import nn

from landscape.loss import forward_losses
from landscape.methods import GGPO, METHODS
from landscape.methods.adapted import adapted_linears
from tests.small_models import KINDS, batch, lora_model

MODES = ("swap", "regenerate")


def materialized_merge(layer) -> torch.Tensor:
    return layer.base.weight.detach() + layer.scaling * (layer.B.detach() @ layer.A.detach())


def keyed_normal(seed: int, step: int, layer: int, shape, dtype) -> torch.Tensor:
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, step, layer), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator, dtype=dtype)


def gradients(model, data) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(forward_losses(model, data).mean, parameters, allow_unused=True))


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients_equal_a_materialized_weight_bit_for_bit(kind, dtype, mode, offload):
    model, data = lora_model(kind, dtype), batch(kind)
    ggpo = GGPO(model, seed=7, apply=mode, offload=offload)
    deviations = ggpo.row_deviations()
    ggpo.perturb()
    loss, found = forward_losses(model, data).nll, gradients(model, data)
    ggpo.restore()

    reference = lora_model(kind, dtype)
    for i, layer in enumerate(adapted_linears(reference)):
        noise = keyed_normal(7, 0, i, layer.shape, dtype) * deviations[i][:, None]
        layer.base.weight.data = layer.base.weight.data + noise
    assert torch.equal(loss, forward_losses(reference, data).nll)
    for a, b in zip(found, gradients(reference, data), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, lambda w, g: w + 0.5 * g),
        ({"gradient_norm": False}, lambda w, g: w),
        ({"weight_norm": False}, lambda w, g: 0.5 * g),
    ],
)
def test_row_variances_are_those_of_equation_6(arguments, expected):
    model = lora_model("causal")
    ggpo = GGPO(model, sigma=0.3, beta=0.5, **arguments)
    ggpo.perturb()
    forward_losses(model, batch("causal")).mean.backward()
    ggpo.restore()
    deviations, draws = ggpo.row_deviations(), 400
    for i in (0, 5):
        layer = ggpo.layers[i]
        weights = materialized_merge(layer).square().sum(1)
        rows = layer.B.grad.square().sum(1)
        variance = 0.3**2 / layer.shape[1] * expected(weights, rows)
        torch.testing.assert_close(deviations[i] ** 2, variance, rtol=1e-8, atol=0)
        samples = torch.stack([ggpo.noise(i, deviations[i], step) for step in range(draws)])
        estimate = samples.square().mean(dim=(0, 2))
        standard_error = variance * math.sqrt(2 / (draws * layer.shape[1]))
        assert bool(((estimate - variance).abs() < 4 * standard_error).all())


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", KINDS)
def test_row_norms_without_forming_the_product(kind, dtype, rtol):
    for layer in adapted_linears(lora_model(kind, dtype)):
        found = layer.row_norms_squared(layer.base_row_norms_squared())
        torch.testing.assert_close(found, materialized_merge(layer).square().sum(1), rtol=rtol, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_gradient_rows_over_an_accumulation_window(kind):
    model = lora_model(kind)
    ggpo = GGPO(model, gradient="exact", sigma=0.0)
    window = [batch(kind, seed=1), batch(kind, seed=2)]
    ggpo.perturb()
    for data in window:
        forward_losses(model, data).nll.sum().backward()
    ggpo.restore()

    reference = lora_model(kind)
    layers = adapted_linears(reference)
    weights = [layer.base.weight.requires_grad_(True) for layer in layers]
    loss = sum(forward_losses(reference, data).nll.sum() for data in window)
    for found, exact in zip(ggpo.gradients.squared, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(found, exact.square().sum(1), rtol=1e-8, atol=1e-20)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_weights_come_back_bit_for_bit(mode, dtype):
    model = lora_model("causal", dtype)
    ggpo = GGPO(model, apply=mode)
    before = [layer.base.weight.detach().clone() for layer in ggpo.layers]
    for seed in range(3):
        ggpo.perturb()
        forward_losses(model, batch("causal", seed=seed)).mean.backward()
        ggpo.restore()
    ggpo.close()
    assert all(torch.equal(layer.base.weight, w) for layer, w in zip(ggpo.layers, before, strict=True))
    assert all("forward" not in vars(layer.base) for layer in ggpo.layers)


@pytest.mark.parametrize("mode", MODES)
def test_zero_sigma_changes_no_bit(mode):
    model, data = lora_model("causal", torch.float32), batch("causal")
    plain = gradients(model, data)
    ggpo = GGPO(model, sigma=0.0, apply=mode)
    ggpo.perturb()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, data), plain, strict=True))
    ggpo.restore()


@pytest.mark.parametrize("mode", MODES)
def test_activation_checkpointing_sees_the_same_noise(mode):
    model, data = lora_model("causal"), batch("causal")
    model.enable_input_require_grads()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            base = model.base_model.model
            # transformers renamed it in 5.2x
            enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            model.train()
        ggpo = GGPO(model, apply=mode, gradient="exact")
        ggpo.perturb()
        found.append(gradients(model, data))
        ggpo.restore()
        found.append(ggpo.gradients.squared)
        ggpo.close()
    for a, b in zip(found[0] + found[1], found[2] + found[3], strict=True):
        assert torch.equal(a, b)


def test_drawing_leaves_the_global_generator_alone():
    model = lora_model("causal")
    before = torch.get_rng_state()
    ggpo = GGPO(model)
    ggpo.perturb()
    ggpo.restore()
    assert torch.equal(before, torch.get_rng_state())


def test_expected_norm_is_sigma_times_the_weights_norm():
    ggpo = GGPO(lora_model("causal"), sigma=0.03)
    ggpo.perturb()
    ggpo.restore()
    weights = math.sqrt(sum(float(materialized_merge(layer).square().sum()) for layer in ggpo.layers))
    assert ggpo.norm == pytest.approx(0.03 * weights, rel=1e-8)


class Int8Linear(nn.Linear):
    """A stand-in for a quantized layer: packed integers that nothing but its own forward can multiply."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, dtype=dense.weight.dtype)
        self.step = dense.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((dense.weight / self.step).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.step)


def test_quantized_base_adds_the_noise_term(monkeypatch):
    from peft.utils import integrations

    monkeypatch.setattr(integrations, "dequantize_module_weight", lambda m: m.weight.to(torch.float64) * m.step)
    data = batch("causal")
    quantized, dense = lora_model("causal"), lora_model("causal")
    for a, b in zip(adapted_linears(quantized), adapted_linears(dense), strict=True):
        a.module.base_layer = Int8Linear(a.module.base_layer)
        b.base.weight.data = a.base.weight.to(torch.float64) * a.base.step
    packed, reference = GGPO(quantized), GGPO(dense, apply="swap")
    assert (packed.mode, reference.mode) == ("regenerate", "swap")
    found = []
    for ggpo, model in ((packed, quantized), (reference, dense)):
        ggpo.perturb()
        found.append(gradients(model, data))
        ggpo.restore()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-14)
    with pytest.raises(ValueError, match="'swap' needs dense base weights"):
        GGPO(quantized, apply="swap")


def test_tied_weights_are_perturbed_once():
    model = lora_model("causal")
    layers = adapted_linears(model)
    layers[7].base.weight = layers[0].base.weight
    ggpo = GGPO(model, apply="swap")
    deviation = ggpo.row_deviations()[0]
    before = layers[0].base.weight.detach().clone()
    ggpo.perturb()
    noise = keyed_normal(0, 0, 0, layers[0].shape, torch.float64) * deviation[:, None]
    assert torch.equal(layers[7].base.weight, before + noise)
    ggpo.restore()
    assert torch.equal(layers[7].base.weight, before)


def test_state_survives_a_round_trip():
    model = lora_model("causal")
    ggpo = GGPO(model)
    ggpo.perturb()
    forward_losses(model, batch("causal")).mean.backward()
    ggpo.restore()
    other = GGPO(model)
    other.load_state_dict(ggpo.state_dict())
    assert other.step == 1
    assert all(torch.equal(a, b) for a, b in zip(other.row_deviations(), ggpo.row_deviations(), strict=True))
    assert ggpo.metrics()["ggpo_gradient_ratio"] > 0


def test_misuse_is_an_error():
    ggpo = GGPO(lora_model("causal"))
    ggpo.perturb()
    with pytest.raises(RuntimeError, match="without restore"):
        ggpo.perturb()
    ggpo.close()
    with pytest.raises(ValueError, match="no active LoRA adapter"):
        GGPO(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="both false: no noise is left"):
        METHODS["ggpo"].parse_arguments({"weight_norm": False, "gradient_norm": False})
