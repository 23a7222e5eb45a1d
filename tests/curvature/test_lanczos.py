from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from landscape.curvature.lanczos import lanczos
from landscape.errors import LandscapeError, UsageError
from landscape.measurement import NonFiniteLossError


class Dense:
    """A matrix as an operator that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.products += 1
        assert vector.dtype == self.dtype
        assert float(vector.norm()) == pytest.approx(1, rel=1e-5)
        return self.matrix @ vector


def rotation(size: int) -> Tensor:
    """Orthogonal columns, the eigenvectors of every matrix here."""
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64))[0]


def matrix(eigenvalues: Any) -> Tensor:
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    columns = rotation(len(values))
    return columns @ torch.diag(values) @ columns.T


def bulk(size: int = 120) -> np.ndarray:
    """A symmetric bulk in [-1, 1]."""
    return np.cos(np.linspace(0.1, np.pi - 0.1, size))


SPECTRA: dict[str, np.ndarray] = {
    "bulk": bulk(),
    "outliers": np.r_[9.0, 5.0, 4.5, bulk()],
    "negative end dominates": np.r_[1.3, 1.1, bulk(), -3.4, -3.7, -9.0],
    "all negative": bulk() - 3,
    "all negative, one repeated": np.r_[-1.0, -1.0, bulk() - 4],
    "top repeated": np.r_[2.0, 2.0, 1.5, bulk()],
    "top three times": np.r_[2.0, 2.0, 2.0, bulk()],
    "second repeated": np.r_[3.0, 2.0, 2.0, bulk()],
    "close pair": np.r_[2.0, 1.99, 1.2, bulk()],
    "rank five": np.r_[3.0, 2.0, 1.0, -4.0, -5.0, np.zeros(80)],
    "rank two, repeated": np.r_[1.0, 1.0, np.zeros(80)],
    "negative rank two": np.r_[-1.0, -2.0, np.zeros(80)],
    "identity": np.ones(40),
    "zero": np.zeros(40),
    "tiny scale": 1e-9 * np.r_[5.0, bulk()],
    "huge scale": 1e9 * np.r_[5.0, bulk()],
    "one by one": np.array([-2.0]),
    "two by two": np.array([-2.0, 1.0]),
    "many decades": np.r_[1e6, 1e3, 1.0, np.geomspace(1e-3, 1e-6, 60)],
}


def is_askable(name: str, k: int, dtype: torch.dtype) -> bool:
    """Not more eigenvalues than there are, nor any at the rounding level of the first."""
    return k <= len(SPECTRA[name]) and not (name == "many decades" and k > 1 and dtype == torch.float32)


ASKED = [
    pytest.param(name, k, dtype, id=f"{name}-{k}-{dtype}")
    for name in SPECTRA
    for k in (1, 2, 3)
    for dtype in (torch.float64, torch.float32)
    if is_askable(name, k, dtype)
]


@pytest.mark.parametrize(("name", "k", "dtype"), ASKED)
def test_the_largest_eigenvalues_with_their_multiplicity(name: str, k: int, dtype: torch.dtype) -> None:
    expected = np.sort(SPECTRA[name])[::-1][:k]
    dense = matrix(SPECTRA[name])
    operator = Dense(dense.to(dtype))
    result = lanczos(operator, k, seed=1)
    norm = float(np.abs(SPECTRA[name]).max())
    eps = torch.finfo(dtype).eps
    # An eigenvalue is within the residual of the Ritz value; that it is the right one shows in the tighter bound.
    np.testing.assert_allclose(result.values, expected, rtol=1e-4, atol=50 * eps * norm)
    assert result.converged
    assert result.num_matvecs == operator.products
    assert result.values.dtype == np.float64
    true = (dense @ result.vectors.double().T - result.vectors.double().T * torch.from_numpy(result.values)).norm(dim=0)
    np.testing.assert_allclose(true.numpy(), result.residuals, rtol=0.05, atol=100 * eps * norm)
    assert (result.residuals <= np.maximum(1e-3 * np.abs(result.values), 10 * eps * norm)).all()
    gram = result.vectors @ result.vectors.T
    torch.testing.assert_close(gram, torch.eye(k, dtype=dtype), rtol=0, atol=1000 * eps)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", [name for name in SPECTRA if len(SPECTRA[name]) > 20])
def test_a_small_basis_finds_the_same_with_more_products(name: str, k: int) -> None:
    dense = matrix(SPECTRA[name])
    result = lanczos(Dense(dense), k, max_basis=2 * k + 8, max_matvecs=1000)
    norm = float(np.abs(SPECTRA[name]).max())
    np.testing.assert_allclose(result.values, np.sort(SPECTRA[name])[::-1][:k], rtol=1e-4, atol=1e-14 * norm)
    assert result.converged
    true = (dense @ result.vectors.T - result.vectors.T * torch.from_numpy(result.values)).norm(dim=0)
    np.testing.assert_allclose(true.numpy(), result.residuals, rtol=0.05, atol=1e-13 * norm)


def test_restarts_bound_the_memory() -> None:
    dense = matrix(np.r_[2.0, 1.99, bulk()])
    whole, restarted = (lanczos(Dense(dense), tol=1e-8, max_basis=m, max_matvecs=1000) for m in (None, 12))
    assert whole.values[0] == pytest.approx(restarted.values[0], rel=1e-12)
    assert 12 < whole.num_matvecs <= restarted.num_matvecs


def test_an_exact_start_without_noise_needs_few_products() -> None:
    dense = matrix(SPECTRA["outliers"])
    nearby = dense + 1e-3 * matrix(bulk(len(dense)))
    start = lanczos(Dense(dense), tol=1e-6).next_start
    cold, noisy, exact = (
        lanczos(Dense(nearby), **options)
        for options in ({}, {"start": start}, {"start": start, "noise": 0.0})  # type: ignore[arg-type]
    )
    for result in (cold, noisy, exact):
        assert result.values[0] == pytest.approx(float(torch.linalg.eigvalsh(nearby)[-1]), rel=1e-5)
    assert exact.num_matvecs < noisy.num_matvecs <= cold.num_matvecs + 2


@pytest.mark.parametrize("seed", range(6))
def test_least_squares_in_closed_form(seed: int) -> None:
    """The Hessian of ‖Xw - y‖²/2n is XᵀX/n, whose eigenvalues are the squared singular values of X over n."""
    design = np.random.default_rng(seed).standard_normal((60, 25)) * np.linspace(1, 3, 25)
    result = lanczos(Dense(torch.from_numpy(design.T @ design / 60)), 2, seed=seed, tol=1e-8)
    np.testing.assert_allclose(result.values, np.linalg.svd(design, compute_uv=False)[:2] ** 2 / 60, rtol=1e-10)


def eigenvector(position: int, size: int) -> Tensor:
    return rotation(size)[:, position]


STARTS: dict[str, Callable[[int], Tensor]] = {
    "the top eigenvector": lambda n: eigenvector(0, n),
    "the second": lambda n: eigenvector(1, n),
    "orthogonal to the top": lambda n: rotation(n)[:, 1:].sum(dim=1),
    "the lowest": lambda n: eigenvector(n - 1, n),
    "a large one": lambda n: 1e12 * eigenvector(1, n),
    "of another dtype": lambda n: eigenvector(1, n).float(),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("spectrum", ["outliers", "negative end dominates", "rank five", "two by two"])
def test_no_start_locks_the_search(spectrum: str, start: str, seed: int) -> None:
    values = SPECTRA[spectrum]
    order = np.argsort(-values)
    result = lanczos(Dense(matrix(values[order])), seed=seed, start=STARTS[start](len(values)))
    assert result.converged
    assert result.values[0] == pytest.approx(values.max(), rel=1e-4)


def test_a_start_from_the_result_before_saves_products() -> None:
    values = np.r_[3.0, 2.9, 2.5, 2 * bulk(400)]
    before = lanczos(Dense(matrix(values)), seed=0)
    values[:2] = 2.95, 3.05  # the two cross
    cold = [lanczos(Dense(matrix(values)), seed=seed) for seed in range(1, 5)]
    warm = [lanczos(Dense(matrix(values)), seed=seed, start=before.next_start) for seed in range(1, 5)]
    for result in [*cold, *warm]:
        assert result.values[0] == pytest.approx(3.05, rel=1e-5)
    assert sum(result.num_matvecs for result in warm) < sum(result.num_matvecs for result in cold)


def test_a_tighter_tolerance_costs_more_and_is_kept() -> None:
    dense = matrix(SPECTRA["close pair"])
    results = [lanczos(Dense(dense), tol=tol) for tol in (1e-2, 1e-4, 1e-8)]
    counts = [result.num_matvecs for result in results]
    assert counts == sorted(set(counts))
    for result, tol in zip(results, (1e-2, 1e-4, 1e-8), strict=True):
        assert result.residuals[0] <= tol * result.values[0]
    assert results[-1].values[0] == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("max_matvecs", [3, 8])
def test_an_exhausted_budget_is_said(k: int, max_matvecs: int) -> None:
    operator = Dense(matrix(SPECTRA["bulk"]))
    result = lanczos(operator, k, max_matvecs=max_matvecs)
    assert not result.converged
    assert (operator.products, result.num_matvecs, len(result.values)) == (max_matvecs, max_matvecs, k)
    assert (result.residuals > 1e-3 * np.abs(result.values)).any()


def test_an_unfinished_search_for_copies_is_not_converged() -> None:
    dense = matrix(SPECTRA["top repeated"])
    first = lanczos(Dense(dense), 2, tol=1e-2)
    assert first.converged
    cut = lanczos(Dense(dense), 2, tol=1e-2, max_matvecs=first.num_matvecs - 1)
    assert not cut.converged


def test_the_seed_decides_and_global_generators_are_left_alone() -> None:
    dense = matrix(SPECTRA["bulk"])
    before = torch.get_rng_state()
    first, again, other = (lanczos(Dense(dense), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first.values, again.values)
    assert torch.equal(first.next_start, again.next_start)
    assert not np.array_equal(first.values, other.values)


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"k": 0}, "k: 0; allowed: 1 to the number of parameters, 2"),
    ({"k": 3}, "k: 3; allowed: 1 to the number of parameters, 2"),
    ({"tol": 0.0}, "tol: 0.0; allowed: greater than 0 and less than 1"),
    ({"tol": float("nan")}, "tol: nan; allowed"),
    ({"k": 2, "max_matvecs": 1}, "max_matvecs: 1; allowed: at least k = 2"),
    ({"start": torch.ones(3)}, r"start: shape \(3,\); needed: \(2,\)"),
    ({"start": torch.zeros(2)}, "start: must be finite and not zero"),
    ({"start": torch.tensor([torch.nan, 1])}, "start: must be finite and not zero"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lanczos(Dense(matrix([1.0, 2.0])), **arguments)


def test_a_matrix_that_is_not_symmetric_is_refused() -> None:
    skewed = matrix(SPECTRA["bulk"])
    skewed[0] += 0.5
    with pytest.raises(LandscapeError, match="not symmetric"):
        lanczos(Dense(skewed), tol=1e-6)


def test_a_product_that_is_not_finite_is_refused() -> None:
    broken = matrix(SPECTRA["bulk"])
    broken[3, 3] = torch.inf
    with pytest.raises(NonFiniteLossError, match="not finite"):
        lanczos(Dense(broken))
