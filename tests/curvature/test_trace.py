from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from landscape.curvature.layers import group_coordinates
from landscape.curvature.operators import CurvatureOperator
from landscape.curvature.trace import TraceEstimate, hutchinson_trace, hutchpp_trace, random_signs, trace
from landscape.errors import UsageError
from landscape.measurement import NonFiniteLossError
from tests.curvature.conftest import Case
from tests.curvature.dense import SPECTRA, Dense, with_spectrum
from tests.small_models import KINDS

Cases = Callable[[str], Case]
ESTIMATORS = {"hutchinson": hutchinson_trace, "hutch++": hutchpp_trace}
HALVES = {"even": [slice(0, 10), slice(20, 30)], "odd": [slice(10, 20), slice(30, 60)]}


def z_score(estimate: Any, expected: float, rounding: float = 0.0) -> float:
    return (estimate.value - expected) / (estimate.standard_error + rounding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ESTIMATORS)
def test_the_trace_lies_within_four_standard_errors(method: str, name: str, dtype: torch.dtype) -> None:
    matrix = with_spectrum(SPECTRA[name])
    rounding = 100 * torch.finfo(dtype).eps * float(np.abs(SPECTRA[name]).sum())
    for seed in range(5):
        operator = Dense(matrix.to(dtype))
        estimate = ESTIMATORS[method](operator, 60, seed)
        assert abs(estimate.value - float(SPECTRA[name].sum())) <= 4 * estimate.standard_error + rounding
        assert estimate.num_matvecs == operator.products <= 60
        assert estimate.layers == {}


CALIBRATED = [
    ("hutchinson", "negative end dominates", 40),
    ("hutchinson", "bulk", 40),
    ("hutch++", "negative end dominates", 60),
    ("hutch++", "bulk", 60),
]


@pytest.mark.parametrize(("method", "name", "num_probes"), CALIBRATED)
def test_the_standard_error_is_calibrated(method: str, name: str, num_probes: int) -> None:
    """Over 200 seeds the errors in units of their standard errors are centered and of variance 1.

    With 20 or 40 samples behind each standard error they follow Student's t, of variance up to 19/17 = 1.12. Over 200
    seeds their mean has a standard error of 0.07 and their variance one of 0.13.
    """
    operator = Dense(with_spectrum(SPECTRA[name]))
    expected = float(SPECTRA[name].sum())
    scores = np.array([z_score(ESTIMATORS[method](operator, num_probes, seed), expected) for seed in range(200)])
    assert abs(scores.mean()) < 4 * 0.07
    assert 1 - 4 * 0.1 < scores.var() < 1.12 + 4 * 0.13
    assert (np.abs(scores) < 4.5).all()


def test_the_variance_of_a_sample_is_that_of_the_theory() -> None:
    """2·Σ_{i≠j} H_ij², which makes a diagonal matrix exact."""
    matrix = with_spectrum(SPECTRA["bulk"])
    estimate = hutchinson_trace(Dense(matrix), 4000)
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    # The standard deviation of 4,000 nearly normal samples is known to 1.1 %.
    assert estimate.standard_error * 4000**0.5 == pytest.approx(
        float((2 * off_diagonal.square().sum()).sqrt()), rel=0.05
    )
    diagonal = hutchinson_trace(Dense(torch.diag(matrix.diagonal())), 3)
    assert diagonal.value == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert diagonal.standard_error < 1e-12


def test_hutchpp_is_the_formula_of_the_paper() -> None:
    """tr QᵀHQ + mean gᵀ(I - QQᵀ)H(I - QQᵀ)g with Q an orthonormal basis of H·S; 4 columns of S, 4 of g."""
    matrix = with_spectrum(SPECTRA["bulk"])
    estimate = hutchpp_trace(Dense(matrix), 12, seed=3)
    generator = torch.Generator().manual_seed(3)
    signs = torch.stack([random_signs(Dense(matrix), generator) for _ in range(8)], dim=1)
    left, _, _ = torch.linalg.svd(matrix @ signs[:, :4], full_matrices=False)
    rest = signs[:, 4:] - left @ left.T @ signs[:, 4:]
    samples = (rest * (matrix @ rest)).sum(dim=0)
    assert estimate.value == pytest.approx(float((left.T @ matrix @ left).trace() + samples.mean()), rel=1e-10)
    assert estimate.standard_error == pytest.approx(float(samples.std() / 2), rel=1e-10)


