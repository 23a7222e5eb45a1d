"""Adam's preconditioner against torch.optim.AdamW, and the threshold against the iteration that it is about."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from landscape.curvature.krylov import SymmetricOperator
from landscape.curvature.lanczos import lanczos
from landscape.curvature.operators import CurvatureOperator
from landscape.curvature.stability import PreconditionedOperator, adam_preconditioner, stability_threshold
from landscape.errors import UsageError
from landscape.loss import forward_losses
from landscape.measurement import NonFiniteLossError
from tests.oracles import dense_hessian, in_double
from tests.small_models import batch, lora_model


class Dense:
    """A matrix as an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.size = matrix, len(matrix)
        self.dtype, self.device = matrix.dtype, matrix.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector


def random_hessian(size: int = 8, seed: int = 0) -> Tensor:
    """Symmetric, float64, with eigenvalues of both signs."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


def well_conditioned() -> Tensor:
    """(8, 8) with eigenvalues from 1 to 4, so that only the largest is near the threshold."""
    basis = torch.linalg.qr(random_hessian(seed=2)).Q
    return basis @ torch.diag(torch.linspace(1, 4, 8, dtype=torch.float64)) @ basis.T


def positive(size: int, seed: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


# --- the preconditioner -----------------------------------------------------------------------------------------------

BETAS, EPS = (0.8, 0.95), 1e-3


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_adamw_moves_the_parameters_by_minus_d_m(steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in (("a", (3, 2)), ("b", (4,)))
    }
    rates = {"a": 0.3, "b": 0.02}
    groups = [{"params": [parameter], "lr": rates[name]} for name, parameter in parameters.items()]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, weight_decay=0.0)
    for _ in range(steps):
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    state = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    second = {name: values["exp_avg_sq"] for name, values in state.items()}
    for names in (["a", "b"], ["b", "a"]):
        scale = adam_preconditioner(
            second, names, step=steps, learning_rate=rates, beta1=BETAS[0], beta2=BETAS[1], eps=EPS
        ).scale
        moved = torch.cat([(parameters[name].detach() - before[name]).reshape(-1) for name in names])
        momentum = torch.cat([state[name]["exp_avg"].reshape(-1) for name in names])
        torch.testing.assert_close(-scale * momentum, moved, rtol=1e-8, atol=0)


def test_a_coordinate_that_never_had_a_gradient_is_left_out() -> None:
    second = {"a": torch.tensor([0.0, 4.0]), "b": torch.zeros(3)}
    found = adam_preconditioner(second, ["a", "b"], step=1000, learning_rate=0.5, beta1=0.0, beta2=0.5, eps=0.0)
    assert found.num_unmoved == 4
    assert found.scale.tolist() == [0.0, 0.25, 0.0, 0.0, 0.0]


def test_the_preconditioned_hessian_of_a_model_is_the_dense_one() -> None:
    """D from the state of AdamW after real steps on the model; H by automatic differentiation, dense."""
    model = in_double(lora_model("causal", rank=1))
    data, rate = [batch("causal")], 2e-3
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=rate, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        forward_losses(model, data[0]).mean.backward()
        optimizer.step()
    second = {name: optimizer.state[p]["exp_avg_sq"] for name, p in named.items()}
    operator = CurvatureOperator(model, data)
    scale = adam_preconditioner(second, operator.names, step=3, learning_rate=rate).scale
    flat = torch.cat([moment.reshape(-1) for moment in second.values()])
    by_hand = rate / (1 - 0.9**3) / (flat.sqrt() / (1 - 0.999**3) ** 0.5 + 1e-8)
    dense = by_hand.sqrt()[:, None] * dense_hessian(model, data) * by_hand.sqrt()
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    preconditioned = PreconditionedOperator(operator, scale)
    torch.testing.assert_close(preconditioned @ vector, dense @ vector, rtol=1e-8, atol=1e-12)
    top = lanczos(preconditioned, tol=1e-9).values[0]
    assert top == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)


def test_the_eigenvalues_are_those_of_d_times_h() -> None:
    hessian, scale = random_hessian(), positive(8, seed=1)
    operator: SymmetricOperator = PreconditionedOperator(Dense(hessian), scale)
    product = torch.stack([operator @ row for row in torch.eye(8, dtype=torch.float64)])
    torch.testing.assert_close(product, product.T, rtol=1e-12, atol=1e-12)
    expected = torch.linalg.eigvals(scale[:, None] * hessian).real.sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(product), expected, rtol=1e-8, atol=1e-10)


# --- the threshold ----------------------------------------------------------------------------------------------------

SHARES = {"below": (0.999, False), "above": (1.001, True)}
"""A thousandth from the threshold the oscillation grows or decays by 4 % a step at β₁ = 0.9, by 0.1 % at β₁ = 0."""


def energies(x: Tensor, hessian: Tensor, step: Callable[[], None], steps: int) -> list[float]:
    """xᵀHx after each step along the iteration."""
    sizes = []
    for _ in range(steps):
        step()
        sizes.append(float(x.detach() @ hessian @ x.detach()))
    return sizes


def check_growth(sizes: list[float], diverges: bool) -> None:
    early, late = max(sizes[: len(sizes) // 4]), max(sizes[-len(sizes) // 4 :])
    assert late > 10 * early if diverges else late < 0.1 * early


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_momentum_with_a_fixed_preconditioner_diverges_above_the_threshold_only(beta1: float, share: str) -> None:
    """The iteration itself, run on a quadratic: m ← β₁m + (1 - β₁)Hx, x ← x - D·m."""
    factor, diverges = SHARES[share]
    hessian, scale = well_conditioned(), positive(8, seed=3)
    top = lanczos(PreconditionedOperator(Dense(hessian), scale), tol=1e-9).values[0]
    scale = scale * factor * stability_threshold(beta1) / float(top)
    x, momentum = torch.ones(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)

    def step() -> None:
        momentum.mul_(beta1).add_((1 - beta1) * hessian @ x)
        x.sub_(scale * momentum)

    check_growth(energies(x, hessian, step, 2400 if beta1 < 0.9 else 400), diverges)


@pytest.mark.parametrize("share", SHARES)
def test_adamw_itself_diverges_above_the_threshold_only(share: str) -> None:
    """torch.optim.AdamW late in a run, its preconditioner held fixed by an ε far above every gradient."""
    factor, diverges = SHARES[share]
    hessian, eps, began, steps = well_conditioned(), 1e6, 10_000, 400
    rate = factor * 38 * eps / float(torch.linalg.eigvalsh(hessian)[-1])
    x = nn.Parameter(1e-6 * torch.ones(8, dtype=torch.float64))
    optimizer = torch.optim.AdamW([x], lr=rate, eps=eps, weight_decay=0.0)
    moments = {"exp_avg": torch.zeros_like(x), "exp_avg_sq": torch.zeros_like(x)}
    optimizer.state[x] = {"step": torch.tensor(float(began)), **moments}

    def step() -> None:
        x.grad = hessian @ x.detach()
        optimizer.step()

    check_growth(energies(x, hessian, step, steps), diverges)
    scale = adam_preconditioner(
        {"x": optimizer.state[x]["exp_avg_sq"]}, ["x"], step=began + steps, learning_rate=rate, eps=eps
    ).scale
    measured = lanczos(PreconditionedOperator(Dense(hessian), scale), tol=1e-9).values[0]
    assert measured == pytest.approx(factor * 38, rel=1e-5)  # v adds less than that to ε


def test_the_threshold_is_38_at_the_usual_beta1() -> None:
    assert stability_threshold() == pytest.approx(38)
    assert stability_threshold(0.0) == 2


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "before the first step": (lambda: adam({}, step=0), "step: 0; Adam has no second moments before its first step"),
    "no moment": (lambda: adam({}), "a: no second moment is given"),
    "no rate": (lambda: adam({"a": torch.ones(2)}, learning_rate={"b": 1.0}), "a: no learning rate is given"),
    "negative rate": (lambda: adam({"a": torch.ones(2)}, learning_rate=-1.0), "learning_rate: -1.0 for a; allowed"),
    "negative moment": (lambda: adam({"a": -torch.ones(2)}), "a: a second moment is negative"),
    "beta2": (lambda: adam({"a": torch.ones(2)}, beta2=1.0), "beta2: 1.0; allowed: at least 0 and less than 1"),
    "eps": (lambda: adam({"a": torch.ones(2)}, eps=-1e-8), "eps: -1e-08; allowed: at least 0"),
    "beta1": (lambda: stability_threshold(1.0), "beta1: 1.0; allowed: at least 0 and less than 1"),
    "another size": (lambda: scaled(torch.ones(3)), r"preconditioner: shape \(3,\); needed: \(8,\)"),
    "negative scale": (lambda: scaled(-torch.ones(8)), "preconditioner: every entry must be finite and at least 0"),
    "nan": (lambda: scaled(torch.full((8,), torch.nan)), "preconditioner: every entry must be finite and at least 0"),
}


def adam(second: dict[str, Tensor], **changes: object) -> object:
    options: dict[str, object] = {"step": 1, "learning_rate": 1.0, **changes}
    return adam_preconditioner(second, ["a"], **options)  # type: ignore[arg-type]


def scaled(scale: Tensor) -> PreconditionedOperator:
    return PreconditionedOperator(Dense(random_hessian()), scale)


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_preconditioner_is_refused(name: str) -> None:
    act, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        act()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_moments_of_a_diverged_run(value: float) -> None:
    with pytest.raises(NonFiniteLossError, match="a: a second moment is NaN or infinite; the parameters have diverged"):
        adam({"a": torch.full((2,), value)})


def test_a_learning_rate_of_zero_leaves_no_curvature() -> None:
    """As in the first step of a warm-up."""
    found = adam_preconditioner({"a": torch.ones(8)}, ["a"], step=1, learning_rate=0.0)
    pairs = lanczos(PreconditionedOperator(Dense(random_hessian()), found.scale))
    assert pairs.values.tolist() == [0.0]
    assert pairs.converged
