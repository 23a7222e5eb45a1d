from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.curvature.ascent import maximize_in_ball
from landscape.measurement import NonFiniteLossError
from tests.curvature.quadratics import PROBLEMS, Function, problem, quadratic, quadratic_maximum

RHO = 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PROBLEMS)
def test_quadratics(name: str, dtype: torch.dtype) -> None:
    gradient, hessian = problem(*PROBLEMS[name])
    expected = quadratic_maximum(gradient, hessian, RHO)
    function = quadratic(gradient.to(dtype), hessian.to(dtype))
    tol = 1e-6 if dtype == torch.float64 else 1e-3
    found = maximize_in_ball(function, RHO, num_steps=300, tol=tol)
    # In float32 an increase is a difference of losses of 2.5, each rounded to 3e-7.
    rtol, atol = (1e-8, 1e-12) if dtype == torch.float64 else (1e-5, 1e-6)
    np.testing.assert_allclose(found.lower_bound, expected, rtol=rtol, atol=atol)
    assert found.lower_bound <= expected * (1 + 1e-9) + (0 if dtype == torch.float64 else 1e-6)
    assert float(found.perturbation.norm()) <= RHO * (1 + 1e-6)
    assert function.loss_at(found.perturbation) - 2.5 == pytest.approx(found.lower_bound, abs=1e-9)


@pytest.mark.parametrize("name", ["linear", "outliers", "negative end dominates"])
def test_the_default_budget_comes_close_and_never_above(name: str) -> None:
    gradient, hessian = problem(*PROBLEMS[name])
    expected = quadratic_maximum(gradient, hessian, RHO)
    found = maximize_in_ball(quadratic(gradient, hessian), RHO)
    assert 0.99 * expected <= found.lower_bound <= expected * (1 + 1e-12)
    assert found.num_gradients <= 1 + 3 * (1 + 20)


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_step_is_sams(name: str) -> None:
    gradient, hessian = problem(*PROBLEMS[name])
    norm = float(gradient.norm())
    found = maximize_in_ball(quadratic(gradient, hessian), RHO, num_steps=0, num_starts=1)
    assert found.gradient_norm == pytest.approx(norm, rel=1e-12)
    assert found.num_gradients == 2
    if norm == 0:
        assert np.isnan(found.one_step)
        return
    expected = RHO * norm + RHO**2 * float(gradient @ hessian @ gradient) / (2 * norm**2)
    assert found.one_step == pytest.approx(expected, rel=1e-8)
    assert found.lower_bound == max(found.one_step, 0.0)
    assert found.increases[0] == found.one_step


def test_where_curvature_decides_one_step_is_far_off() -> None:
    gradient, hessian = problem(*PROBLEMS["negative end dominates"])
    found = maximize_in_ball(quadratic(gradient, hessian), RHO)
    assert found.one_step < 0.5 * found.lower_bound


def test_a_scaled_ball_is_a_round_one_in_scaled_coordinates() -> None:
    gradient, hessian = problem(*PROBLEMS["outliers"])
    scale = torch.logspace(-2, 0, len(gradient), dtype=torch.float64)
    expected = quadratic_maximum(scale * gradient, scale[:, None] * hessian * scale, RHO)
    found = maximize_in_ball(quadratic(gradient, hessian), RHO, scale=scale, num_steps=300, tol=1e-6)
    assert found.lower_bound == pytest.approx(expected, rel=1e-8)
    assert float((found.perturbation / scale).norm()) == pytest.approx(RHO, rel=1e-6)
    assert found.gradient_norm == pytest.approx(float((scale * gradient).norm()), rel=1e-12)


def test_a_coordinate_of_no_scale_does_not_move() -> None:
    gradient, hessian = problem(*PROBLEMS["outliers"])
    scale = torch.ones_like(gradient)
    scale[:7] = 0
    found = maximize_in_ball(quadratic(gradient, hessian), RHO, scale=scale, num_steps=300, tol=1e-6)
    assert not found.perturbation[:7].any()
    expected = quadratic_maximum(gradient[7:], hessian[7:, 7:], RHO)
    assert found.lower_bound == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rho", [0.01, 1.0, 20.0])
def test_logistic_loss_in_closed_form(rho: float) -> None:
    """log(1 + exp(-xᵀw)) rises most where w moves against x, at any radius."""
    x = torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = torch.randn(30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    function = Function(lambda u: torch.nn.functional.softplus(-(w + u) @ x), 30)
    margin = float(w @ x)
    found = maximize_in_ball(function, rho)
    expected = np.logaddexp(0, -margin + rho * float(x.norm())) - np.logaddexp(0, -margin)
    assert found.one_step == pytest.approx(expected, rel=1e-8)
    assert found.lower_bound == pytest.approx(expected, rel=1e-8)
    assert found.residual == pytest.approx(0, abs=1e-7)


def test_ascent_never_loses_and_the_best_start_counts() -> None:
    gradient, hessian = problem(*PROBLEMS["outliers"])
    bounds = [
        maximize_in_ball(quadratic(gradient, hessian), RHO, num_steps=steps, num_starts=1).lower_bound
        for steps in range(12)
    ]
    assert bounds == sorted(bounds)
    found = maximize_in_ball(quadratic(gradient, hessian), RHO, num_steps=5, num_starts=4)
    assert found.increases.shape == (4,)
    assert found.lower_bound == found.increases.max()


def test_the_residual_is_the_share_of_the_slope_that_is_left() -> None:
    gradient, hessian = problem(*PROBLEMS["outliers"])
    start = maximize_in_ball(quadratic(gradient, hessian), RHO, num_steps=0, num_starts=1)
    end = maximize_in_ball(quadratic(gradient, hessian), RHO, num_steps=300, tol=1e-6)
    assert start.residual > 0.3
    assert end.residual <= 1e-6
    # From the definition: the gradient there, less its part along the perturbation.
    slope = gradient + hessian @ start.perturbation
    along = start.perturbation / start.perturbation.norm()
    across = slope - (slope @ along) * along
    assert start.residual == pytest.approx(float(across.norm() / slope.norm()), rel=1e-8)


def test_the_seed_decides_and_global_generators_are_left_alone() -> None:
    gradient, hessian = problem(*PROBLEMS["no gradient"])
    state = torch.random.get_rng_state()
    first, again, other = (
        maximize_in_ball(quadratic(gradient, hessian), RHO, num_steps=2, seed=seed).perturbation for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_leaves_the_finite_within_the_ball(bad: float) -> None:
    function = Function(lambda u: u.sum() + (bad if float(u.detach().norm()) > 0.01 else 0.0), 3)
    with pytest.raises(NonFiniteLossError, match=r"rho: 0\.05: within the ball the loss or its gradient is not"):
        maximize_in_ball(function, RHO)