@pytest.mark.parametrize("name", ["rank five", "repeated", "zero", "one by one", "two by two"])
def test_hutchpp_is_exact_where_its_sketch_sees_everything(name: str) -> None:
    """A sketch of 20 random products spans a range of rank 5."""
    estimate = hutchpp_trace(Dense(with_spectrum(SPECTRA[name])), 60, seed=3)
    scale = float(np.abs(SPECTRA[name]).sum())
    assert estimate.value == pytest.approx(float(SPECTRA[name].sum()), rel=1e-10, abs=1e-10 * scale)
    assert estimate.standard_error <= 1e-10 * scale


def test_hutchpp_stops_where_its_sketch_is_the_whole_space() -> None:
    operator = Dense(with_spectrum([3.0, -1.0, 0.5]))
    estimate = hutchpp_trace(operator, 100)
    assert (estimate.num_matvecs, operator.products, estimate.standard_error) == (6, 6, 0.0)
    assert estimate.value == pytest.approx(2.5, rel=1e-12)


def test_hutchpp_beats_hutchinson_on_a_decaying_spectrum() -> None:
    """At equal products, by more than 5 times in root mean square over 50 seeds, as its standard errors say too."""
    operator = Dense(with_spectrum(SPECTRA["decaying"]))
    expected = float(SPECTRA["decaying"].sum())
    errors, claimed = {}, {}
    for method, estimator in ESTIMATORS.items():
        estimates = [estimator(operator, 60, seed) for seed in range(50)]
        errors[method] = np.sqrt(np.mean([(estimate.value - expected) ** 2 for estimate in estimates]))
        claimed[method] = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert errors["hutch++"] < errors["hutchinson"] / 5
    assert claimed["hutch++"] < claimed["hutchinson"] / 5


@pytest.mark.parametrize("method", ESTIMATORS)
def test_traces_of_sets_of_coordinates(method: str) -> None:
    matrix = with_spectrum(SPECTRA["bulk"])
    plain = ESTIMATORS[method](Dense(matrix), 30, 0)
    scores = {name: [] for name in HALVES}
    for seed in range(100):
        operator = Dense(matrix)
        estimate = ESTIMATORS[method](operator, 30, seed, groups=HALVES)
        assert operator.products == 30
        assert sum(layer.value for layer in estimate.layers.values()) == pytest.approx(estimate.value, abs=1e-12)
        if seed == 0:
            assert estimate.value == pytest.approx(plain.value, rel=1e-12)
            assert estimate.standard_error == pytest.approx(plain.standard_error, rel=1e-12)
        for name, slices in HALVES.items():
            expected = sum(float(matrix.diagonal()[part].sum()) for part in slices)
            scores[name].append(z_score(estimate.layers[name], expected))
    for name in HALVES:
        # 10 samples behind each standard error of Hutch++: Student's t with 9 degrees of freedom has variance 1.29,
        # which 100 seeds show to within 0.26.
        assert abs(np.mean(scores[name])) < 4 * 0.11
        assert 1 - 4 * 0.14 < np.var(scores[name]) < 1.29 + 4 * 0.26


