from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.curvature.ball import antithetic_increases, average_sharpness, sam_sharpness
from landscape.curvature.gauge import change_gauge
from landscape.errors import UsageError
from landscape.measurement import NonFiniteLossError
from tests.curvature.conftest import SHAPES, Case, ragged, tiny
from tests.curvature.quadratics import PROBLEMS, Function, problem, quadratic, quadratic_maximum
from tests.oracles import flat_loss, in_double
from tests.small_models import KINDS, lora_model

Cases = Callable[[str], Case]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_ball_is_that_of_the_dense_quadratic(case: Cases, kind: str, adaptive: bool) -> None:
    tried, rho = case(kind), 3e-4
    loss, theta = flat_loss(tried.model, tried.batches)
    scale = theta.abs() + 0.01 if adaptive else torch.ones_like(theta)
    gradient = scale * torch.func.grad(loss)(theta)
    expected = quadratic_maximum(gradient, scale[:, None] * tried.hessian * scale, rho)
    found = sam_sharpness(tried.model, tried.batches, rho, adaptive=adaptive, tol=1e-4, return_perturbation=True)
    # What the quadratic leaves out is cubic in rho, 1e-6 of the linear part here; the quadratic part about 1e-4.
    assert found.lower_bound == pytest.approx(expected, rel=3e-6)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-8)
    assert found.converged
    assert found.perturbation is not None
    assert float((found.perturbation / scale).norm()) <= rho * (1 + 1e-9)
    assert float(loss(theta + found.perturbation) - loss(theta)) == pytest.approx(found.lower_bound, rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_no_random_perturbation_of_a_large_ball_is_worse(case: Cases, kind: str) -> None:
    tried, rho = case(kind), 1.0
    loss, theta = flat_loss(tried.model, tried.batches)
    found = sam_sharpness(tried.model, tried.batches, rho, num_starts=2)
    gradient = torch.func.grad(loss)(theta)
    one_step = float(loss(theta + rho * gradient / gradient.norm()) - loss(theta))
    assert found.one_step == pytest.approx(one_step, rel=1e-8)
    assert found.lower_bound > 1.02 * one_step
    generator = torch.Generator().manual_seed(9)
    for _ in range(10):
        noise = torch.randn(len(theta), generator=generator, dtype=torch.float64)
        assert float(loss(theta + rho * noise / noise.norm()) - loss(theta)) < found.lower_bound


def test_the_result_says_what_it_is(case: Cases) -> None:
    tried = case("causal")
    found = sam_sharpness(tried.model, tried.batches, 0.1, num_steps=2, num_starts=2, seed=4, balance=True)
    loss, theta = flat_loss(tried.model, tried.batches)
    assert (found.rho, found.adaptive, found.num_steps, found.seed, found.space) == (0.1, False, 2, 4, "balanced")
    assert (found.num_examples, found.num_labels, found.num_parameters) == (6, 26, 232)
    assert found.loss == pytest.approx(float(loss(theta)), rel=1e-12)
    assert found.num_gradients <= 1 + 2 * 3
    assert found.increases.shape == (2,)
    assert found.perturbation is None
    assert found.seconds > 0
    average = average_sharpness(tried.model, tried.batches, 0.1, 2, relative=True, seed=4, space="balanced")
    assert (average.sigma, average.relative, average.num_directions, average.seed) == (0.1, True, 2, 4)
    assert (average.num_examples, average.num_labels, average.num_parameters) == (6, 26, 232)
    assert (average.space, average.loss) == ("balanced", pytest.approx(found.loss, rel=1e-12))
    for result in (found, average):
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.seed = 5  # type: ignore[misc]


def regauged(kind: str, R: Tensor) -> nn.Module:
    """The same function, every adapter of rank 2 in another gauge."""
    model: Any = in_double(lora_model(kind, torch.float64, rank=2, **SHAPES[kind]))
    with torch.no_grad():
        for layer in [module for module in model.modules() if hasattr(module, "lora_A")]:
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            for parameter, moved in zip((A, B), change_gauge(A, B, R), strict=True):
                parameter.copy_(moved)
    return model


PLAIN = torch.eye(2, dtype=torch.float64)
DIAGONAL = torch.tensor([[5.0, 0.0], [0.0, 0.3]], dtype=torch.float64)
GENERAL = torch.tensor([[5.0, 1.0], [-2.0, 0.3]], dtype=torch.float64)

INVARIANT: list[tuple[dict[str, Any], Tensor, bool]] = [
    ({}, DIAGONAL, False),
    ({"balance": True}, DIAGONAL, True),
    ({"balance": True}, GENERAL, True),
    ({"adaptive": True, "eta": 0.0}, DIAGONAL, True),
    ({"adaptive": True, "eta": 0.0}, GENERAL, False),
    ({"space": "merged"}, GENERAL, True),
]


@pytest.mark.parametrize(("options", "R", "invariant"), INVARIANT, ids=str)
def test_what_does_not_depend_on_the_gauge(options: dict[str, Any], R: Tensor, invariant: bool) -> None:
    before, after = (
        sam_sharpness(regauged("causal", gauge), ragged("causal"), 0.01, num_steps=3, num_starts=1, **options)
        for gauge in (PLAIN, R)
    )
    assert after.loss == pytest.approx(before.loss, rel=1e-12)
    change = abs(after.lower_bound / before.lower_bound - 1)
    assert change < 1e-7 if invariant else change > 0.05


def test_pairs_cancel_the_gradient_and_are_scaled() -> None:
    gradient, hessian = problem(*PROBLEMS["outliers"])
    scale = torch.linspace(0, 2, len(gradient), dtype=torch.float64)
    function = quadratic(1e3 * gradient, hessian)
    rises = antithetic_increases(function, 2.5, 0.1, 5, scale=scale, seed=3)
    for rise, up, down in zip(rises, function.offsets[::2], function.offsets[1::2], strict=True):
        assert torch.equal(up, -down)
        assert rise == pytest.approx(float(up @ hessian @ up) / 2, rel=1e-8)
    drawn = torch.stack(function.offsets[::2])[:, 1:] / (0.1 * scale[1:])
    assert float(drawn.std()) == pytest.approx(1, abs=4 / np.sqrt(2 * drawn.numel()))
    assert not torch.stack(function.offsets)[:, 0].any()


@pytest.mark.parametrize("name", ["outliers", "negative end dominates", "concave, maximum inside"])
def test_the_average_over_a_quadratic_is_half_the_trace(name: str) -> None:
    gradient, hessian = problem(*PROBLEMS[name])
    rises = antithetic_increases(quadratic(gradient, hessian), 2.5, 0.1, 2000, seed=1)
    error = rises.std(ddof=1) / np.sqrt(2000)
    assert abs(rises.mean() - 0.1**2 / 2 * float(hessian.trace())) <= 4 * error
    # Var zᵀHz = 2‖H‖² for Gaussian z; a sample deviation of 2000 is within 10 %.
    assert error == pytest.approx(0.1**2 / 2 * np.sqrt(2 / 2000) * float(hessian.norm()), rel=0.1)


def test_the_average_over_a_logistic_loss_is_an_integral() -> None:
    """Not a quadratic: noise of standard deviation σ‖x‖ on one margin, integrated by Gauss and Hermite."""
    x = torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    function = Function(lambda u: torch.nn.functional.softplus(0.5 + u @ x), 30)
    loss = np.logaddexp(0, 0.5)
    rises = antithetic_increases(function, loss, 0.5, 2000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    margins = 0.5 + 0.5 * float(x.norm()) * nodes
    expected = float(weights @ np.logaddexp(0, margins)) / np.sqrt(2 * np.pi) - loss
    assert abs(rises.mean() - expected) <= 4 * rises.std(ddof=1) / np.sqrt(2000)


@pytest.mark.parametrize("relative", [False, True])
def test_the_average_of_a_model_is_half_its_trace(case: Cases, relative: bool) -> None:
    tried, sigma = case("causal"), 1e-2
    diagonal = tried.hessian.diagonal()
    if relative:
        diagonal = diagonal * flat_loss(tried.model, tried.batches)[1] ** 2
    found = average_sharpness(tried.model, tried.batches, sigma, 30, relative=relative, seed=1)
    assert abs(found.value - sigma**2 / 2 * float(diagonal.sum())) <= 4 * found.standard_error
    again = average_sharpness(tried.model, tried.batches, sigma, 2, relative=relative, seed=1)
    assert again.standard_error != found.standard_error


def test_measuring_twice_is_measuring_once(case: Cases) -> None:
    tried = case("classification")
    found = [sam_sharpness(tried.model, tried.batches, num_steps=2, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(found[0].increases, found[1].increases)
    assert not np.array_equal(found[0].increases, found[2].increases)
    averages = [average_sharpness(tried.model, tried.batches, 0.01, 2, seed=seed).value for seed in (0, 0, 1)]
    assert averages[0] == averages[1] != averages[2]


MEASURES: dict[str, Callable[..., Any]] = {
    "ball": lambda model, batches, **options: sam_sharpness(model, batches, num_steps=1, num_starts=1, **options),
    "average": lambda model, batches, **options: average_sharpness(model, batches, num_directions=2, **options),
}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    def state() -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    before, mode, generator = state(), model.training, torch.random.get_rng_state()
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in state().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training == mode
    assert torch.equal(torch.random.get_rng_state(), generator)


@pytest.mark.parametrize("name", MEASURES)
def test_the_model_is_left_as_found(name: str) -> None:
    model = tiny("causal").train()
    with unchanged(model):
        MEASURES[name](model, ragged("causal"))


@pytest.mark.parametrize("name", MEASURES)
def test_the_model_is_left_as_found_after_an_interrupt(name: str) -> None:
    model: Any = tiny("causal").train()
    calls = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 8:  # in the middle of an evaluation at other parameters
            raise KeyboardInterrupt

    hook = model.get_base_model().lm_head.register_forward_hook(interrupt)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        MEASURES[name](model, ragged("causal"))
    hook.remove()


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", MEASURES)
def test_the_callers_modes_do_not_matter(case: Cases, name: str, context: str) -> None:
    tried = case("causal")
    results = []
    for mode in (nullcontext, CONTEXTS[context]):
        with mode():
            results.append(dataclasses.replace(MEASURES[name](tried.model, tried.batches), seconds=0.0))
    assert repr(results[0]) == repr(results[1])


def noisy() -> nn.Module:
    model: Any = tiny("causal")
    head = model.get_base_model().lm_head
    head.register_forward_hook(lambda module, inputs, output: output + 1e-6 * torch.randn_like(output))
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "random": (noisy, "model: two evaluations differ by .* remove what draws random numbers"),
    "bfloat16": (
        lambda: lora_model("causal").to(torch.bfloat16),
        r"lora_A.default.weight is bfloat16, which would round",
    ),
    "frozen": (lambda: tiny("causal").requires_grad_(False), "no parameter requires a gradient"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", MEASURES)
def test_models_that_cannot_be_measured(name: str, model: str) -> None:
    make, message = MODELS[model]
    with pytest.raises(UsageError, match=message):
        MEASURES[name](make(), ragged("causal"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("ball", "the loss depends on none of its 28 trainable"), ("average", "adapter is off or merged")],
)
def test_an_adapter_that_is_off(name: str, message: str) -> None:
    model: Any = tiny("causal")
    with model.disable_adapter():
        for parameter in (p for key, p in model.named_parameters() if "lora" in key):
            parameter.requires_grad_(True)
        with pytest.raises(UsageError, match=message):
            MEASURES[name](model, ragged("causal"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ball", {"rho": 1e200}, "rho: 1e.200: within the ball the loss is (nan|inf)"),
        ("average", {"sigma": 1e200}, "sigma: 1e.200: under noise of this size the loss is (nan|inf)"),
    ],
)
def test_a_loss_that_is_not_finite_nearby(name: str, options: dict[str, Any], message: str) -> None:
    model = tiny("causal")
    with unchanged(model), pytest.raises(NonFiniteLossError, match=message):
        MEASURES[name](model, ragged("causal"), **options)


REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (sam_sharpness, {"rho": 0.0}, "rho: 0.0; allowed: finite and greater than 0"),
    (sam_sharpness, {"rho": torch.inf}, "rho: inf; allowed"),
    (sam_sharpness, {"eta": -0.1}, "eta: -0.1; allowed: finite and at least 0"),
    (sam_sharpness, {"tol": 1.0}, "tol: 1.0; allowed: greater than 0 and less than 1"),
    (sam_sharpness, {"num_steps": -1}, "num_steps: -1; allowed: at least 0"),
    (sam_sharpness, {"num_starts": 0}, "num_starts: 0; allowed: at least 1"),
    (sam_sharpness, {"space": "adaptor"}, "space: 'adaptor' is not known.* Did you mean 'adapter'"),
    (sam_sharpness, {"space": "merged", "adaptive": True}, "adaptive: True with space='merged'"),
    (average_sharpness, {"sigma": -1.0}, "sigma: -1.0; allowed: finite and greater than 0"),
    (average_sharpness, {"num_directions": 1}, "num_directions: 1; allowed: at least 2"),
    (average_sharpness, {"space": "merged", "relative": True}, "relative: True with space='merged'"),
]


@pytest.mark.parametrize(("measure", "options", "message"), REFUSED)
def test_bad_arguments(measure: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(tiny("causal"), ragged("causal"), **options)
