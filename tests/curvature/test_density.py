from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from landscape.curvature.density import (
    DensityResult,
    Quadrature,
    covering_grid,
    default_bandwidth,
    lanczos_quadrature,
    spectral_density,
)
from landscape.curvature.operators import CurvatureOperator
from landscape.curvature.trace import random_signs
from landscape.errors import LandscapeError, UsageError
from landscape.measurement import NonFiniteLossError
from tests.curvature.conftest import Case
from tests.curvature.dense import BULK, SPECTRA, Dense, with_spectrum
from tests.small_models import KINDS

Cases = Callable[[str], Case]


def probes(size: int, count: int, seed: int = 0) -> Tensor:
    """The unit vectors (count, n) that a quadrature with this seed starts from."""
    generator = torch.Generator().manual_seed(seed)
    operator = Dense(torch.eye(size, dtype=torch.float64))
    return torch.stack([random_signs(operator, generator) for _ in range(count)]) / size**0.5


def distinct(eigenvalues: np.ndarray) -> int:
    return len(np.unique(np.round(eigenvalues, 12)))


def broadened(eigenvalues: np.ndarray, grid: np.ndarray, bandwidth: float) -> np.ndarray:
    """The density of a known spectrum under a Gaussian kernel."""
    kernels = np.exp(-(((grid[:, None] - eigenvalues) / bandwidth) ** 2) / 2) / (bandwidth * np.sqrt(2 * np.pi))
    return kernels.mean(axis=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_probe_integrates_polynomials_exactly(name: str, dtype: torch.dtype) -> None:
    """Σ w·θᵏ = vᵀHᵏv for k ≤ 2m - 1, the closed form of Gauss quadrature."""
    matrix = with_spectrum(SPECTRA[name])
    num_steps = min(6, len(matrix))
    operator = Dense(matrix.to(dtype))
    quadrature = lanczos_quadrature(operator, num_steps, 3, seed=2)
    assert quadrature.nodes.shape == quadrature.weights.shape == (3, num_steps)
    assert quadrature.num_matvecs == operator.products
    np.testing.assert_allclose(quadrature.weights.sum(axis=1), 1, rtol=1e-12)
    powers = probes(len(matrix), 3, seed=2)
    starts, norm = powers, float(np.abs(SPECTRA[name]).max())
    tolerance = 1e-8 if dtype == torch.float64 else 1e-5
    for order in range(2 * num_steps):
        expected = (starts * powers).sum(dim=1).numpy()
        found = (quadrature.weights * quadrature.nodes**order).sum(axis=1)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * norm**order)
        powers = powers @ matrix


BREAKDOWNS = [
    ("identity", 1), ("zero", 1), ("one by one", 1), ("two by two", 2), ("rank five", 6), ("repeated", 3)
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "steps"), BREAKDOWNS)
def test_a_probe_stops_at_an_invariant_subspace(name: str, steps: int, dtype: torch.dtype) -> None:
    """As many steps as there are distinct eigenvalues; the nodes are these, and unused places have no weight."""
    eigenvalues = SPECTRA[name]
    operator = Dense(with_spectrum(eigenvalues).to(dtype))
    quadrature = lanczos_quadrature(operator, 20, 4)
    assert quadrature.nodes.shape == (4, min(20, len(eigenvalues)))
    # Rounding may hide the breakdown for some steps; nodes then come twice, with tiny weights.
    assert operator.products == quadrature.num_matvecs <= 4 * min(20, steps + 2)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for nodes, weights in zip(quadrature.nodes, quadrature.weights, strict=True):
        heavy = nodes[weights > tolerance]
        assert np.abs(heavy[:, None] - eigenvalues).min(axis=1) == pytest.approx(
            np.zeros(len(heavy)), abs=10 * tolerance
        )
    assert quadrature.largest == pytest.approx(eigenvalues.max(), abs=10 * tolerance)
    assert quadrature.smallest == pytest.approx(eigenvalues.min(), abs=10 * tolerance)


def test_more_steps_than_parameters() -> None:
    eigenvalues = np.linspace(-1, 2, 12)
    operator = Dense(with_spectrum(eigenvalues))
    quadrature = lanczos_quadrature(operator, 60, 2)
    np.testing.assert_allclose(quadrature.nodes, np.stack([eigenvalues] * 2), rtol=1e-10, atol=1e-12)
    assert operator.products == quadrature.num_matvecs == 2 * 12


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["bulk", "negative end dominates", "rank five"])
def test_moments_lie_within_four_standard_errors(name: str, order: int) -> None:
    expected = float((SPECTRA[name] ** order).mean())
    for seed in range(5):
        moment = lanczos_quadrature(Dense(with_spectrum(SPECTRA[name])), 8, 60, seed).moment(order)
        assert abs(moment.value - expected) <= 4 * moment.standard_error + 1e-12