@pytest.mark.parametrize("method", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_of_a_model(case: Cases, kind: str, method: str) -> None:
    """Products with the model are those with its dense Hessian, on which more seeds can be afforded."""
    tried = case(kind)
    result = trace(tried.model, tried.batches, 8, seed=1, method=method, group="module")  # type: ignore[arg-type]
    operator = CurvatureOperator(tried.model, tried.batches)
    groups = group_coordinates(operator.names, operator.sizes)
    same = ESTIMATORS[method](Dense(tried.hessian), 8, 1, groups=groups)
    scale = float(tried.eigenvalues.abs().sum())
    for own, expected in [(result, same), *((result.layers[name], same.layers[name]) for name in groups)]:
        assert own.value == pytest.approx(expected.value, rel=1e-8, abs=1e-10 * scale)
        assert own.standard_error == pytest.approx(expected.standard_error, rel=1e-8, abs=1e-10 * scale)
    assert result.num_matvecs == 8
    for seed in range(5):
        estimate = ESTIMATORS[method](Dense(tried.hessian), 120, seed, groups=groups)
        assert abs(z_score(estimate, float(tried.eigenvalues.sum()))) < 4
        for name, slices in groups.items():
            part = sum(float(tried.hessian.diagonal()[piece].sum()) for piece in slices)
            assert abs(z_score(estimate.layers[name], part, 1e-10 * scale)) < 4.5  # among some 70 layers and seeds


def test_the_result_says_what_it_is(case: Cases) -> None:
    tried = case("causal")
    result = trace(tried.model, iter(tried.batches), 3, seed=5)
    operator = CurvatureOperator(tried.model, tried.batches)
    signs = [random_signs(operator, generator) for generator in [torch.Generator().manual_seed(5)] for _ in range(3)]
    samples = np.array([float(probe @ tried.hessian @ probe) for probe in signs])
    assert result.value == pytest.approx(samples.mean(), rel=1e-8)
    assert result.standard_error == pytest.approx(samples.std(ddof=1) / 3**0.5, rel=1e-8)
    assert (result.num_probes, result.num_matvecs, result.method, result.seed) == (3, 3, "hutchinson", 5)
    assert (result.num_examples, result.num_labels, result.num_parameters) == (6, operator.num_labels, 232)
    assert (result.space, result.loss, result.layers) == ("adapter", operator.loss, {})
    assert result.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 6  # type: ignore[misc]


def test_options_reach_the_operator(case: Cases) -> None:
    tried = case("causal")
    merged = trace(tried.model, tried.batches, 2, space="merged")
    assert merged.space == "merged"
    assert merged.num_parameters > 232
    rebuilt = trace(tried.model, tried.batches, 2, product="rebuild")
    assert rebuilt.value == pytest.approx(trace(tried.model, tried.batches, 2).value, rel=1e-10)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_the_seed_decides_and_global_generators_are_left_alone(method: str) -> None:
    operator = Dense(with_spectrum(SPECTRA["bulk"]))
    state = torch.get_rng_state()
    same, again, other = (ESTIMATORS[method](operator, 20, seed) for seed in (0, 0, 1))
    assert same == again != other
    assert isinstance(same, TraceEstimate)
    assert torch.equal(torch.get_rng_state(), state)


def test_signs_are_fair_and_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.stack([random_signs(Dense(torch.eye(50)), generator) for _ in range(4000)])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    covariance = signs.T @ signs / 4000
    # 1,225 correlations of standard error 0.016; the largest of so many normal ones rarely passes 4.5 times that.
    assert float((covariance - torch.eye(50)).abs().max()) < 5 * 4000**-0.5
    assert float(signs.mean(dim=0).abs().max()) < 4.5 * 4000**-0.5


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    operator = Dense(with_spectrum(SPECTRA["bulk"]))
    hutchpp_trace(operator, 12)
    assert capsys.readouterr().err == ""
    hutchpp_trace(operator, 12, progress=True)
    assert "trace" in capsys.readouterr().err


@pytest.mark.parametrize("method", ESTIMATORS)
def test_a_product_that_is_not_finite_is_refused(method: str) -> None:
    broken = with_spectrum(SPECTRA["bulk"])
    broken[3, 3] = torch.nan
    with pytest.raises(NonFiniteLossError, match="not finite"):
        ESTIMATORS[method](Dense(broken), 10)


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"num_probes": 1}, "num_probes: 1; allowed with hutchinson: at least 2, for a standard error"),
    ({"num_probes": 3, "method": "hutch++"}, r"num_probes: 3; allowed with hutch\+\+: at least 4"),
    (
        {"method": "hutchpp"},
        r"method: 'hutchpp' is not known; allowed: hutch\+\+, hutchinson. Did you mean 'hutch\+\+'",
    ),
    ({"group": "modules"}, "group: 'modules' is not known; allowed: block, module. Did you mean 'module'"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trace(None, [], **arguments)  # type: ignore[arg-type]  # refused before the model is looked at


def test_unknown_space(case: Cases) -> None:
    with pytest.raises(UsageError, match="space: 'adaptor' is not known"):
        trace(case("causal").model, case("causal").batches, space="adaptor")
