from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.slices import Filled, adaptive_slice, fill, loss_slice
from landscape.slices.adaptive import SAFETY, grid_points
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


# Where the loss changes a lot over a few grid points, a bound of 1 % needs more of them.
DEMANDING = {"exponential walls": 0.35, "waves": 0.35}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SURFACES)
def test_one_percent_from_a_quarter_of_the_points(name: str, seed: int) -> None:
    function = SURFACES[name]
    filled = fill(function, AXES, seed=seed)
    points = grid_points(AXES)
    truth = function(points).reshape(51, 51)
    assert filled.converged
    assert filled.evaluated.mean() <= DEMANDING.get(name, 0.25)
    assert np.array_equal(filled.values[filled.evaluated], truth[filled.evaluated])
    unseen = np.flatnonzero(~filled.evaluated)
    chosen = np.random.default_rng(100 + seed).choice(unseen, 200, replace=False)
    errors = np.abs(filled.values - truth).ravel()
    assert errors[chosen].max() <= filled.error_bound <= 0.01 * np.ptp(truth)
    assert SAFETY * filled.held_out_error <= filled.error_bound
    assert filled.num_held_out == 100


def rotated(points: Array, rng: np.random.Generator) -> Array:
    """Around a random center, by a random angle."""
    angle, center = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - center) @ turn


def waves(points: Array, rng: np.random.Generator) -> Array:
    frequencies, amplitudes = rng.normal(0, 4, (2, 12)), rng.normal(0, 1, 12)
    return np.sin(points @ frequencies + rng.uniform(0, 2 * np.pi, 12)) @ (
        amplitudes / (1 + 0.1 * (frequencies**2).sum(axis=0))
    )


def valley(points: Array, rng: np.random.Generator) -> Array:
    along, across = rotated(points, rng).T
    return (along**2 - 0.3) ** 2 + 30 * across**2


def dent(points: Array, rng: np.random.Generator) -> Array:
    squared = ((points - rng.uniform(-0.8, 0.8, 2)) ** 2).sum(axis=1)
    return (points**2).sum(axis=1) - 0.5 * np.exp(-squared / (2 * rng.uniform(0.1, 0.15) ** 2))


def disc(points: Array, rng: np.random.Generator) -> Array:
    squared = (rotated(points, rng) ** 2).sum(axis=1)
    return np.where(squared > 1, np.nan, squared)


def wedge(points: Array, rng: np.random.Generator) -> Array:
    along, across = rotated(points, rng).T
    return np.where((along > 0.2) & (np.abs(across) < 0.4 * along), np.inf, np.cosh(2 * points[:, 0]) + across)


# From points and a generator that decides position, orientation and shape.
FAMILIES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "quadratic": lambda p, rng: rotated(p, rng) ** 2 @ [1, 10 ** rng.uniform(0, 2)],
    "saddle": lambda p, rng: rotated(p, rng) ** 2 @ [1, -2] + 0.5 * p[:, 0] ** 3,
    "valley": valley,
    "basin": lambda p, rng: 1 - np.exp(-rng.uniform(3, 15) * (rotated(p, rng) ** 2 @ [1, 2])),
    "walls": lambda p, rng: np.exp(2 * (rotated(p, rng) ** 2).sum(axis=1)),
    "soft maximum": lambda p, rng: np.log(np.exp(p @ rng.normal(0, 6, (2, 8)) + rng.normal(0, 1, 8)).sum(axis=1)),
    "waves": waves,
    "cliff": lambda p, rng: np.tanh(rng.uniform(6, 9) * rotated(p, rng)[:, 0]) + 0.3 * (p**2).sum(axis=1),
    "dent": dent,
    "not finite outside": disc,
    "infinite wedge": wedge,
}


def surface(name: str, seed: int) -> Callable[[Array], Array]:
    return lambda points: FAMILIES[name](points, np.random.default_rng(seed))


def errors_of(filled: Filled, truth: Array) -> Array:
    """At the interpolated points; infinite where one is finite and the other not."""
    agree = np.isfinite(filled.values) == np.isfinite(truth)
    with np.errstate(invalid="ignore"):
        errors = np.where(agree, np.nan_to_num(np.abs(filled.values - truth), posinf=0), np.inf)
    return errors[~filled.evaluated]


def test_both_statements_hold_as_often_as_they_say() -> None:
    """Over surfaces, seeds and fresh points. `Filled` says how often; the coverage is a theorem, the bound is not."""
    axes = (np.linspace(-1, 1, 41),) * 2
    points = grid_points(axes)
    beyond_bound = beyond_coverage = beyond_tolerance = 0.0
    runs = [(name, seed) for name in FAMILIES for seed in range(3)]
    for name, seed in runs:
        truth = surface(name, seed)(points).reshape(41, 41)
        filled = fill(surface(name, seed), axes, seed=seed)
        assert filled.converged
        if not len(errors := errors_of(filled, truth)):
            continue
        fresh = np.random.default_rng(seed).permutation(errors)[:200]
        extent = np.ptp(truth[np.isfinite(truth)])
        rounding = 1e-12 * extent
        beyond_bound += fresh.max() > filled.error_bound + rounding
        beyond_coverage += (errors <= filled.held_out_error + rounding).mean() < filled.coverage
        beyond_tolerance += fresh.max() > 0.01 * extent
    assert beyond_tolerance == 0
    # 3 % and less than 5 % of 33 runs; more than 4 and 5 have a probability of 0.4 % and 1 %.
    assert beyond_bound <= 4
    assert beyond_coverage <= 5


def test_the_coverage_is_that_of_order_statistics() -> None:
    filled = fill(SURFACES["bowl"], AXES)
    assert filled.num_held_out == 100
    # 100 random points all miss a share p of bad points with probability (1 - p)^100; the first test may err in 2.5 %.
    assert filled.coverage**100 == pytest.approx(0.05 / 2**filled.num_tests)
    # Tested again where the first test failed, at the price of a weaker statement.
    again = [fill(surface(name, seed), AXES, seed=seed) for name in ("waves", "walls") for seed in range(4)]
    assert len({found.num_tests for found in again}) > 1
    for found in again:
        assert found.coverage**found.num_held_out == pytest.approx(0.05 / 2**found.num_tests)


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
    assert (filled.error_bound, filled.held_out_error, filled.num_held_out, filled.coverage) == (0, 0, 0, 0)
    assert np.array_equal(filled.values.ravel(), noise)
    cut = fill(lambda p: np.array([table[tuple(point)] for point in p.tolist()]), axes, max_evaluations=100)
    assert cut.evaluated.sum() == 100
    assert not cut.converged
    assert cut.num_held_out == 37  # a sixth of the grid is kept for the test
    assert cut.error_bound >= SAFETY * cut.held_out_error > 0.1
    untested = fill(SURFACES["bowl"], AXES, max_evaluations=49)
    assert (untested.converged, untested.error_bound, untested.coverage) == (False, np.inf, 0)


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
