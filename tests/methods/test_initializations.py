"""Initial ΔW of PiSSA, LoRA-GA and NLoRA against decompositions of materialized matrices, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.loss import forward_losses
from landscape.methods import METHODS, attach
from landscape.methods.adapted import AdaptedLinear, adapted_linears
from landscape.methods.base import Start
from landscape.methods.lora_ga import base_gradients
from tests.oracles import reference_loss
from tests.small_models import KINDS, base_model, batch

RANK, ALPHA = 3, 5.0


def prepared(method: str, kind: str = "causal", **arguments):
    """An adapted float64 model before and after the method's initialization, and what it said that it rewrote."""
    config = RunConfig(method=method, method_args=arguments, rank=RANK, alpha=ALPHA)
    model = attach(base_model(kind), config)
    before = {layer.name: layer.base.weight.detach().clone() for layer in adapted_linears(model)}
    parsed = METHODS[method].parse_arguments(arguments)
    batches = [batch(kind, examples=2, seed=seed) for seed in range(4)]
    rewritten = METHODS[method].initialize(model, Start(parsed, 0, lambda size: iter(batches)))
    return model, before, rewritten


def update(layer: AdaptedLinear) -> torch.Tensor:
    """s·BA, materialized."""
    return layer.scaling * layer.B.detach() @ layer.A.detach()


