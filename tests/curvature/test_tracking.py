"""Sharpness along changing parameters: the same numbers as measured one by one, with fewer products."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from landscape.curvature import NonFiniteLossError, SharpnessTracker, adam_preconditioner, top_eigenvalues
from landscape.errors import UsageError
from tests.curvature.conftest import Case, ragged, tiny
from tests.oracles import dense_hessian
from tests.small_models import KINDS


def walk(model: nn.Module, seed: int, size: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"balance": True}, {"space": "merged"}, {"product": "rebuild"}], ids=str)
def test_tracked_values_are_those_measured_alone(kind: str, options: dict) -> None:  # type: ignore[type-arg]
    model = tiny(kind)
    tracker = SharpnessTracker(model, ragged(kind), tol=1e-6, verify_every=3, **options)
    colds, matvecs = [], []
    for step in range(5):
        walk(model, step)
        tracked = tracker.measure()
        alone = top_eigenvalues(model, ragged(kind), tol=1e-6, **options)
        np.testing.assert_allclose(tracked.values, alone.values, rtol=1e-8)
        assert tracked.loss == pytest.approx(alone.loss, rel=1e-12)
        assert tracked.converged
        colds.append(tracked.cold)
        matvecs.append((tracked.num_matvecs, alone.num_matvecs))
    assert colds == [True, False, False, True, False]
    warm = [pair for pair, cold in zip(matvecs, colds, strict=True) if not cold]
    assert sum(tracked for tracked, _ in warm) < sum(alone for _, alone in warm)


def test_a_rival_that_grows_up_unseen_is_found_by_the_next_cold_search() -> None:
    """Blocks that never mix: a start in one of them sees nothing of the other."""
    model = Blocks()
    batches = [{"input_ids": torch.ones(1, 1), "labels": torch.ones(1, 1, dtype=torch.long)}]
    tracker = SharpnessTracker(model, batches, verify_every=3)
    first = tracker.measure()
    with torch.no_grad():
        model.second.mul_(3)
    found = [tracker.measure() for _ in range(3)]
    truth = float(top_eigenvalues(model, batches).values[0])
    assert truth > 2 * first.values[0]
    assert found[-1].cold
    assert found[-1].values[0] == pytest.approx(truth, rel=1e-6)


class Blocks(nn.Module):
    """A sum of two losses, each of its own parameters: softplus of a sum of squares."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.config = type("Config", (), {"is_encoder_decoder": True, "architectures": []})()
        self.first = nn.Parameter(torch.randn(20, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(20, generator=generator, dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> object:
        weights = torch.linspace(0.5, 1, 20, dtype=torch.float64)
        score = (weights * self.first**2).sum() / 20 + (weights * self.second**4).sum() / 20
        logits = torch.stack([score, torch.zeros_like(score)]).view(1, 1, 2)
        return type("Output", (), {"logits": logits})()


def test_smallest_eigenvalues(case: object) -> None:
    tried: Case = case("causal")  # type: ignore[operator]
    result = top_eigenvalues(tried.model, tried.batches, 2, which="smallest", tol=1e-6)
    np.testing.assert_allclose(result.values, tried.eigenvalues.flip(0)[:2], rtol=1e-8)
    assert result.which == "smallest"


def test_preconditioned_eigenvalues_are_those_of_the_scaled_matrix() -> None:
    model = tiny("causal")
    hessian = dense_hessian(model, ragged("causal"))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(3)
    moments = {name: torch.rand(p.shape, generator=generator, dtype=torch.float64) for name, p in named.items()}
    scale = adam_preconditioner(moments, list(named), step=7, learning_rate=1e-2).scale
    tracker = SharpnessTracker(model, ragged("causal"), tol=1e-6)
    result = tracker.measure(preconditioner=scale)
    root = scale.sqrt()
    expected = torch.linalg.eigvalsh(root[:, None] * hessian * root[None])[-1]
    assert result.values[0] == pytest.approx(float(expected), rel=1e-8)
    assert result.space == "preconditioned"
    with pytest.raises(UsageError, match="preconditioner: given with space 'merged'"):
        top_eigenvalues(model, ragged("causal"), space="merged", preconditioner=scale)


def test_a_diverged_measurement_does_not_spoil_the_next() -> None:
    model = tiny("causal")
    tracker = SharpnessTracker(model, ragged("causal"))
    before = tracker.measure()
    saved = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    with pytest.raises(NonFiniteLossError):
        tracker.measure()
    model.load_state_dict(saved)
    assert tracker.measure().values[0] == pytest.approx(before.values[0], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "top"}, "which: 'top' is not known; allowed: largest, smallest"),
        ({"verify_every": 0}, "verify_every: 0; allowed: at least 1"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=message):
        SharpnessTracker(tiny("causal"), ragged("causal"), **options)


def test_a_search_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.curvature.eigenvalues.free_bytes", lambda device: 10_000)
    with pytest.raises(UsageError, match="needs 16 vectors of 1,856 bytes, and 10,000 are free"):
        top_eigenvalues(tiny("causal"), ragged("causal"))
    monkeypatch.setattr("landscape.curvature.eigenvalues.free_bytes", lambda device: 50_000)
    result = top_eigenvalues(tiny("causal"), ragged("causal"), tol=1e-6)
    assert result.values[0] == pytest.approx(
        float(top_eigenvalues(tiny("causal"), ragged("causal"), tol=1e-6).values[0])
    )
