"""The largest rise of a curve against closed forms and a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from landscape.episodes.rise import SMOOTHING, largest_rise, smoothed
from landscape.errors import UsageError

X = np.arange(1000.0)
BUMP = np.exp(-0.5 * ((X - 500) / 50) ** 2)


def test_a_curve_that_never_rises_has_none() -> None:
    rise = largest_rise(X, 2 - X / 1000)
    assert (rise.amplitude, rise.excess_area) == (0.0, 0.0)


def test_a_bump_on_flat_ground() -> None:
    """Smoothing a Gaussian of sd 50 with one of sd 15 gives one of sd sqrt(50² + 15²), lower by their ratio."""
    rise = largest_rise(X, 1 + 0.7 * BUMP)
    wide = np.hypot(50, SMOOTHING * 1000)
    assert rise.amplitude == pytest.approx(0.7 * 50 / wide, rel=1e-3)  # the kernel ends at 3 sd
    assert rise.excess_area == pytest.approx(0.7 * 50 * np.sqrt(2 * np.pi), rel=1e-3)
    assert rise.peak == 500


def test_without_smoothing_it_is_what_a_loop_finds() -> None:
    values = np.random.default_rng(0).standard_normal(60).cumsum()
    rise = largest_rise(X[:60], values, smoothing=0)
    assert rise.amplitude == max(values[j] - values[i] for i in range(60) for j in range(i, 60))
    low, area = np.inf, 0.0
    for value in values:
        low = min(low, value)
        area += value - low
    assert rise.excess_area == pytest.approx(area, rel=1e-12)
    assert values[int(rise.peak)] - values[int(rise.trough)] == rise.amplitude


@pytest.mark.parametrize(("duration", "kept"), [(0.05, 0.54), (0.1, 0.76)])
def test_what_a_triangle_keeps(duration: float, kept: float) -> None:
    """Peak of a triangle of half-width h under a Gaussian of sd s: P(|Z| < h/s) - 2 s/h (φ(0) - φ(h/s))."""
    half = 500 * duration
    z = half / (SMOOTHING * 1000)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    expected = math.erf(z / np.sqrt(2)) - 2 / z * (1 / np.sqrt(2 * np.pi) - density)
    triangle = np.maximum(0, 1 - np.abs(X - 500) / half)
    assert largest_rise(X, triangle).amplitude == pytest.approx(expected, rel=5e-3)  # the kernel ends at 3 sd
    assert expected == pytest.approx(kept, abs=0.01)


def test_warm_up_and_bad_batches_do_not_count() -> None:
    hump = np.where(X < 100, 3 * np.exp(-0.5 * ((X - 50) / 15) ** 2), 0)
    assert largest_rise(X, 1 + hump).amplitude > 1.5
    assert largest_rise(X, 1 + hump, warmup_steps=110).amplitude < 1e-9
    spike = np.where(X == 700, 50.0, 1.0)
    assert largest_rise(X, spike + 1e-3 * np.sin(X)).amplitude < 1e-2


def test_a_lost_run_counts_with_what_it_climbed() -> None:
    values = np.where(X > 800, np.nan, 1 + np.maximum(0, X - 600) / 100)
    assert largest_rise(X, values).amplitude == pytest.approx(2, rel=0.1)  # the end's kernel mean lags


def test_a_constant_stays_constant_at_the_ends() -> None:
    np.testing.assert_allclose(smoothed(np.full(200, 3.0), 0.05), 3.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        ([0, 1, 1], [1, 2, 3], "1 follows 1 at position 2"),
        ([0, 1], [1, 2, 3], "3 values for 2 steps"),
        ([1, 2, 3], [1, np.nan, np.inf], "1 finite points after the warm-up; at least 3"),
    ],
)
def test_errors(steps, values, message) -> None:
    with pytest.raises(UsageError, match=message):
        largest_rise(steps, values)
