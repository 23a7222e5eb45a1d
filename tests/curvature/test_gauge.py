from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from landscape.curvature import top_eigenvalues
from landscape.curvature.gauge import balanced_factors, change_gauge, check_balanceable
from landscape.errors import UsageError
from landscape.measurement import NonFiniteLossError
from tests.curvature.conftest import ragged
from tests.oracles import flat_loss, in_double
from tests.small_models import base_model, lora_model


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def factors(rank: int, out: int, into: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A and B of the sizes that LoRA has after some steps: A much larger."""
    return normal(rank, into, seed=1, dtype=dtype), 0.01 * normal(out, rank, seed=2, dtype=dtype)


def conditioned(rank: int, condition: float) -> Tensor:
    """An (r, r) matrix whose singular values run evenly over the decades of its condition number."""
    left, right = (torch.linalg.qr(normal(rank, rank, seed=seed))[0] for seed in (3, 4))
    return left @ torch.diag(torch.logspace(0, -np.log10(condition), rank, dtype=torch.float64)) @ right


@pytest.mark.parametrize("scaling", [1.0, 0.25, 16.0])
@pytest.mark.parametrize(("rank", "out", "into"), [(1, 5, 7), (4, 9, 6), (4, 4, 30), (6, 6, 6)])
def test_the_product_stays_and_both_factors_weigh_the_same(rank: int, out: int, into: int, scaling: float) -> None:
    A, B = factors(rank, out, into)
    a, b = balanced_factors(A, B, scaling)
    assert (a.shape, b.shape) == (A.shape, B.shape)
    torch.testing.assert_close(b @ a, scaling * B @ A, rtol=1e-12, atol=1e-15)
    singular = np.linalg.svd((scaling * B @ A).numpy(), compute_uv=False)[:rank]
    for gram in (b.T @ b, a @ a.T):
        np.testing.assert_allclose(gram.numpy(), np.diag(singular), rtol=1e-12, atol=1e-14 * singular[0])
    # The least sum of squared norms over all factors of a product is twice its nuclear norm.
    assert float(a.square().sum() + b.square().sum()) == pytest.approx(2 * singular.sum(), rel=1e-12)


GAUGES: dict[str, Tensor] = {
    "shrunk": 1e-6 * torch.eye(4, dtype=torch.float64),
    "grown": 1e6 * torch.eye(4, dtype=torch.float64),
    "signs": torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)),
    "permuted": torch.eye(4, dtype=torch.float64)[[2, 0, 3, 1]],
    "rotated": conditioned(4, 1.0),
    "diagonal": torch.diag(torch.tensor([1e-4, 1.0, 1e3, 1e5], dtype=torch.float64)),
    "condition 1e2": conditioned(4, 1e2),
    "condition 1e6": conditioned(4, 1e6),
}


@pytest.mark.parametrize("gauge", GAUGES)
def test_every_gauge_of_a_product_gives_the_same_balanced_factors(gauge: str) -> None:
    A, B = factors(4, 9, 6)
    moved = change_gauge(A, B, GAUGES[gauge])
    torch.testing.assert_close(moved[1] @ moved[0], B @ A, rtol=1e-8, atol=1e-12)
    # Rounding of 1e-16, amplified at most by the condition number 1e6.
    for balanced, expected in zip(balanced_factors(*moved, 2.0), balanced_factors(A, B, 2.0), strict=True):
        torch.testing.assert_close(balanced, expected, rtol=1e-8, atol=1e-9)


def test_scaling_and_size_are_traded() -> None:
    A, B = factors(3, 8, 7)
    expected = balanced_factors(A, B, 2.0)
    for traded in (balanced_factors(8 * A, B, 0.25), balanced_factors(A, 2 * B, 1.0)):
        for balanced, wanted in zip(traded, expected, strict=True):
            torch.testing.assert_close(balanced, wanted, rtol=1e-12, atol=1e-14)


def test_balanced_factors_are_balanced_already() -> None:
    once = balanced_factors(*factors(3, 8, 7), 2.0)
    for again, before in zip(balanced_factors(*once, 1.0), once, strict=True):
        torch.testing.assert_close(again, before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_dtypes(a: torch.dtype, b: torch.dtype, expected: torch.dtype) -> None:
    A, B = factors(4, 9, 6)
    A, B = A.to(a), B.to(b).requires_grad_()
    found = balanced_factors(A, B, 2.0)
    assert [factor.dtype for factor in found] == [expected, expected]
    assert not any(factor.requires_grad for factor in found)
    exact = 2 * B.detach().double() @ A.double()
    assert float((found[1].double() @ found[0].double() - exact).norm()) <= 2e-7 * float(exact.norm())


def test_the_spectrum_is_that_of_the_function_and_not_of_the_gauge() -> None:
    """Least squares in W + BA, with the dense Hessian by A and B; that moves with the gauge, Â and B̂'s not."""
    X, Y, A, B = normal(20, 6, seed=5), normal(20, 5, seed=6), *factors(2, 5, 6)

    def loss(flat: Tensor) -> Tensor:
        a, b = flat[: A.numel()].view_as(A), flat[A.numel() :].view_as(B)
        return (X @ (b @ a).T - Y).square().mean()

    def eigenvalues(a: Tensor, b: Tensor) -> Tensor:
        hessian = torch.autograd.functional.hessian(loss, torch.cat([a.reshape(-1), b.reshape(-1)]))
        return torch.linalg.eigvalsh(hessian)  # type: ignore[arg-type]

    spread = torch.diag(torch.tensor([0.3, 40.0], dtype=torch.float64)) @ conditioned(2, 10.0)
    moved = change_gauge(A, B, spread)
    torch.testing.assert_close(eigenvalues(*balanced_factors(*moved, 1.0)), eigenvalues(*balanced_factors(A, B, 1.0)))
    assert float(eigenvalues(*moved)[-1] / eigenvalues(A, B)[-1]) > 10


def current_loss(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    loss, theta = flat_loss(model, batches)
    return float(loss(theta))


def adapted(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("kind", ["causal", "classification"])
def test_a_models_balanced_sharpness_is_gauge_invariant(kind: str) -> None:
    model, batches = in_double(lora_model(kind, rank=2, hidden_size=8, intermediate_size=12)), ragged(kind)
    loss = current_loss(model, batches)
    plain, balanced = (
        top_eigenvalues(model, batches, tol=1e-6, balance=balance).values[0] for balance in (False, True)
    )
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for layer in adapted(model).values():
            R = 3 * torch.randn(2, 2, generator=generator, dtype=torch.float64)
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            for parameter, moved in zip((A, B), change_gauge(A, B, R), strict=True):
                parameter.copy_(moved)
            layer.scaling["default"] *= 4
            B /= 4
    assert current_loss(model, batches) == pytest.approx(loss, rel=1e-12)
    assert top_eigenvalues(model, batches, tol=1e-6, balance=True).values[0] == pytest.approx(balanced, rel=1e-8)
    assert abs(top_eigenvalues(model, batches, tol=1e-6).values[0] / plain - 1) > 0.5


def deficient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rank 2 of 3, but for the rounding of B."""
    A, B = factors(3, 8, 7)
    B[:, 2] = B[:, 0] + B[:, 1] / 3
    return A.to(dtype), B.to(dtype)


RANKS: dict[str, tuple[Tensor, Tensor, str]] = {
    "B is zero": (normal(3, 7), torch.zeros(8, 3), r"rank 0, below r = 3 .*; at initialization B is 0, so measure"),
    "A is zero": (torch.zeros(3, 7), normal(8, 3), r"rank 0, below r = 3 \(singular values above 1e-13 of [^;]*$"),
    "a column": (normal(3, 7), torch.cat([normal(8, 2), torch.zeros(8, 1)], dim=1), "rank 2, below r = 3"),
    "float64": (*deficient(torch.float64), r"rank 2, below r = 3 \(singular values above 1e-13"),
    "float32": (*deficient(torch.float32), r"rank 2, below r = 3 \(singular values above 1e-06"),
    "a narrow layer": (normal(3, 7), normal(2, 3), "rank 2, below r = 3"),
}


@pytest.mark.parametrize("case", RANKS)
def test_a_product_of_lower_rank_has_no_balanced_factors(case: str) -> None:
    A, B, message = RANKS[case]
    with pytest.raises(UsageError, match=f"layers.0.q_proj: balance: BA has numerical {message}"):
        balanced_factors(A, B, 1.0, name="layers.0.q_proj")


def test_a_small_singular_value_is_not_a_missing_one() -> None:
    A, B = factors(2, 8, 7, torch.float32)
    B[:, 1] *= 1e-4
    a, b = balanced_factors(A, B, 1.0)
    torch.testing.assert_close((b @ a)[:, :], B @ A, rtol=0, atol=1e-6 * float((B @ A).norm()))


@pytest.mark.parametrize("scaling", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_scaling_must_be_positive(scaling: float) -> None:
    with pytest.raises(UsageError, match=rf"head: scaling: {scaling}; allowed: finite and greater than 0"):
        balanced_factors(*factors(2, 5, 6), scaling, name="head")


def test_factors_must_fit() -> None:
    with pytest.raises(UsageError, match=r"A \(2, 6\) and B \(2, 5\); needed: \(r, in\) and \(out, r\)"):
        balanced_factors(normal(2, 6), normal(2, 5), 1.0)


@pytest.mark.parametrize("which", [0, 1])
def test_diverged_factors(which: int) -> None:
    pair = factors(2, 5, 6)
    pair[which][1, 1] = torch.nan
    with pytest.raises(NonFiniteLossError, match=f"{'AB'[which]} holds NaN"):
        balanced_factors(*pair, 1.0)


@pytest.mark.parametrize(
    ("R", "message"), [(torch.zeros(2, 2), "R: is singular"), (torch.eye(3), r"R: shape \(3, 3\); .* need \(2, 2\)")]
)
def test_a_gauge_needs_an_invertible_matrix(R: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        change_gauge(*factors(2, 5, 6), R)


def test_a_change_of_gauge_keeps_dtypes() -> None:
    A, B = change_gauge(normal(2, 6, dtype=torch.float32), normal(5, 2, dtype=torch.bfloat16), torch.eye(2))
    assert (A.dtype, B.dtype) == (torch.float32, torch.bfloat16)


def lora(**options: Any) -> nn.Module:
    base = base_model("causal", torch.float32)
    return get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, **options))  # type: ignore[arg-type]


def gpt2() -> nn.Module:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16)
    return get_peft_model(GPT2LMHeadModel(config), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))  # type: ignore[arg-type]


def frozen(factor: str) -> nn.Module:
    model = lora()
    for name, parameter in model.named_parameters():
        if factor in name:
            parameter.requires_grad_(False)
    return model


def layer_of(model: nn.Module, attribute: str = "lora_A") -> nn.Module:
    return next(module for module in model.modules() if hasattr(module, attribute))


BALANCEABLE = {
    "plain": lora,
    "rsLoRA": lambda: lora(use_rslora=True),
    "PiSSA": lambda: lora(init_lora_weights="pissa"),
    "transposed": gpt2,
}


@pytest.mark.parametrize("name", BALANCEABLE)
def test_plain_lora_can_be_balanced(name: str) -> None:
    check_balanceable(layer_of(BALANCEABLE[name]()), "default")


def peft_model(config: Any) -> nn.Module:
    return get_peft_model(base_model("causal"), config)  # type: ignore[arg-type]


REFUSED: dict[str, tuple[Any, str, str]] = {
    "DoRA": (lambda: lora(use_dora=True), "lora_A", "DoRA divides by the norms"),
    "aLoRA": (lambda: lora(alora_invocation_tokens=[3], task_type="CAUSAL_LM"), "lora_A", "variant ALoraLinearVariant"),
    "AdaLoRA": (
        lambda: peft_model(AdaLoraConfig(target_modules=["q_proj"], total_step=9, tinit=1, tfinal=1)),
        "lora_A",
        "AdaLoRA's diagonal",
    ),
    "LoHa": (
        lambda: peft_model(LoHaConfig(target_modules=["q_proj"], r=2)),
        "hada_w1_a",
        "Linear has no matrices A and B under the adapter 'default'",
    ),
    "an embedding": (
        lambda: peft_model(LoraConfig(target_modules=["embed_tokens"])),
        "lora_A",
        "Embedding has no matrices A and B",
    ),
    "lora_bias": (lambda: lora(lora_bias=True), "lora_A", "lora_bias adds a bias"),
    "frozen A": (lambda: frozen("lora_A"), "lora_A", "A is frozen"),
    "frozen B": (lambda: frozen("lora_B"), "lora_A", "B is frozen"),
}


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_other_adapters_are_refused_with_a_reason(name: str) -> None:
    make, attribute, message = REFUSED[name]
    with pytest.raises(UsageError, match=rf"block: balance: .*{message}.*; allowed: plain LoRA on linear layers"):
        check_balanceable(layer_of(make(), attribute), "default", name="block")
