"""Products in every space and of the Gauss-Newton matrix, against models whose weights are materialized."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature import CurvatureOperator, top_eigenvalues
from landscape.curvature.gauge import change_gauge
from landscape.errors import UsageError
from tests.curvature.conftest import SHAPES, Case, ragged, tiny
from tests.oracles import dense_hessian, flat_loss, in_double
from tests.small_models import KINDS, base_model

Cases = Callable[[str], Case]

ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", init_lora_weights=False),
    "rslora": lambda: LoraConfig(
        r=2, lora_alpha=3, target_modules="all-linear", init_lora_weights=False, use_rslora=True
    ),
    "dora": lambda: LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, use_dora=True),
    "adalora": lambda: AdaLoraConfig(
        init_r=2, target_r=1, tinit=1, tfinal=1, total_step=10, target_modules="all-linear", init_lora_weights=False
    ),
}


def adapted(kind: str, adapter: str) -> nn.Module:
    torch.manual_seed(2)
    shape = {**SHAPES[kind], **({} if kind == "seq2seq" else {"num_hidden_layers": 1})}
    model = get_peft_model(base_model(kind, **shape), ADAPTERS[adapter]())  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # PEFT's own numbers are of very different sizes
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return in_double(model).eval()


def probe(operator: CurvatureOperator) -> Tensor:
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(9), dtype=operator.dtype)
    return vector / vector.norm()


def merged_model(model: nn.Module, names: list[str]) -> nn.Module:
    """The adapter multiplied into the weights, which are then trained themselves."""
    plain = copy.deepcopy(model).merge_and_unload().requires_grad_(False)
    for name in names:
        path = name.removeprefix("base_model.model.").removesuffix(".weight")
        plain.get_submodule(path).weight.requires_grad_(True)
    return plain


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_adapter_products_of_every_adapter(kind: str, adapter: str) -> None:
    model = adapted(kind, adapter)
    operator = CurvatureOperator(model, ragged(kind))
    vector = probe(operator)
    loss, theta = flat_loss(model, ragged(kind))
    with sdpa_kernel(SDPBackend.MATH):
        _, expected = torch.autograd.functional.hvp(loss, theta, vector)
    torch.testing.assert_close(operator @ vector, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_products_are_those_of_the_merged_model(kind: str, adapter: str) -> None:
    model = adapted(kind, adapter)
    operator = CurvatureOperator(model, ragged(kind), space="merged")
    plain = merged_model(model, operator.names)
    vector = probe(operator)
    loss, theta = flat_loss(plain, ragged(kind))
    assert theta.numel() == operator.size
    with sdpa_kernel(SDPBackend.MATH):
        value, expected = torch.autograd.functional.hvp(loss, theta, vector)
    torch.testing.assert_close(operator @ vector, expected, rtol=1e-8, atol=1e-10)
    assert operator.loss == pytest.approx(float(value), rel=1e-10)
    torch.testing.assert_close(operator.gradient, torch.func.grad(loss)(theta), rtol=1e-8, atol=1e-10)


def with_factors(
    model: nn.Module, change: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, float]]
) -> nn.Module:
    """A copy whose LoRA layers have other factors and another scaling."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if "default" in getattr(layer, "lora_A", {}):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            A.data, B.data, layer.scaling["default"] = change(A.data, B.data, layer.scaling["default"])
    return model


def balanced_by_svd(A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor, float]:
    u, sigma, vh = torch.linalg.svd(scaling * B @ A, full_matrices=False)
    root = sigma[: len(A)].sqrt()
    return root[:, None] * vh[: len(A)], u[:, : len(A)] * root, 1.0


@pytest.mark.parametrize("adapter", ["lora", "rslora"])
@pytest.mark.parametrize("kind", KINDS)
def test_balanced_spectrum_is_that_of_the_balanced_model(kind: str, adapter: str) -> None:
    model = adapted(kind, adapter)
    result = top_eigenvalues(model, ragged(kind), 2, balance=True, tol=1e-6)
    reference = with_factors(model, balanced_by_svd)
    expected = torch.linalg.eigvalsh(dense_hessian(reference, ragged(kind))).flip(0)[:2]
    assert result.space == "balanced"
    torch.testing.assert_close(torch.from_numpy(result.values), expected, rtol=1e-8, atol=0)


def test_the_balanced_spectrum_does_not_depend_on_the_gauge_and_the_other_does() -> None:
    model = adapted("causal", "lora")

    def skew(A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor, float]:
        A, B = change_gauge(A, B, torch.tensor([[5.0, 2.0], [0.1, 0.3]], dtype=torch.float64))
        return A, B / 4, scaling * 4

    other = with_factors(model, skew)
    balanced, plain = (
        [float(top_eigenvalues(m, ragged("causal"), balance=b, tol=1e-6).values[0]) for m in (model, other)]
        for b in (True, False)
    )
    assert balanced[1] == pytest.approx(balanced[0], rel=1e-8)
    assert not 0.5 < plain[1] / plain[0] < 2


