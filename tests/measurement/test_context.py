"""A measured model is exactly as it was, however the measurement ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from landscape.curvature import CurvatureOperator, layer_eigenvalues, spectral_density, top_eigenvalues, trace
from landscape.measurement import measuring
from tests.curvature.conftest import SHAPES, ragged
from tests.oracles import in_double
from tests.small_models import lora_model


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a measurement could leave changed."""
    values: dict[str, Any] = {"random": torch.get_rng_state().tolist()}
    for name, module in model.named_modules():
        values[f"{name} mode"] = module.training
        values[f"{name} checkpointing"] = getattr(module, "gradient_checkpointing", None)
        config = getattr(module, "config", None)
        if hasattr(config, "to_dict"):
            values[f"{name} config"] = (config.to_dict(), config._attn_implementation)
        values[f"{name} hooks"] = len(module._forward_hooks)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = None if tensor.grad is None else tensor.grad.tolist()
        values[name] = (id(tensor), tensor.requires_grad, tensor.tolist(), gradient)
    values["backends"] = (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled())
    values["grad mode"] = torch.is_grad_enabled()
    return values


def used_model(**changes: Any) -> nn.Module:
    """In training mode with dropout and checkpointing, one submodule in eval mode, gradients present, cache on."""
    model = in_double(lora_model("causal", rank=1, dropout=0.5, use_cache=True, **SHAPES["causal"], **changes))
    model.train()
    model.get_base_model().model.layers[1].eval()
    model.get_base_model()._set_gradient_checkpointing(True)
    model.enable_input_require_grads()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return model


def break_forward(model: nn.Module, error: BaseException, after: int) -> None:
    """Let the model's (after + 1)th forward pass raise."""
    calls = iter(range(100))

    def hook(module: nn.Module, inputs: Any) -> None:
        if next(calls) >= after:
            raise error

    model.get_base_model().lm_head.register_forward_pre_hook(hook)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = state(model)
    yield
    after = state(model)
    assert [key for key in before if before[key] != after[key]] == []


@pytest.mark.parametrize("product_kind", ["reuse", "rebuild", "finite_difference"])
def test_a_measurement_leaves_the_model_as_found(product_kind: Any) -> None:
    model = used_model()
    with unchanged(model):
        operator = CurvatureOperator(model, ragged("causal"), product=product_kind)
        product = operator @ torch.ones(operator.size, dtype=torch.float64)
    plain = in_double(lora_model("causal", rank=1, **SHAPES["causal"]))
    expected = CurvatureOperator(plain, ragged("causal")) @ torch.ones(operator.size, dtype=torch.float64)
    # A difference of gradients is not exact.
    accuracy = 1e-8 if product_kind == "finite_difference" else 1e-12
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=accuracy)


@pytest.mark.parametrize("error", [RuntimeError("disk on fire"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_measurement_that_fails_leaves_the_model_as_found(error: BaseException, after: int) -> None:
    model = used_model()
    break_forward(model, error, after)
    with unchanged(model), pytest.raises(type(error)):
        top_eigenvalues(model, ragged("causal"), product="rebuild")


@pytest.mark.parametrize(
    "kernel", ["flash_attention_2", "flex_attention", "paged|sdpa", "kernels-community/flash-attn"]
)
def test_fused_kernels_become_eager_for_the_time(kernel: str) -> None:
    model = used_model()
    model.config._attn_implementation_internal = kernel
    with unchanged(model), measuring(model):
        assert model.config._attn_implementation == "eager"
        assert not model.config.use_cache
        assert not any(module.training for module in model.modules())


def test_buffers_that_the_model_rewrites_are_put_back() -> None:
    model = used_model()
    rotary = model.get_base_model().model.rotary_emb
    with unchanged(model), measuring(model):
        rotary.inv_freq.mul_(2)
        rotary.register_buffer("original_inv_freq", torch.zeros(3), persistent=False)


@pytest.mark.parametrize(
    "caller",
    [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode],
    ids=["no_grad", "autocast", "inference_mode"],
)
def test_the_callers_context_does_not_change_the_result(caller: Callable[[], Any]) -> None:
    model = in_double(lora_model("causal", rank=1, **SHAPES["causal"])).float()
    expected = CurvatureOperator(model, ragged("causal")) @ torch.ones(232)
    questions: list[Callable[[], Any]] = [
        lambda: top_eigenvalues(model, ragged("causal")).values[0],
        lambda: trace(model, ragged("causal"), 4, method="hutch++").value,
        lambda: spectral_density(model, ragged("causal"), 4, 1).quadrature.nodes[0, 0],
        lambda: layer_eigenvalues(model, ragged("causal")).values[0],
    ]
    answers = [question() for question in questions]
    with caller():
        assert torch.equal(CurvatureOperator(model, ragged("causal")) @ torch.ones(232), expected)
        assert [question() for question in questions] == answers


def test_random_numbers_drawn_inside_are_not_missed_outside() -> None:
    model = used_model()
    with unchanged(model), measuring(model):
        torch.rand(3)
