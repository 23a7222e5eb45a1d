from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AttentionInterface

from landscape.curvature import CurvatureOperator, NonFiniteLossError
from landscape.curvature.memory import graph_bytes_of
from landscape.errors import UsageError
from tests.curvature.conftest import Case, ragged, tiny
from tests.oracles import difference_product, flat_loss, in_double
from tests.small_models import KINDS, base_model, batch, lora_model

Cases = Callable[[str], Case]


def columns(operator: CurvatureOperator, count: int = 12) -> tuple[Tensor, Tensor]:
    """Random vectors (n, count) and the operator's products with them."""
    vectors = torch.randn(operator.size, count, generator=torch.Generator().manual_seed(3), dtype=operator.dtype)
    return vectors, torch.stack([operator @ vector for vector in vectors.T], dim=1)


REUSE: list[dict[str, Any]] = [{"product": "reuse"}, {"product": "rebuild"}, {"memory_bytes": 400_000}, {}]


@pytest.mark.parametrize("options", REUSE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_dense_hessian(case: Cases, kind: str, options: dict[str, Any]) -> None:
    tried = case(kind)
    operator = CurvatureOperator(tried.model, tried.batches, **options)
    vectors, products = columns(operator)
    torch.testing.assert_close(products, tried.hessian @ vectors, rtol=1e-8, atol=1e-10)
    assert operator.num_matvecs == vectors.shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_differences_of_gradients(case: Cases, kind: str) -> None:
    tried = case(kind)
    vector = torch.randn(len(tried.hessian), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    vector /= vector.norm()
    expected = difference_product(tried.model, tried.batches, vector)
    torch.testing.assert_close(CurvatureOperator(tried.model, tried.batches) @ vector, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradient_and_counts(case: Cases, kind: str) -> None:
    tried = case(kind)
    operator = CurvatureOperator(tried.model, tried.batches)
    loss, theta = flat_loss(tried.model, tried.batches)
    torch.testing.assert_close(operator.gradient, torch.func.grad(loss)(theta))
    assert operator.loss == pytest.approx(float(loss(theta)), rel=1e-12)
    shifted = [item["labels"][:, 1:] if kind == "causal" else item["labels"] for item in tried.batches]
    assert operator.num_labels == sum(int((labels != -100).sum()) for labels in shifted)
    assert operator.num_examples == 6
    assert operator.size == len(tried.hessian)


@pytest.mark.parametrize("kind", KINDS)
def test_dealing_examples_to_batches_changes_nothing(case: Cases, kind: str) -> None:
    tried = case(kind)
    singles = [{key: value[row : row + 1] for key, value in item.items()} for item in tried.batches
               for row in range(len(item["labels"]))]  # fmt: skip
    unlabeled = {**tried.batches[0], "labels": torch.full_like(tried.batches[0]["labels"], -100)}
    operator = CurvatureOperator(tried.model, (item for item in [unlabeled, *singles]))
    vectors, products = columns(operator, 3)
    torch.testing.assert_close(products, tried.hessian @ vectors, rtol=1e-8, atol=1e-10)
    assert (operator.num_batches, operator.num_examples) == (6, 6)


def test_one_dict_is_one_batch() -> None:
    model, item = tiny("causal"), batch("causal")
    vector = torch.ones(232, dtype=torch.float64)
    assert torch.equal(CurvatureOperator(model, item) @ vector, CurvatureOperator(model, [item]) @ vector)


def test_a_model_without_an_adapter_and_with_tied_weights() -> None:
    model = in_double(base_model("causal", tie_word_embeddings=True)).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)  # also the output head
    operator = CurvatureOperator(model, batch("causal"))
    assert operator.names == ["model.embed_tokens.weight"]
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    vector /= vector.norm()
    expected = difference_product(model, [batch("causal")], vector)
    torch.testing.assert_close(operator @ vector, expected, rtol=1e-5, atol=1e-7)


def test_a_parameter_without_influence_has_zero_curvature(case: Cases) -> None:
    model = tiny("causal")
    model.unused = nn.Parameter(torch.ones(5, dtype=torch.float64))
    operator = CurvatureOperator(model, ragged("causal"))
    position = [0, *torch.tensor([p.numel() for p in model.parameters() if p.requires_grad]).cumsum(0)]
    first = int(position[operator.names.index("unused")])
    assert operator.size == 232 + 5
    product = operator @ torch.ones(operator.size, dtype=torch.float64)
    assert not product[first : first + 5].any()
    rest = torch.cat([product[:first], product[first + 5 :]])
    torch.testing.assert_close(rest, case("causal").hessian.sum(dim=1), rtol=1e-8, atol=1e-10)


def test_as_many_graphs_as_fit_the_budget_are_kept(case: Cases) -> None:
    tried = case("causal")
    whole = CurvatureOperator(tried.model, tried.batches)
    assert (whole.plan.product, whole.num_retained, whole.num_batches) == ("reuse", 2, 2)
    # The estimate comes from one example, and counts what does not grow with the examples as if it did.
    assert whole.retained_bytes <= whole.plan.total_bytes <= 1.5 * whole.retained_bytes
    part = CurvatureOperator(tried.model, tried.batches, memory_bytes=4 * whole.plan.example_bytes)
    assert (part.plan.product, part.plan.rows, part.num_retained, part.num_batches) == ("rebuild", 4, 0, 2)
    small = CurvatureOperator(tried.model, tried.batches, memory_bytes=3 * whole.plan.example_bytes)
    assert (small.plan.rows, small.num_batches) == (3, 3)
    some = CurvatureOperator(tried.model, [*tried.batches] * 2, memory_bytes=9 * whole.plan.example_bytes)
    assert (some.plan.product, some.num_retained, some.num_batches) == ("rebuild", 1, 4)
    assert some.retained_bytes + 4 * some.plan.example_bytes <= some.plan.budget_bytes
    for operator in (part, small, some):
        torch.testing.assert_close(columns(operator, 3)[1], columns(whole, 3)[1], rtol=1e-10, atol=1e-12)
    none = CurvatureOperator(tried.model, tried.batches, memory_bytes=1000)
    assert (none.plan.product, none.plan.rows, none.retained_bytes) == ("finite_difference", 1, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_differences(case: Cases, kind: str, dtype: torch.dtype) -> None:
    tried = case(kind)
    model = tiny(kind).to(dtype)
    operator = CurvatureOperator(model, tried.batches, product="finite_difference")
    vectors, products = columns(operator, 3)
    expected = tried.hessian @ vectors.double()
    # Truncation and rounding are about eps^(2/3) each, of a Hessian whose norm is about 1.
    error = float((products - expected).norm() / expected.norm())
    assert 0 < error < (3e-9 if dtype == torch.float64 else 3e-3)
    assert not (operator @ torch.zeros(operator.size, dtype=dtype)).any()


def test_a_kernel_without_second_derivative_falls_back_to_differences() -> None:
    model, unmasked = with_attention(flash_only), {**batch("causal"), "attention_mask": torch.ones(4, 9).long()}
    exact = CurvatureOperator(lora_model("causal", torch.float32), unmasked)
    fallback = CurvatureOperator(model, unmasked)
    assert (fallback.plan.product, exact.plan.product) == ("finite_difference", "reuse")
    vector = torch.ones(exact.size)
    assert float((fallback @ vector - exact @ vector).norm() / (exact @ vector).norm()) < 1e-3
    with pytest.raises(UsageError, match="no second derivative"):
        CurvatureOperator(model, unmasked, matrix="ggn")


def test_refreshing_takes_up_changed_parameters(case: Cases) -> None:
    model = tiny("causal")
    operator = CurvatureOperator(model, ragged("causal"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    operator.refresh()
    fresh = CurvatureOperator(model, ragged("causal"))
    assert torch.equal(columns(operator, 2)[1], columns(fresh, 2)[1])
    assert operator.loss == fresh.loss
    assert torch.equal(operator.gradient, fresh.gradient)


def test_the_size_of_a_graph_is_what_autograd_saves() -> None:
    """Counted independently by the hooks that autograd calls for every tensor it saves."""
    weight = torch.randn(40, 30, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.tanh(torch.randn(7, 40) @ weight).softmax(dim=1).square().sum()
        gradients = torch.autograd.grad(loss, [weight], create_graph=True)
    assert graph_bytes_of(list(gradients)) == sum(saved.values())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(attention: str) -> None:
    model = lora_model("causal", attn_implementation=attention)
    operator = CurvatureOperator(model, ragged("causal"))
    reference = CurvatureOperator(lora_model("causal", attn_implementation="eager"), ragged("causal"))
    vector = torch.ones(operator.size, dtype=torch.float64)
    torch.testing.assert_close(operator @ vector, reference @ vector, rtol=1e-4, atol=1e-6)


def test_low_precision_parameters_get_float32_vectors() -> None:
    model = lora_model("causal", torch.bfloat16)
    operator = CurvatureOperator(model, batch("causal"))
    exact = CurvatureOperator(lora_model("causal", torch.float32), batch("causal"))
    vector = torch.ones(operator.size)
    product = operator @ vector
    assert product.dtype == operator.dtype == torch.float32
    assert float((product - exact @ vector).norm() / product.norm()) < 0.05


def flash_only(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    attended = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]
    return attended.transpose(1, 2).contiguous(), None


class Severed(torch.autograd.Function):
    """The identity, with a backward pass that autograd cannot see into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        with torch.no_grad():
            return gradient.clone()


def wrap_head(model: nn.Module, function: Callable[[Tensor], Tensor]) -> nn.Module:
    """The model with a function applied to its logits."""
    head = model.get_base_model().lm_head
    head.register_forward_hook(lambda module, inputs, output: function(output))
    return model


def severed() -> nn.Module:
    model = base_model("causal").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    model.lm_head.register_forward_hook(lambda module, inputs, output: Severed.apply(output))
    return model


def noisy(logits: Tensor) -> Tensor:
    return logits + 0.01 * torch.randn_like(logits)


def with_attention(function: Any) -> nn.Module:
    AttentionInterface.register("test_attention", function)
    model = lora_model("causal", torch.float32)
    model.config._attn_implementation_internal = "test_attention"
    return model


def merged() -> nn.Module:
    model = tiny("causal")
    model.merge_adapter()
    return model


def diverged() -> nn.Module:
    model = tiny("causal")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    return model


REFUSED_MODELS: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "frozen": (lambda: base_model("causal").requires_grad_(False), UsageError, "no parameter requires a gradient"),
    "merged": (merged, UsageError, "depends on none of its 28 trainable tensors"),
    "diverged": (diverged, NonFiniteLossError, "the loss is nan"),
    "random": (lambda: wrap_head(tiny("causal"), noisy), UsageError, "two evaluations of one example differ by"),
    "severed": (severed, UsageError, "the gradient of lm_head.weight cannot be differentiated again"),
    "flash": (lambda: with_attention(flash_only), UsageError, "no second derivative.*attn_implementation='eager'"),
    "no config": (lambda: nn.Linear(2, 2), ValueError, "has no .config"),
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_models_that_cannot_be_measured_are_refused(name: str) -> None:
    make, error, message = REFUSED_MODELS[name]
    unmasked = {**batch("causal"), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    with pytest.raises(error, match=message):
        columns(CurvatureOperator(make(), unmasked, product="reuse"), 1)


def left_padded() -> dict[str, Tensor]:
    return {key: value.flip(1) for key, value in batch("causal").items()}


REFUSED_BATCHES: dict[str, tuple[Any, str]] = {
    "none": ([], "batches: empty"),
    "text": (["once upon"], r"batches\[0\]: a str"),
    "no labels": ([batch("causal"), {"input_ids": torch.ones(1, 3)}], r"batches\[1\]: no tensor 'labels' among its"),
    "no counted label": ({**batch("causal"), "labels": torch.full((4, 9), -100)}, "no counted label"),
    "first label only": (
        {"input_ids": torch.ones(1, 3, dtype=torch.long), "labels": torch.tensor([[5, -100, -100]])}, "no counted label"
    ),
    "left padding": (left_padded(), r"attention_mask starts with 0 \(left padding\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_BATCHES)
def test_batches_that_cannot_be_measured_are_refused(name: str) -> None:
    batches, message = REFUSED_BATCHES[name]
    with pytest.raises(UsageError, match=message):
        CurvatureOperator(tiny("causal"), batches)


def test_unknown_space() -> None:
    with pytest.raises(
        UsageError, match=re.escape("space: 'adaptor' is not known; allowed: adapter, balanced, merged")
    ):
        CurvatureOperator(tiny("causal"), ragged("causal"), space="adaptor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": "fisher"}, "matrix: 'fisher' is not known; allowed: ggn, hessian"),
        ({"product": "exact"}, "product: 'exact' is not known; allowed: auto, finite_difference, rebuild, reuse"),
        ({"matrix": "ggn", "product": "finite_difference"}, "allowed: auto, reuse, rebuild"),
    ],
)
def test_unknown_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CurvatureOperator(tiny("causal"), ragged("causal"), **options)


def test_wrong_vector() -> None:
    with pytest.raises(UsageError, match=r"vector: shape \(3,\); the Hessian has 232 rows"):
        CurvatureOperator(tiny("causal"), ragged("causal")) @ torch.ones(3)


def test_changing_parameters_while_in_use_is_an_error() -> None:
    model = lora_model("causal")
    operator = CurvatureOperator(model, ragged("causal"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    with pytest.raises(UsageError, match="parameters were changed while the Hessian was in use"):
        operator @ torch.ones(operator.size, dtype=torch.float64)


def test_adapters_without_a_task_type_and_extra_keys() -> None:
    model = get_peft_model(base_model("causal"), LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False))
    item = {**batch("causal"), "position_ids": torch.arange(9).expand(4, 9)}
    vector = torch.ones(2 * (16 + 16), dtype=torch.float64)
    assert torch.equal(CurvatureOperator(model, item) @ vector, CurvatureOperator(model, batch("causal")) @ vector)