def test_the_standard_error_of_a_moment_is_calibrated() -> None:
    """As for the trace: 20 probes, Student's t of variance 1.12, known to 0.18 from 100 seeds."""
    operator = Dense(with_spectrum(BULK))
    moments = [lanczos_quadrature(operator, 2, 20, seed).moment(2) for seed in range(100)]
    scores = np.array([(moment.value - (BULK**2).mean()) / moment.standard_error for moment in moments])
    assert abs(scores.mean()) < 4 * 0.11
    assert 1 - 4 * 0.14 < scores.var() < 1.12 + 4 * 0.18


DRAWN = ["bulk", "negative end dominates", "decaying", "tiny scale", "huge scale"]


@pytest.mark.parametrize("name", DRAWN)
def test_the_density_is_that_of_the_spectrum_under_the_same_kernel(name: str) -> None:
    eigenvalues = SPECTRA[name]
    quadrature = lanczos_quadrature(Dense(with_spectrum(eigenvalues)), 16, 60)
    bandwidth = default_bandwidth(quadrature, 16)
    grid = covering_grid(quadrature, bandwidth, 400)
    density, standard_error = quadrature.density(grid, bandwidth)
    expected = broadened(eigenvalues, grid, bandwidth)
    # At the default bandwidth 16 steps leave an error of the order of exp(-8) of the peak.
    allowed = 4 * standard_error + 2e-3 * expected.max()
    assert (np.abs(density - expected) <= allowed).all()
    assert standard_error.max() < 0.2 * expected.max()
    assert (4 * standard_error).max() > 10 * 2e-3 * expected.max()  # it is the standard error that decides


@pytest.mark.parametrize("num_steps", [8, 16, 32, 60])
def test_the_default_bandwidth_is_what_the_steps_resolve(num_steps: int) -> None:
    """Against one vector's own spectral measure, without any sampling error, on a spectrum that fills its range."""
    eigenvalues = np.cos(np.linspace(0.01, np.pi - 0.01, 400))
    matrix = with_spectrum(eigenvalues)
    quadrature = lanczos_quadrature(Dense(matrix), num_steps, 1)
    values, vectors = np.linalg.eigh(matrix.numpy())
    weights = (vectors.T @ probes(400, 1)[0].numpy()) ** 2
    errors = []
    for factor in (1.0, 0.25):
        bandwidth = factor * default_bandwidth(quadrature, num_steps)
        grid = covering_grid(quadrature, bandwidth, 500)
        exact = Quadrature(values[None], weights[None], 0).density(grid, bandwidth)[0]
        errors.append(np.abs(quadrature.density(grid, bandwidth)[0] - exact).max() / exact.max())
    assert errors[0] < 2e-3
    assert errors[1] > 0.05


