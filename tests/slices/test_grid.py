from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError, UsageError
from landscape.slices import Coordinates, Row, accuracy, loss_slice, loss_slices
from landscape.slices.memory import require_memory
from tests.curvature.conftest import SHAPES
from tests.measurement.test_context import break_forward, unchanged, used_model
from tests.oracles import reference_loss
from tests.slices.models import double, ragged
from tests.small_models import KINDS, batch


def test_the_result_says_what_it_is() -> None:
    model, batches = double("causal"), ragged("causal")
    result = loss_slice(model, batches, points=(3, 5), radius=(0.5, 2), seed=7, draw=1, evaluation="in_place")
    np.testing.assert_array_equal(result.axes[0], [-0.5, 0, 0.5])
    np.testing.assert_array_equal(result.axes[1], [-2, -1, 0, 1, 2])
    assert result.coordinates is result.axes[0]
    assert result.loss.shape == result.standard_error.shape == (3, 5)
    assert result.loss.dtype == np.float64
    assert (result.space, result.normalization, result.seed, result.draw) == ("adapter", "filter", 7, 1)
    assert (result.metric, result.precision, result.evaluation, result.dims) == ("loss", "float64", "in_place", 2)
    assert result.num_parameters == Coordinates(model).size
    assert result.num_examples == 6
    assert result.num_labels == sum(int((item["labels"][:, 1:] != -100).sum()) for item in batches)
    assert set(result.seconds_a_point) == {"in_place"}
    with torch.no_grad():
        expected = float(reference_loss(model, batches, {}))
    assert result.origin_loss == pytest.approx(expected, rel=1e-12)
    assert result.loss[1, 2] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_standard_errors_are_the_ratio_estimators(kind: str) -> None:
    model, batches = double(kind), ragged(kind)
    result = loss_slice(model, batches, dims=1, points=3)
    singles = [{key: value[row : row + 1] for key, value in item.items()} for item in batches for row in range(len(item["labels"]))]  # fmt: skip # noqa: E501
    counts = np.array([int((counted(item["labels"], kind) != -100).sum()) for item in singles])
    with torch.no_grad():
        nll = np.array([float(reference_loss(model, [item], {})) for item in singles]) * counts
    n, mean = len(nll), nll.sum() / counts.sum()
    expected = np.sqrt(n / (n - 1) * ((nll - mean * counts) ** 2).sum()) / counts.sum()
    assert result.standard_error[1] == pytest.approx(expected, rel=1e-8)


def counted(labels: Tensor, kind: str) -> Tensor:
    return labels[:, 1:] if kind == "causal" else labels


@pytest.mark.parametrize("space", ["adapter", "merged", "tangent"])
def test_a_way_and_a_seed_decide_every_bit(space: str) -> None:
    model, batches = double("causal"), ragged("causal")
    options: dict[str, Any] = {"points": 5, "space": space, "evaluation": "stacked"}
    torch.manual_seed(1)
    first = loss_slice(model, batches, seed=1, **options)
    torch.manual_seed(2)
    assert np.array_equal(loss_slice(model, iter(batches), seed=1, **options).loss, first.loss)
    assert not np.allclose(loss_slice(model, batches, seed=2, **options).loss, first.loss)


def test_another_metric() -> None:
    model, batches = double("causal"), ragged("causal")
    result = loss_slice(model, batches, dims=1, points=3, metric=accuracy)
    hits = labels = 0
    with torch.no_grad():
        for item in batches:
            inputs = {key: value for key, value in item.items() if key != "labels"}
            predicted, targets = model(**inputs).logits.argmax(-1)[:, :-1], item["labels"][:, 1:]
            hits += int((predicted == targets).sum())
            labels += int((targets != -100).sum())
    assert result.loss[1] == result.origin_loss == pytest.approx(hits / labels)
    assert result.metric == "accuracy"


def test_autocast_is_chosen_and_recorded() -> None:
    model, batches = double("causal").float(), ragged("causal")
    exact = loss_slice(model, batches, points=3)
    rough = loss_slice(model, batches, points=3, autocast=torch.bfloat16)
    assert rough.precision == "bfloat16 autocast over float32"
    assert not np.array_equal(rough.loss, exact.loss)
    np.testing.assert_allclose(rough.loss, exact.loss, rtol=2e-2)  # 8 bits
    with pytest.raises(UsageError, match=r"autocast: torch\.int8; allowed"):
        loss_slice(model, batches, autocast=torch.int8)


def test_an_interrupted_slice_goes_on_by_rows() -> None:
    model, batches = double("causal"), ragged("causal")
    options: dict[str, Any] = {"points": 4, "evaluation": "in_place"}
    whole = loss_slice(model, batches, **options)
    rows: dict[int, Row] = {}

    def keep(index: int, row: Row) -> None:
        rows[index] = row
        if len(rows) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loss_slice(model, batches, on_row=keep, **options)
    assert sorted(rows) == [0, 1]
    measured: list[int] = []
    resumed = loss_slice(model, batches, finished=rows, on_row=lambda index, row: measured.append(index), **options)
    assert measured == [2, 3]
    assert np.array_equal(resumed.loss, whole.loss)
    assert np.array_equal(resumed.standard_error, whole.standard_error)
    with pytest.raises(UsageError, match="finished: row 1 does not fit a grid of 4 rows of 3 points"):
        loss_slice(model, batches, points=(4, 3), finished={1: rows[1]})


