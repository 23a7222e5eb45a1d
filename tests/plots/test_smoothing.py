"""Centered local-linear smoothing against weighted polynomial fits; what it must not do to a rebound."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.plots.smoothing import KERNEL_REACH, default_bandwidth, local_linear


def fitted(x: np.ndarray, y: np.ndarray, bandwidth: float, at: int) -> float:
    """The same by NumPy's weighted least squares, one point at a time."""
    distance = x - x[at]
    near = np.abs(distance) <= KERNEL_REACH * bandwidth
    weights = np.exp(-0.25 * (distance[near] / bandwidth) ** 2)  # polyfit squares its weights
    return float(np.polyfit(distance[near], y[near], 1, w=weights)[1])


@pytest.mark.parametrize("bandwidth", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("spacing", ["even", "uneven"])
def test_equals_weighted_fits_also_at_the_ends(bandwidth: float, spacing: str) -> None:
    rng = np.random.default_rng(0)
    x = np.arange(80.0) if spacing == "even" else np.sort(rng.uniform(0, 80, 80))
    y = np.exp(-x / 9) + 0.1 * rng.standard_normal(80)
    smooth = local_linear(x, y, bandwidth)
    for at in (0, 1, 7, 40, 78, 79):
        near = np.abs(x - x[at]) <= KERNEL_REACH * bandwidth
        if near.sum() > 2:
            assert smooth[at] == pytest.approx(fitted(x, y, bandwidth, at), abs=1e-9)


def test_a_straight_line_stays_one() -> None:
    x = np.arange(50.0)
    np.testing.assert_allclose(local_linear(x, 3 - 0.2 * x, 5.0), 3 - 0.2 * x, atol=1e-12)


def test_a_peak_is_not_shifted_as_by_an_exponential_average() -> None:
    x = np.arange(400.0)
    rebound = np.exp(-0.5 * ((x - 200) / 15) ** 2)
    assert local_linear(x, rebound, 6.0).argmax() == 200
    average = rebound.copy()
    for index in range(1, 400):
        average[index] = 0.9 * average[index - 1] + 0.1 * rebound[index]
    assert average.argmax() > 204


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 5.0]])
def test_too_few_points_stay_as_they_are(values: list[float]) -> None:
    y = np.array(values)
    np.testing.assert_array_equal(local_linear(np.arange(len(y)) * 1.0, y, 3.0), y)


def test_bandwidth_zero_and_lonely_points_change_nothing() -> None:
    y = np.array([1.0, 9.0, 2.0, 7.0])
    np.testing.assert_array_equal(local_linear(np.arange(4.0), y, 0.0), y)
    np.testing.assert_allclose(local_linear(np.arange(4.0) * 100, y, 2.0), y)


def test_the_default_grows_with_the_run() -> None:
    assert [default_bandwidth(steps) for steps in (0, 40, 200, 2000)] == [1, 1, 3, 30]
