from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from landscape.episodes.noise import (
    NoiseModel,
    block_scales,
    fit_noise,
    noise_design,
    nonnegative_least_squares,
    quantile_scale,
    variances,
)
from landscape.episodes.scan import cumulative
from landscape.episodes.synthetic import NOISES


def second_difference(noise_covariance: np.ndarray, h: int) -> float:
    """Variance of mean(middle) - (mean(left) + mean(right))/2, from the covariance matrix."""
    w = np.repeat([-0.5, 1, -0.5], h) / h
    return float(w @ noise_covariance[: 3 * h, : 3 * h] @ w)


def test_quantile_scale_is_the_deviation_of_normal_numbers() -> None:
    x = np.random.default_rng(0).standard_normal((50, 4000)) * 3
    # Asymptotic relative error of the quantile of 4,000: about 0.017 each, 0.0025 for the mean of 50.
    assert quantile_scale(x).mean() == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_variances_are_those_of_an_ar1_process(phi: float) -> None:
    n, curves = 600, 200
    rng = np.random.default_rng(1)
    noise = np.stack([NOISES[{0.0: "white", 0.5: "ar0.5", 0.8: "ar0.8"}[phi]](n, rng) for _ in range(curves)])
    design = noise_design(n)
    found = variances(cumulative(noise), np.ones((curves, design.blocks)), design)
    covariance = phi ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    expected = [second_difference(covariance, h) for h in design.widths]
    error = found.std(axis=0) / np.sqrt(curves)
    # Quantiles of few, dependent differences are biased by a few percent at the widest windows.
    assert np.all(np.abs(found.mean(axis=0) - expected) < 4 * error + 0.08 * np.array(expected))


def test_a_straight_trend_does_not_enter() -> None:
    design = noise_design(600)
    noise = np.random.default_rng(2).standard_normal(600)
    trended = noise + np.linspace(50, 0, 600)
    ones = np.ones(design.blocks)
    np.testing.assert_allclose(
        variances(cumulative(trended), ones, design), variances(cumulative(noise), ones, design), rtol=1e-8
    )


def test_block_scales_follow_the_noise() -> None:
    rng = np.random.default_rng(3)
    scale = np.repeat([4.0, 1.0], 400)
    found = block_scales(scale * rng.standard_normal((100, 800)), noise_design(800)).mean(axis=0)
    # Blocks of 100 points: each quantile varies by 9 %, the mean of 100 by 0.9 %.
    np.testing.assert_allclose(found / np.sqrt(8.5), np.repeat([4.0, 1.0], 4) / 8.5, rtol=0.05)


def test_multiplicative_updates_agree_with_an_active_set_solver() -> None:
    rng = np.random.default_rng(4)
    matrix, target = rng.random((12, 5)), rng.random(12)
    ours = nonnegative_least_squares(matrix, target, 20_000)
    np.testing.assert_allclose(ours, nnls(matrix, target)[0], atol=1e-4)  # Updates reach zeros only in the limit.


@pytest.mark.parametrize("name", ["white", "ar0.5", "ar0.8"])
def test_the_model_fitted_to_a_process_resamples_it(name: str) -> None:
    n, phi = 600, {"white": 0.0, "ar0.5": 0.5, "ar0.8": 0.8}[name]
    covariance = phi ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    exact = np.array([second_difference(covariance, h) for h in noise_design(n).widths])
    curve = NOISES[name](n, np.random.default_rng(5))
    model = fit_noise(exact, curve, np.ones(n))
    assert isinstance(model, NoiseModel)
    assert model.variance == pytest.approx(1, rel=0.1)
    drawn = model.sample(300, np.random.default_rng(6))
    for lag in (1, 3):
        # The mixture has eight fixed decays, so a decay between them is met approximately.
        assert (drawn[:, lag:] * drawn[:, :-lag]).mean() == pytest.approx(phi**lag, abs=0.08)