def test_pissa_takes_the_leading_singular_directions():
    model, before, _ = prepared("pissa")
    for layer in adapted_linears(model):
        W = before[layer.name]
        # Of the Gram matrix, not by the SVD that the method calls.
        squares, V = torch.linalg.eigh(W.T @ W)
        leading = V[:, -RANK:]
        torch.testing.assert_close(update(layer), W @ leading @ leading.T, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(layer.base.weight, W - W @ leading @ leading.T, rtol=1e-8, atol=1e-12)
        # Eq. 2-3: both factors carry √(S_r/s).
        roots = (squares[-RANK:].flip(0).sqrt() / layer.scaling).sqrt()
        torch.testing.assert_close(layer.A.norm(dim=1), roots, rtol=1e-8, atol=0)
        torch.testing.assert_close(layer.B.norm(dim=0), roots, rtol=1e-8, atol=0)


def first_gradient(kind: str):
    """∇_W over all batches together, by autograd on the plain model, by layer name."""
    model = base_model(kind)
    batches = [batch(kind, examples=2, seed=seed) for seed in range(4)]
    named = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = reference_loss(model, batches, named)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


# BERT computes in float64 throughout; Llama's norms in float32, and singular vectors magnify what the two gradients
# differ by.
@pytest.mark.parametrize(("kind", "tolerance"), [("classification", 1e-8), ("causal", 1e-5)])
@pytest.mark.parametrize("gamma", [16.0, 64.0])
def test_lora_ga_takes_the_gradients_directions(gamma, kind, tolerance):
    model, before, _ = prepared("lora-ga", kind, gamma=gamma, examples=8, batch_size=2)
    gradients = first_gradient(kind)
    for layer in adapted_linears(model):
        G = gradients[f"{layer.name.removeprefix('base_model.model.')}.weight"]
        V, _, Uh = np.linalg.svd(G.numpy().T)  # of the transpose, by another library
        right, left = (torch.from_numpy(found) for found in (V[:, :RANK], Uh[RANK : 2 * RANK].T))
        size = layer.shape[0] ** 0.5 / gamma
        assert layer.scaling == pytest.approx(ALPHA / RANK**0.5, rel=1e-12)
        # The reference scales both by m^¼/√γ and multiplies no singular values in (PEFT's init does both otherwise).
        # Signs of singular vectors are arbitrary: the two spaces, and B·A up to them.
        torch.testing.assert_close(layer.A.T @ layer.A, size * right @ right.T, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(layer.B @ layer.B.T, size * left @ left.T, rtol=tolerance, atol=tolerance)
        product = layer.B.detach() @ layer.A.detach()
        signs = torch.diag(left.T @ product @ right).sign()
        torch.testing.assert_close(product, size * left * signs @ right.T, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(layer.base.weight, before[layer.name] - update(layer), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_ga_differentiates_the_run_loss_and_leaves_no_trace(kind):
    model = attach(base_model(kind), RunConfig(method="lora-ga", rank=RANK)).train()
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    layers = adapted_linears(model)
    found = base_gradients(model, layers, [batch(kind, examples=2, seed=seed) for seed in range(4)])
    expected = first_gradient(kind)
    for layer, gradient in zip(layers, found, strict=True):
        reference = expected[f"{layer.name.removeprefix('base_model.model.')}.weight"]
        torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-9)  # norms compute in float32
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_nlora_is_the_nystroem_approximation():
    model, before, _ = prepared("nlora", pseudo_inverse=True)
    for layer in adapted_linears(model):
        W, N = before[layer.name], layer.module.lora_N["default"].detach()
        C, R = W[:, :RANK], W[:RANK]
        approximation = C @ torch.linalg.inv(W[:RANK, :RANK]) @ R
        # The corner's condition number multiplies the rounding.
        bound = 1e-14 * float(torch.linalg.cond(W[:RANK, :RANK])) * float(approximation.abs().max())
        found = layer.scaling * layer.B.detach() @ N @ layer.A.detach()
        torch.testing.assert_close(found, approximation, rtol=1e-8, atol=bound)
        # It reproduces the chosen rows and columns, and the residual there is nothing.
        torch.testing.assert_close(found[:RANK], W[:RANK], rtol=1e-8, atol=bound)
        torch.testing.assert_close(layer.base.weight, W - approximation, rtol=1e-8, atol=bound)


def test_nlora_takes_its_corner_rows_and_columns_out_of_the_base():
    model, before, _ = prepared("nlora")
    for layer in adapted_linears(model):
        W = before[layer.name]
        part = ALPHA / RANK * W[:, :RANK] @ W[:RANK, :RANK] @ W[:RANK]
        found = layer.scaling * layer.B.detach() @ layer.module.lora_N["default"].detach() @ layer.A.detach()
        torch.testing.assert_close(found, part, rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(layer.base.weight, W - part, rtol=1e-8, atol=1e-14)


def test_nlora_as_released_keeps_the_corner_and_the_base():
    model, before, rewritten = prepared("nlora", pseudo_inverse=False, residual=False)
    assert rewritten == {}
    for layer in adapted_linears(model):
        W = before[layer.name]
        assert torch.equal(layer.module.lora_N["default"], W[:RANK, :RANK])
        assert torch.equal(layer.base.weight, W)


def test_nlora_multiplies_by_the_middle_factor():
    model, _, _ = prepared("nlora")
    layer = adapted_linears(model)[0]
    x = torch.randn(4, layer.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    N = layer.module.lora_N["default"]
    with torch.no_grad():
        N.add_(0.1)
        dense = layer.base.weight + layer.scaling * layer.B @ N @ layer.A
        torch.testing.assert_close(layer.module(x), x @ dense.T, rtol=1e-8, atol=1e-12)
    assert N.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["pissa", "lora-ga", "nlora"])
def test_the_model_starts_where_it_was_and_says_what_it_rewrote(method, kind):
    model, before, rewritten = prepared(method, kind)
    plain = base_model(kind)
    inputs = batch(kind)
    with torch.no_grad():
        expected, found = (forward_losses(m.eval(), inputs).mean for m in (plain, model))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # Llama's and T5's norms compute in float32
    named = dict(model.named_parameters())
    assert set(rewritten) == {f"{name}.base_layer.weight" for name in before}
    assert all(torch.equal(rewritten[name], named[name]) for name in rewritten)
    assert all(not torch.equal(named[f"{name}.base_layer.weight"], W) for name, W in before.items())
    for p in named.values():
        assert torch.isfinite(p).all()


@pytest.mark.parametrize("method", ["pissa", "lora-ga", "nlora"])
def test_layers_that_share_a_weight_are_refused(method):
    model = attach(base_model("causal"), RunConfig(method=method, rank=RANK))
    first, second = [layer for layer in adapted_linears(model) if layer.shape == (16, 16)][:2]
    second.base.weight = first.base.weight
    start = Start(METHODS[method].parse_arguments({}), 0, lambda size: iter([batch("causal")]))
    with pytest.raises(UsageError, match="shares its W with"):
        METHODS[method].initialize(model, start)


def test_lora_ga_needs_twice_the_rank():
    with pytest.raises(UsageError, match=r"rank: 9, of which lora-ga makes 18, exceeds the size .*; allowed: 1 to 4"):
        attach(base_model("causal"), RunConfig(method="lora-ga", rank=9))