@pytest.mark.parametrize("num_probes", [1, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_density_integrates_to_one(name: str, num_probes: int) -> None:
    """6σ beyond the last node leave out 2e-9; the trapezoid rule with h ≤ σ adds at most 5e-9 (see covering_grid)."""
    quadrature = lanczos_quadrature(Dense(with_spectrum(SPECTRA[name])), 10, num_probes)
    for factor in (1.0, 0.01):
        bandwidth = factor * default_bandwidth(quadrature, 10)
        grid = covering_grid(quadrature, bandwidth, 2)
        density, standard_error = quadrature.density(grid, bandwidth)
        assert np.diff(grid).max() <= bandwidth * (1 + 1e-9)
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-8)
        assert (density >= 0).all()
        assert np.isnan(standard_error).all() == (num_probes == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_a_model(case: Cases, kind: str) -> None:
    """Products with the model are those with its dense Hessian, on which more probes can be afforded."""
    tried = case(kind)
    result = spectral_density(tried.model, tried.batches, 8, 3, seed=4)
    same = lanczos_quadrature(Dense(tried.hessian), 8, 3, seed=4)
    norm = float(tried.eigenvalues.abs().max())
    np.testing.assert_allclose(result.quadrature.nodes, same.nodes, rtol=1e-8, atol=1e-8 * norm)
    np.testing.assert_allclose(result.quadrature.weights, same.weights, rtol=1e-6, atol=1e-8)
    assert np.trapezoid(result.density, result.grid) == pytest.approx(1, abs=1e-8)
    many = lanczos_quadrature(Dense(tried.hessian), 24, 60)
    expected = tried.eigenvalues.numpy()
    for order in (1, 2, 3):
        moment = many.moment(order)
        assert abs(moment.value - (expected**order).mean()) <= 4 * moment.standard_error
    assert many.largest == pytest.approx(expected.max(), rel=1e-6)
    assert many.smallest == pytest.approx(expected.min(), rel=1e-6)
    assert many.moment(2).value == pytest.approx(float(tried.hessian.square().mean() * len(expected)), rel=0.5)


def test_the_result_says_what_it_is(case: Cases) -> None:
    tried = case("causal")
    result = spectral_density(tried.model, iter(tried.batches), 4, 2, seed=5, num_points=30)
    operator = CurvatureOperator(tried.model, tried.batches)
    assert (result.num_steps, result.num_probes, result.num_matvecs, result.seed) == (4, 2, 8, 5)
    assert (result.num_examples, result.num_labels, result.num_parameters) == (6, operator.num_labels, 232)
    assert (result.space, result.loss) == ("adapter", operator.loss)
    assert result.bandwidth == (result.quadrature.largest - result.quadrature.smallest) / 4
    assert result.grid.shape == result.density.shape == result.standard_error.shape == (30,)
    assert result.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 6  # type: ignore[misc]


def test_a_grid_and_a_bandwidth_of_ones_own(case: Cases) -> None:
    tried = case("causal")
    grid = np.linspace(-0.1, 0.1, 7)
    result = spectral_density(tried.model, tried.batches, 4, 2, grid=grid, bandwidth=0.05, product="rebuild")
    assert isinstance(result, DensityResult)
    assert result.bandwidth == 0.05
    assert np.array_equal(result.grid, grid)
    nodes, weights = result.quadrature.nodes, result.quadrature.weights
    samples = np.array([
        [np.sum(w * np.exp(-((x - t) ** 2) / (2 * 0.05**2))) / (0.05 * np.sqrt(2 * np.pi)) for x in grid]
        for t, w in zip(nodes, weights, strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(result.density, samples.mean(axis=0), rtol=1e-12)
    # The standard error of a mean of two is half their difference.
    np.testing.assert_allclose(result.standard_error, np.abs(samples[0] - samples[1]) / 2, rtol=1e-9)
    means = (nodes * weights).sum(axis=1)
    assert result.quadrature.moment(1).standard_error == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-9)


def test_the_seed_decides_and_global_generators_are_left_alone() -> None:
    operator = Dense(with_spectrum(BULK))
    state = torch.get_rng_state()
    same, again, other = (lanczos_quadrature(operator, 5, 2, seed).nodes for seed in (0, 0, 1))
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    lanczos_quadrature(Dense(with_spectrum(BULK)), 5, 2)
    assert capsys.readouterr().err == ""
    lanczos_quadrature(Dense(with_spectrum(BULK)), 5, 2, progress=True)
    assert "density" in capsys.readouterr().err


def test_a_product_that_is_not_finite_is_refused() -> None:
    broken = with_spectrum(BULK)
    broken[3, 3] = torch.inf
    with pytest.raises(NonFiniteLossError, match="not finite"):
        lanczos_quadrature(Dense(broken))


def test_a_matrix_that_is_not_symmetric_is_refused() -> None:
    skewed = with_spectrum(BULK)
    skewed[0] += 0.5
    with pytest.raises(LandscapeError, match="not symmetric"):
        lanczos_quadrature(Dense(skewed))


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"num_steps": 0}, "num_steps: 0; allowed: at least 1"),
    ({"num_probes": 0}, "num_probes: 0; allowed: at least 1"),
    ({"bandwidth": 0.0}, "bandwidth: 0.0; allowed: positive and finite"),
    ({"bandwidth": float("nan")}, "bandwidth: nan; allowed"),
    ({"num_points": 1}, "num_points: 1; allowed: at least 2"),
    ({"grid": np.zeros((2, 2))}, r"grid: shape \(2, 2\); needed: one axis of finite, strictly ascending numbers"),
    ({"grid": np.zeros(0)}, r"grid: shape \(0,\); needed"),
    ({"grid": np.array([0.0, 0.0])}, r"grid: shape \(2,\); needed"),
    ({"grid": np.array([0.0, np.nan])}, r"grid: shape \(2,\); needed"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spectral_density(None, [], **arguments)  # type: ignore[arg-type]  # refused before the model is looked at


def test_moments_and_grids_out_of_reach() -> None:
    quadrature = lanczos_quadrature(Dense(with_spectrum(BULK)), 4, 2)
    assert quadrature.moment(7).standard_error > 0
    for order in (-1, 8):
        with pytest.raises(UsageError, match=rf"order: {order}; allowed: 0 to 2·num_steps - 1 = 7"):
            quadrature.moment(order)
    with pytest.raises(
        UsageError, match=r"bandwidth: 1e-09; allowed on a grid of this spectrum: at least about 1\.9e-06"
    ):
        covering_grid(quadrature, 1e-9, 1000)