def test_points_that_are_not_finite_stay_so() -> None:
    model, batches = double("causal"), ragged("causal")
    result = loss_slice(model, batches, points=5, radius=1e200, normalization="none")
    assert np.isfinite(result.loss[2, 2])
    assert not result.finite[0, 0]
    assert result.finite.sum() < 25


def test_several_draws() -> None:
    model, batches = double("causal"), ragged("causal")
    ensemble = loss_slices(model, iter(batches), dims=1, points=3, draws=3, draw=1)
    losses = np.stack([item.loss for item in ensemble.slices])
    assert [item.draw for item in ensemble.slices] == [1, 2, 3]
    np.testing.assert_allclose(ensemble.mean, losses.mean(axis=0))
    np.testing.assert_allclose(ensemble.spread, losses.std(axis=0, ddof=1))
    np.testing.assert_allclose(ensemble.standard_error, ensemble.spread / np.sqrt(3))
    assert ensemble.spread[1] < 1e-12 < ensemble.spread[0]
    with pytest.raises(UsageError, match="draws: 1; allowed: at least 2"):
        loss_slices(model, batches, draws=1)
    with pytest.raises(UsageError, match="directions: given ones cannot be drawn again"):
        loss_slices(model, batches, directions=[])


SPACES = ("adapter", "merged", "tangent")


@pytest.mark.parametrize("evaluation", ["auto", "in_place", "merged", "stacked"])
def test_the_model_is_left_as_found(evaluation: str) -> None:
    model = used_model()
    with unchanged(model):
        loss_slice(model, ragged("causal"), points=9, evaluation=evaluation)
    for space in SPACES[1:]:
        with unchanged(model):
            loss_slice(model, ragged("causal"), points=3, space=space)


@pytest.mark.parametrize("error", [RuntimeError("disk on fire"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("after", [0, 3, 5])
@pytest.mark.parametrize(("space", "evaluation"), [
    ("adapter", "in_place"), ("adapter", "merged"), ("adapter", "stacked"), ("merged", "auto"), ("tangent", "auto"),
])  # fmt: skip
def test_a_slice_that_fails_leaves_the_model_as_found(
    space: str, evaluation: str, after: int, error: BaseException
) -> None:
    model = used_model()
    break_forward(model, error, after)
    forwards = [module.forward for module in model.modules()]
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    with unchanged(model), pytest.raises(type(error)):
        loss_slice(model, ragged("causal"), points=9, space=space, evaluation=evaluation)
    assert [module.forward for module in model.modules()] == forwards
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_nobody_asked_the_model_for_gradients() -> None:
    model = double("causal", **SHAPES["causal"])
    seen: list[bool] = []
    model.get_base_model().lm_head.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    loss_slice(model, ragged("causal"), points=3)
    assert seen
    assert not any(seen)


def vector(model: nn.Module) -> Tensor:
    return torch.ones(Coordinates(model).size)


BAD: dict[str, dict[str, Any]] = {
    r"dims: 3; allowed: 1, 2": {"dims": 3},
    r"points: 1; allowed: whole numbers from 2": {"points": 1},
    r"points: 2.5; allowed: whole numbers from 2": {"points": 2.5},
    r"points: 3 values; dims is 2": {"points": (3, 3, 3)},
    r"radius: 0; allowed: numbers greater than 0": {"radius": 0},
    r"radius: -1.0; allowed": {"radius": -1.0},
    r"radius: nan; allowed": {"radius": float("nan")},
    r"radius: inf; allowed": {"radius": (1.0, float("inf"))},
    r"seed: -1; allowed: at least 0": {"seed": -1},
    r"draw: -2; allowed": {"draw": -2},
    r"space: 'merge' is not known; .* Did you mean 'merged'\?": {"space": "merge"},
    r"normalization: 'row' is not known": {"normalization": "row"},
    r"evaluation: 'stack' is not known; .* Did you mean 'stacked'\?": {"evaluation": "stack"},
    r"evaluation: 'in_place' is not possible here; .* allow 'auto', 'merged', 'stacked'": {
        "evaluation": "in_place",
        "space": "tangent",
    },
    r"axes: 1 given; dims is 2": {"axes": [[0, 1]]},
    r"axes\[1\]: allowed: at least 2 finite numbers, ascending": {"axes": [[0, 1], [1, 0]]},
    r"axes\[0\]: allowed": {"axes": [[0, np.inf], [0, 1]]},
    r"directions: 1 given; dims is 2": {"directions": [torch.ones(1)]},
    r"directions: vectors of the adapter; space 'merged' has random": {"directions": [], "space": "merged"},
    r"origin: vectors of the adapter; space 'tangent'": {"origin": torch.ones(1), "space": "tangent"},
    r"origin: shape \(1,\); the model has": {"origin": torch.ones(1)},
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_refused_before_any_forward_pass(match: str) -> None:
    model = double("causal", **SHAPES["causal"])
    # The space's weights are looked at layer by layer; the model as a whole is not run.
    model.get_base_model().lm_head.register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    with pytest.raises(UsageError, match=match):
        loss_slice(model, batch("causal"), **BAD[match])


def test_diverged_parameters() -> None:
    model = double("causal")
    origin = vector(model) * torch.inf
    with pytest.raises(UsageError, match="origin: NaN or infinite parameters"):
        loss_slice(model, batch("causal"), origin=origin)


def test_too_little_memory_is_said_before() -> None:
    with pytest.raises(LandscapeError, match=r"2 directions need 1.05e\+06 GiB of memory on cpu; .* are free"):
        require_memory(2**50, torch.device("cpu"), "2 directions")
