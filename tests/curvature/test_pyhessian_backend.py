from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.curvature import NonFiniteLossError
from landscape.curvature.pyhessian_backend import pyhessian_density, pyhessian_top_eigenvalues, pyhessian_trace
from landscape.errors import LandscapeError, UsageError
from tests.curvature.conftest import Case, ragged, tiny
from tests.curvature.workload import workload
from tests.small_models import KINDS, batch, lora_model

Cases = Callable[[str], Case]

QUESTIONS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "eigenvalues": lambda model, batches: pyhessian_top_eigenvalues(model, batches, max_matvecs=6),
    "trace": lambda model, batches: pyhessian_trace(model, batches, 3),
    "density": lambda model, batches: pyhessian_density(model, batches, 4, 2),
}
every_question = pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS.keys())


@pytest.fixture
def installed() -> None:
    """The optional extra; development installs have it."""
    pytest.importorskip("pyhessian.hessian", reason="pip install 'lora-landscape[pyhessian]'")


needs_pyhessian = pytest.mark.usefixtures("installed")


def signs(model: nn.Module, count: int, seed: int) -> Tensor:
    """The vectors (count, n) that PyHessian draws from the global generator for its estimates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [
            torch.cat([torch.randint_like(p, high=2).reshape(-1) for p in model.parameters() if p.requires_grad])
            for _ in range(count)
        ]
    return 2 * torch.stack(drawn) - 1


@needs_pyhessian
@pytest.mark.parametrize("kind", KINDS)
def test_the_eigenvalue_of_largest_magnitude(case: Cases, kind: str) -> None:
    tried = case(kind)
    result = pyhessian_top_eigenvalues(tried.model, tried.batches, tol=1e-10, max_matvecs=4000)
    eigenvalues = tried.eigenvalues.numpy()
    truth = eigenvalues[np.abs(eigenvalues).argmax()]
    # It divides unit vectors by 1 + 1e-6 before it multiplies them, which makes every value 2e-6 too small.
    assert result.values[0] == pytest.approx((1 - 2e-6) * truth, rel=1e-8)
    assert result.num_parameters == len(tried.hessian)


@needs_pyhessian
def test_residuals_are_those_of_what_it_returns(case: Cases) -> None:
    tried = case("causal")
    result = pyhessian_top_eigenvalues(tried.model, tried.batches, 2, tol=1e-2, max_matvecs=20)
    assert result.vectors is not None
    vectors = result.vectors.numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-12)
    left = np.linalg.norm(vectors @ tried.hessian.numpy() - result.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(result.residuals, left / np.abs(result.values), rtol=1e-8)
    # After so few iterations these are no eigenvectors, and the result says so.
    assert (result.residuals > 1e-2).any()
    assert not result.converged
    assert result.num_matvecs <= 20
    assert (result.which, result.space, result.product, result.tol) == ("magnitude", "adapter", "rebuild", 1e-2)


@needs_pyhessian
@pytest.mark.parametrize("kind", KINDS)
def test_trace(case: Cases, kind: str) -> None:
    tried = case(kind)
    result = pyhessian_trace(tried.model, tried.batches, 40, seed=3)
    probes = signs(tried.model, 40, seed=3)
    samples = ((probes @ tried.hessian) * probes).sum(dim=1).numpy()
    assert result.value == pytest.approx(samples.mean(), rel=1e-8)
    assert result.standard_error == pytest.approx(samples.std(ddof=1) / np.sqrt(40), rel=1e-8)
    assert abs(result.value - float(tried.hessian.trace())) <= 4 * result.standard_error
    assert (result.num_matvecs, result.num_probes, result.method) == (40, 40, "hutchinson")


@needs_pyhessian
def test_the_trace_does_not_stop_where_the_running_mean_is_negative(case: Cases) -> None:
    tried = case("causal")
    negative = next(seed for seed in range(50) if float(probe_product(tried, seed)) < 0)
    assert pyhessian_trace(tried.model, tried.batches, 5, seed=negative).num_matvecs == 5


def probe_product(tried: Case, seed: int) -> Tensor:
    (probe,) = signs(tried.model, 1, seed)
    return probe @ tried.hessian @ probe


@needs_pyhessian
@pytest.mark.parametrize("kind", KINDS)
def test_density_moments(case: Cases, kind: str) -> None:
    tried = case(kind)
    result = pyhessian_density(tried.model, tried.batches, 8, 3, seed=4)
    quadrature, probes = result.quadrature, signs(tried.model, 3, seed=4)
    # Lanczos quadrature is exact for polynomials up to degree 15; PyHessian keeps its tridiagonal matrix in float32.
    powers = probes
    for order in range(5):
        expected = (probes * powers).sum(dim=1).numpy() / len(tried.hessian)
        bound = float(tried.eigenvalues.abs().max()) ** order
        moments = (quadrature.weights * quadrature.nodes**order).sum(axis=1)
        np.testing.assert_allclose(moments, expected, rtol=1e-4, atol=1e-5 * bound)
        powers = powers @ tried.hessian
    np.testing.assert_allclose(quadrature.weights.sum(axis=1), 1, rtol=1e-5)
    assert quadrature.nodes.shape == (3, 8)
    assert result.num_matvecs == 24
    assert np.trapezoid(result.density, result.grid) == pytest.approx(1, abs=1e-3)


@needs_pyhessian
@every_question
def test_one_batch_and_many_weigh_alike(case: Cases, ask: Callable[..., Any]) -> None:
    """With several batches PyHessian takes another path, and it weights them by their lengths."""
    tried = case("seq2seq")
    (whole,) = [batch("seq2seq", 4, 9)]
    parts = [{key: value[:1] for key, value in whole.items()}, {key: value[1:] for key, value in whole.items()}]
    first, second = ask(tried.model, [whole]), ask(tried.model, parts)
    field = {"EigenResult": "values", "TraceResult": "value", "DensityResult": "density"}[type(first).__name__]
    np.testing.assert_allclose(getattr(first, field), getattr(second, field), rtol=1e-4, atol=1e-6)
    assert first.num_matvecs == second.num_matvecs


@needs_pyhessian
@every_question
def test_sdpa_a_parameter_without_influence_and_training_mode(ask: Callable[..., Any]) -> None:
    model = lora_model("causal", torch.float32, attn_implementation="sdpa", dropout=0.3).train()
    model.unused = nn.Parameter(torch.ones(5))
    result = ask(model, ragged("causal"))
    assert result.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def state_of(model: Any) -> dict[str, Any]:
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "identity": {name: (id(p), id(p.grad)) for name, p in model.named_parameters()},
        "grad": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attention": model.config._attn_implementation,
        "rng": torch.get_rng_state(),
        "module": {name: value for name, value in vars(sys.modules["pyhessian.hessian"]).items() if name[0] != "_"},
        "class": dict(vars(sys.modules["pyhessian.hessian"].hessian)),
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """A model with leftover gradients, modes of its own and a generator in the middle of its sequence."""
    model.train()
    next(model.modules()).training = False
    for position, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.grad = torch.full_like(parameter, 0.5) if position % 2 else None
    before = state_of(model)
    yield
    assert same(before, state_of(model))


@needs_pyhessian
@every_question
def test_the_model_is_left_as_found(ask: Callable[..., Any]) -> None:
    model = lora_model("causal", torch.float32, dropout=0.1)
    with untouched(model):
        first = ask(model, ragged("causal"))
        second = ask(model, ragged("causal"))
    assert first.loss == second.loss


@needs_pyhessian
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("products", [0, 2])
def test_the_model_is_left_as_found_after_an_exception(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], products: int
) -> None:
    module = sys.modules["pyhessian.hessian"]
    original, count = module.hessian_vector_product, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > products:
            raise error
        return original(*arguments)

    monkeypatch.setattr(module, "hessian_vector_product", interrupted)
    model = lora_model("causal", torch.float32)
    with untouched(model), pytest.raises(error):
        pyhessian_trace(model, batch("causal"), 5)


@needs_pyhessian
def test_its_own_failures_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(sys.modules["pyhessian.hessian"], "hessian_vector_product", fails)
    with pytest.raises(LandscapeError, match=r"^PyHessian failed: no kernel$"):
        pyhessian_trace(tiny("causal"), batch("causal"), 2)


@needs_pyhessian
def test_the_workload_whose_largest_magnitude_is_negative() -> None:
    model, whole = workload()
    result = pyhessian_top_eigenvalues(model, {key: value[:4, :32] for key, value in whole.items()})
    # Its tolerance of 1e-3 is a change between iterations; the error was seen to be up to 1 %.
    assert result.values[0] == pytest.approx(-3.66544, rel=2e-2)
    assert not result.converged
    assert result.residuals[0] > 1e-3


def diverged() -> nn.Module:
    model = tiny("causal")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    return model


REFUSED_ARGUMENTS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (pyhessian_top_eigenvalues, {"k": 0}, "k: 0; allowed: at least 1"),
    (pyhessian_top_eigenvalues, {"k": 233, "max_matvecs": 500}, "k: 233; allowed: 1 to the number of parameters, 232"),
    (pyhessian_top_eigenvalues, {"tol": 1.0}, "tol: 1.0; allowed: greater than 0"),
    (pyhessian_top_eigenvalues, {"k": 3, "max_matvecs": 5}, "max_matvecs: 5; allowed: at least 6"),
    (pyhessian_trace, {"num_probes": 1}, "num_probes: 1; allowed: at least 2"),
    (pyhessian_density, {"num_probes": 0}, "num_probes: 0; allowed: at least 1"),
    (pyhessian_density, {"num_steps": 0}, "num_steps: 0; allowed: at least 1"),
    (pyhessian_density, {"num_points": 0}, "num_points: 0; allowed: at least 1"),
    (pyhessian_density, {"bandwidth": 0.0}, "bandwidth: 0.0; allowed: greater than 0"),
    (pyhessian_density, {"num_steps": 233}, "num_steps: 233; allowed: at most the number of parameters, 232"),
]


@needs_pyhessian
@pytest.mark.parametrize(("function", "arguments", "message"), REFUSED_ARGUMENTS)
def test_arguments_out_of_range(function: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        function(tiny("causal"), ragged("causal"), **arguments)


REFUSED_MODELS: dict[str, tuple[Callable[[], nn.Module], Any, type[Exception], str]] = {
    "no batches": (lambda: tiny("causal"), [], UsageError, "batches: empty"),
    "frozen": (lambda: tiny("causal").requires_grad_(False), None, UsageError, "no parameter requires a gradient"),
    "diverged": (diverged, None, NonFiniteLossError, "the loss is nan"),
    "device": (lambda: tiny("causal").to("meta"), None, UsageError, "on one CPU or CUDA device; this one is on meta"),
}


@needs_pyhessian
@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_what_cannot_be_measured_is_refused(name: str) -> None:
    make, batches, error, message = REFUSED_MODELS[name]
    with pytest.raises(error, match=message):
        pyhessian_trace(make(), ragged("causal") if batches is None else batches)


@every_question
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, ask: Callable[..., Any]) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyhessian"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    with pytest.raises(UsageError, match=r"PyHessian is not installed; pip install 'lora-landscape\[pyhessian\]'"):
        ask(tiny("causal"), ragged("causal"))


def test_nothing_imports_it_unless_asked() -> None:
    code = (
        "import sys, landscape.curvature.pyhessian_backend, landscape.analysis; assert 'pyhessian' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