def test_refreshing_follows_the_factors() -> None:
    model = adapted("causal", "lora")
    operator = CurvatureOperator(model, ragged("causal"), balance=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.2)
    operator.refresh()
    fresh = CurvatureOperator(model, ragged("causal"), balance=True)
    assert torch.equal(operator @ probe(operator), fresh @ probe(operator))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["adapter", "merged"])
def test_gauss_newton_products(kind: str, space: str) -> None:
    """JᵀH_zJ with a dense Jacobian and the closed form diag(p) - ppᵀ of the Hessian by the logits."""
    model = adapted(kind, "lora")
    operator = CurvatureOperator(model, ragged(kind), matrix="ggn", space=space)
    plain = model if space == "adapter" else merged_model(model, operator.names)
    trained = {name: p.detach() for name, p in plain.named_parameters() if p.requires_grad}
    expected = torch.zeros(operator.size, operator.size, dtype=torch.float64)
    for item in ragged(kind):
        inputs = {key: value for key, value in item.items() if key != "labels" or kind == "seq2seq"}

        def logits(values: dict[str, Tensor], inputs: dict[str, Tensor] = inputs) -> Tensor:
            return torch.func.functional_call(plain, values, (), inputs).logits

        with sdpa_kernel(SDPBackend.MATH):
            jacobian, z = torch.func.jacrev(logits)(trained), logits(trained)
        labels = item["labels"].reshape(len(z), -1)
        counted = (labels[:, 1:] if kind == "causal" else labels) != -100
        kept = (slice(None), slice(None, -1)) if kind == "causal" else (slice(None),)
        flat = torch.cat([part[kept].flatten(z.dim()) for part in jacobian.values()], dim=-1)
        J, p = flat.reshape(counted.shape + z.shape[-1:] + flat.shape[-1:])[counted], z[kept].softmax(-1)
        p = p.reshape(*counted.shape, z.shape[-1])[counted]
        expected += torch.einsum("tvn,tvm->nm", J, p[..., None] * J)
        mean = torch.einsum("tv,tvn->tn", p, J)
        expected -= mean.T @ mean
    expected /= operator.num_labels
    vector = probe(operator)
    torch.testing.assert_close(operator @ vector, expected @ vector, rtol=1e-8, atol=1e-10)
    rebuilt = CurvatureOperator(model, ragged(kind), matrix="ggn", space=space, product="rebuild")
    torch.testing.assert_close(rebuilt @ vector, expected @ vector, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(operator.gradient, CurvatureOperator(model, ragged(kind), space=space).gradient)
    assert float(vector @ (operator @ vector)) > 0


def frozen_adapter() -> nn.Module:
    return base_model("causal").requires_grad_(False)


def embedding_adapter() -> nn.Module:
    config = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])
    return get_peft_model(base_model("causal"), config)  # type: ignore[arg-type]


def untrained() -> nn.Module:
    return in_double(get_peft_model(base_model("causal"), LoraConfig(r=2, target_modules=["q_proj"])))  # type: ignore[arg-type]


def two_adapters() -> nn.Module:
    model = adapted("causal", "lora")
    model.add_adapter("second", ADAPTERS["lora"]())
    model.base_model.set_adapter(["default", "second"])
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "merged without adapter": (lambda: base_model("causal"), {"space": "merged"}, "the model has none"),
    "merged embedding": (embedding_adapter, {"space": "merged"}, "embed_tokens is an adapted Embedding"),
    "balanced merged": (lambda: tiny("causal"), {"space": "merged", "balance": True}, "which has no gauge"),
    "balanced without adapter": (lambda: base_model("causal"), {"balance": True}, "and the model has none"),
    "balanced dora": (lambda: adapted("causal", "dora"), {"balance": True}, "DoRA"),
    "balanced adalora": (lambda: adapted("causal", "adalora"), {"balance": True}, "AdaLoRA"),
    "balanced with two adapters": (two_adapters, {"balance": True}, "has the active adapters default, second"),
    "balanced at initialization": (untrained, {"balance": True}, "q_proj: balance: BA has numerical rank 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_spaces_that_a_model_does_not_have(name: str) -> None:
    make, options, message = REFUSED[name]
    model = make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        CurvatureOperator(model, ragged("causal"), **options)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("options", [{"space": "merged"}, {"balance": True}], ids=str)
def test_the_model_is_left_as_found_also_after_an_exception(options: dict[str, Any]) -> None:
    model = adapted("causal", "lora")
    parameters = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    operator = CurvatureOperator(model, ragged("causal"), product="rebuild", **options)
    operator @ probe(operator)
    calls = iter(range(9))

    def fail(module: nn.Module, inputs: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt

    hook = model.get_base_model().lm_head.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        operator @ probe(operator)
    hook.remove()
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    for name, (identity, value) in parameters.items():
        assert id(after[name]) == identity
        assert torch.equal(after[name], value)
        assert after[name].grad is None
    layers = [module for module in model.modules() if isinstance(getattr(module, "scaling", None), dict)]
    assert {layer.scaling["default"] for layer in layers} == {1.5}
    assert not any(layer._forward_hooks for layer in layers)
