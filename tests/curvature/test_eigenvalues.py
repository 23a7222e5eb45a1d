from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from landscape.curvature import CurvatureOperator, EigenResult, NonFiniteLossError, top_eigenvalues
from landscape.errors import LandscapeError, UsageError
from tests.curvature.conftest import Case, ragged, tiny
from tests.curvature.workload import TOP, workload
from tests.small_models import KINDS, batch

Cases = Callable[[str], Case]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_eigenvalues_are_those_of_the_dense_hessian(case: Cases, kind: str, k: int) -> None:
    tried = case(kind)
    result = top_eigenvalues(tried.model, tried.batches, k, tol=1e-6, return_vectors=True)
    np.testing.assert_allclose(result.values, tried.eigenvalues[:k], rtol=1e-8)
    assert result.converged
    assert (result.residuals <= 1e-6).all()
    assert result.vectors is not None
    expected = result.vectors.T * torch.from_numpy(result.values)
    torch.testing.assert_close(tried.hessian @ result.vectors.T, expected, rtol=0, atol=1e-6 * result.values[0])


def test_the_result_says_what_it_is(case: Cases) -> None:
    tried = case("causal")
    result = top_eigenvalues(tried.model, tried.batches, tol=1e-2, seed=5)
    operator = CurvatureOperator(tried.model, tried.batches)
    assert (result.num_examples, result.num_labels, result.num_parameters) == (6, operator.num_labels, 232)
    assert (result.space, result.tol, result.seed, result.vectors) == ("adapter", 1e-2, 5, None)
    assert result.loss == operator.loss
    assert result.values.dtype == result.residuals.dtype == np.float64
    assert result.seconds > 0
    assert result.next_start.shape == (232,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.tol = 0.5  # type: ignore[misc]


def test_one_batch_at_a_time_or_all_together_with_or_without_graphs(case: Cases) -> None:
    tried = case("seq2seq")
    results = [top_eigenvalues(tried.model, iter(tried.batches), product=product) for product in ("reuse", "rebuild")]
    assert np.array_equal(results[0].values, results[1].values)


def test_measuring_twice_is_measuring_once(case: Cases) -> None:
    tried = case("classification")
    first, second = (top_eigenvalues(tried.model, tried.batches, 2) for _ in range(2))
    assert np.array_equal(first.values, second.values)
    assert first.num_matvecs == second.num_matvecs
    assert all(parameter.grad is None for parameter in tried.model.parameters())


def test_a_warm_start_finds_the_same(case: Cases) -> None:
    tried = case("causal")
    cold = top_eigenvalues(tried.model, tried.batches)
    warm = top_eigenvalues(tried.model, tried.batches, seed=1, start=cold.next_start)
    assert warm.values[0] == pytest.approx(float(tried.eigenvalues[0]), rel=1e-5)
    assert warm.converged


def test_more_eigenvalues_than_parameters() -> None:
    with pytest.raises(UsageError, match="k: 233; allowed: 1 to the number of parameters, 232"):
        top_eigenvalues(tiny("causal"), ragged("causal"), 233)


def test_all_eigenvalues_of_a_small_space(case: Cases) -> None:
    tried = case("classification")
    names = [name for name, p in tried.model.named_parameters() if p.requires_grad]
    frozen = [p for name, p in tried.model.named_parameters() if p.requires_grad and "classifier" not in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        size = sum(p.numel() for p in tried.model.parameters() if p.requires_grad)
        result = top_eigenvalues(tried.model, tried.batches, size)
        flags = [torch.full((p.numel(),), "classifier" in name) for name, p in tried.model.named_parameters()
                 if name in names]  # fmt: skip
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    kept = torch.cat(flags)
    expected = torch.linalg.eigvalsh(tried.hessian[kept][:, kept]).flip(0)
    np.testing.assert_allclose(result.values, expected, rtol=1e-8, atol=1e-12)
    assert result.converged


class Hidden(torch.autograd.Function):
    """The identity, whose backward pass hides from autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        with torch.no_grad():
            return gradient.clone()


def test_a_kernel_that_loses_part_of_the_second_derivative_is_noticed() -> None:
    model = tiny("causal")
    model.get_base_model().model.layers[0].register_forward_hook(lambda module, inputs, output: Hidden.apply(output))
    with pytest.raises(LandscapeError, match="the Hessian is not symmetric"):
        top_eigenvalues(model, ragged("causal"), tol=1e-6)


def test_an_infinite_loss_is_told_apart_from_misuse() -> None:
    model = tiny("causal")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(torch.inf)
    with pytest.raises(NonFiniteLossError):
        top_eigenvalues(model, batch("causal"))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_workload_whose_largest_magnitude_is_negative(seed: int) -> None:
    model, whole = workload()
    result = top_eigenvalues(model, {key: value[:4, :32] for key, value in whole.items()}, seed=seed)
    check(result, TOP[4, 32])
    assert result.num_labels == 4 * 31


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("shape", TOP)
def test_the_workload_over_seeds(shape: tuple[int, int], seed: int) -> None:
    model, whole = workload()
    rows, columns = shape
    check(top_eigenvalues(model, {key: value[:rows, :columns] for key, value in whole.items()}, seed=seed), TOP[shape])


def check(result: EigenResult, truth: float) -> None:
    assert result.converged
    assert result.residuals[0] <= 1e-3
    assert result.values[0] == pytest.approx(truth, rel=1e-4)
    assert result.num_matvecs <= 45
