from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.slices import adaptive_slice, fill, loss_slice
from landscape.slices.adaptive import grid_points
from tests.slices.models import double, ragged

Array = np.ndarray
AXES = (np.linspace(-1, 1, 51),) * 2

SURFACES: dict[str, Callable[[Array], Array]] = {
    "bowl": lambda p: 2 + p[:, 0] ** 2 + 3 * p[:, 1] ** 2,
    "quartic": lambda p: (p**2).sum(axis=1) ** 2 + 0.3 * p[:, 0] * p[:, 1],
    "basin in a plateau": lambda p: 10 * (1 - np.exp(-5 * (p[:, 0] ** 2 + 2 * p[:, 1] ** 2))),
    "narrow basin in a plateau": lambda p: 10 * (1 - np.exp(-20 * (p[:, 0] ** 2 + 2 * p[:, 1] ** 2))),
    "exponential walls": lambda p: np.exp(4 * (p**2).sum(axis=1)),
    "curved valley": lambda p: (1 - 2 * p[:, 0]) ** 2 + 100 * (1.5 * p[:, 1] - 4 * p[:, 0] ** 2) ** 2,
    "waves": lambda p: np.sin(6 * p[:, 0]) * np.cos(5 * p[:, 1]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SURFACES)
def test_one_percent_from_a_quarter_of_the_points(name: str, seed: int) -> None:
    function = SURFACES[name]
    filled = fill(function, AXES, seed=seed)
    points = grid_points(AXES)
    truth = function(points).reshape(51, 51)
    assert filled.converged
    assert filled.evaluated.mean() <= 0.25
    assert np.array_equal(filled.values[filled.evaluated], truth[filled.evaluated])
    unseen = np.flatnonzero(~filled.evaluated)
    chosen = np.random.default_rng(100 + seed).choice(unseen, 200, replace=False)
    errors = np.abs(filled.values - truth).ravel()
    assert errors[chosen].max() <= 0.01 * np.ptp(truth)
    assert filled.error_bound <= 0.01 * np.ptp(truth)
    assert filled.num_held_out == 64


def test_the_bound_covers_as_many_points_as_it_says() -> None:
    axes = (np.linspace(-1, 1, 25),) * 2
    truth = SURFACES["waves"](grid_points(axes)).reshape(25, 25)
    missed = 0
    for seed in range(30):
        filled = fill(SURFACES["waves"], axes, seed=seed, tolerance=0.03)
        assert filled.num_held_out == 64
        assert filled.coverage == pytest.approx(0.05 ** (1 / 64))
        covered = np.abs(filled.values - truth)[~filled.evaluated] <= filled.error_bound
        missed += covered.mean() < filled.coverage
    # A promise that fails one time in 20; more than 5 of 30 failures have a probability of 0.3 %.
    assert missed <= 5


def test_every_point_is_asked_for_once() -> None:
    asked: list[tuple[float, ...]] = []

    def function(points: Array) -> Array:
        asked.extend(map(tuple, points.tolist()))
        return SURFACES["waves"](points)

    filled = fill(function, AXES)
    assert len(asked) == len(set(asked)) == filled.evaluated.sum()


def test_noise_cannot_be_interpolated() -> None:
    axes = (np.linspace(0, 1, 15),) * 2
    noise = np.random.default_rng(0).standard_normal(225)
    table = dict(zip(map(tuple, grid_points(axes).tolist()), noise, strict=True))
    filled = fill(lambda p: np.array([table[tuple(point)] for point in p.tolist()]), axes)
    assert filled.evaluated.all()
    assert filled.converged
    assert (filled.error_bound, filled.num_held_out, filled.coverage) == (0, 0, 0)
    assert np.array_equal(filled.values.ravel(), noise)
    cut = fill(lambda p: np.array([table[tuple(point)] for point in p.tolist()]), axes, max_evaluations=100)
    assert cut.evaluated.sum() == 100
    assert not cut.converged
    assert cut.error_bound > 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_the_loss_is_not_finite_the_picture_is_not(bad: float) -> None:
    def function(points: Array) -> Array:
        squared = (points**2).sum(axis=1)
        return np.where(squared > 1.2, bad, squared)

    filled = fill(function, AXES)
    truth = function(grid_points(AXES)).reshape(51, 51)
    assert np.array_equal(np.isfinite(filled.values), np.isfinite(truth))
    inside = np.isfinite(truth)
    assert np.abs(filled.values[inside] - truth[inside]).max() <= 0.01 * 1.2
    assert filled.evaluated.mean() < 0.5
    nowhere = fill(lambda p: np.full(len(p), bad), AXES)
    assert not np.isfinite(nowhere.values).any()
    assert nowhere.evaluated.mean() < 0.25


def test_a_line() -> None:
    axis = np.linspace(-2, 2, 201)
    filled = fill(lambda p: np.cosh(p[:, 0]), (axis,))
    assert filled.converged
    assert filled.evaluated.sum() < 120
    np.testing.assert_allclose(filled.values, np.cosh(axis), atol=0.01 * np.ptp(np.cosh(axis)))


@pytest.mark.parametrize("space", ["adapter", "merged"])
def test_a_loss_surface(space: str) -> None:
    model, batches = double("causal"), ragged("causal")[:1]
    radius = 0.3
    result = adaptive_slice(model, batches, points=25, radius=radius, space=space, seed=2, evaluation="stacked")
    truth = loss_slice(model, batches, points=25, radius=radius, space=space, seed=2, evaluation="stacked")
    assert result.filled.converged
    assert result.num_evaluations == result.filled.evaluated.sum() < 0.35 * 625
    assert np.abs(result.slice.loss - truth.loss).max() <= 0.01 * np.ptp(truth.loss)
    seen = result.filled.evaluated
    np.testing.assert_allclose(result.slice.loss[seen], truth.loss[seen], rtol=1e-10)
    np.testing.assert_allclose(result.slice.standard_error[seen], truth.standard_error[seen], rtol=1e-8)
    assert np.isnan(result.slice.standard_error[~seen]).all()


def test_bad_arguments() -> None:
    for tolerance in (0, 1, -0.1):
        with pytest.raises(UsageError, match=f"tolerance: {tolerance}; allowed: greater than 0 and less than 1"):
            fill(SURFACES["bowl"], AXES, tolerance=tolerance)
    with pytest.raises(UsageError, match="max_evaluations: 48; allowed: at least 49, the first grid"):
        fill(SURFACES["bowl"], AXES, max_evaluations=48)
