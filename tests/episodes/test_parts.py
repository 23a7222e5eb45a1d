"""Repair, trend, boundaries, marks and curve checks, each against a reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from landscape.episodes.boundaries import refine_onset, refine_recovery
from landscape.episodes.candidates import moving_mean
from landscape.episodes.curve import MAX_BINS, binned, dithered, prepare, quantum
from landscape.episodes.marks import find_marks, rising_rate, without_epoch_jumps
from landscape.episodes.repair import repair, running_median
from landscape.episodes.scan import cumulative, scan, scan_design
from landscape.episodes.trend import antitone, coarse_trend, monotone_trend
from landscape.errors import UsageError


def test_running_median_is_the_median_of_five() -> None:
    x = np.random.default_rng(0).standard_normal(200)
    expected = np.median(np.lib.stride_tricks.sliding_window_view(x, 5), axis=1)
    np.testing.assert_array_equal(running_median(x)[2:-2], expected)


def test_repair_takes_one_and_two_points_and_leaves_rebounds() -> None:
    y = 0.1 * np.random.default_rng(1).standard_normal(400)
    y[100] += 5
    y[200:202] += 5
    y[300:340] += 5
    found = repair(y)
    assert set(found.outliers) == {100, 200, 201}
    assert np.abs(found.values[[100, 200, 201]]).max() < 0.5
    np.testing.assert_allclose(found.values + np.bincount(found.outliers, found.excess, 400), y, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_antitone_fits_are_isotonic_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, w = rng.standard_normal((3, 24)), rng.integers(1, 5, 24).astype(float)
    expected = [isotonic_regression(row, weights=w, increasing=False).x for row in y]
    np.testing.assert_allclose(antitone(y, w), expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(monotone_trend(y[0]), isotonic_regression(y[0], increasing=False).x, rtol=1e-8)


def test_blocks_of_no_weight_do_not_pull() -> None:
    y = np.linspace(5, 0, 240)
    hump = y.copy()
    hump[96:120] += 50
    weights = np.ones(20)  # Blocks of 12 points.
    weights[8:10] = 0
    found = coarse_trend(cumulative(hump), 240, weights)
    outside = np.r_[10:90, 130:230]
    np.testing.assert_allclose(found[outside], y[outside], atol=0.05)  # Linear between the centers of its blocks.


def test_rises_are_differences_of_window_means_over_their_noise() -> None:
    y = np.random.default_rng(2).standard_normal(300)
    design = scan_design(300)
    found = scan(y, design, (None,) * len(design.contrasts), keep=True)
    for k in (0, 7, len(design.contrasts) - 1):
        c = design.contrasts[k]
        first = c.positions[5 % len(c.positions)]
        late = first + c.before + c.gap
        raw = y[late : late + c.width].mean() - y[first : first + c.before].mean()
        assert np.sign(raw) == np.sign(found.rises[k][5 % len(c.positions)])
    np.testing.assert_allclose(found.maxima, [rise.max() for rise in found.rises], rtol=1e-12)
    double = scan(7 * y + 3, design, (None,) * len(design.contrasts))
    np.testing.assert_allclose(double.maxima, found.maxima, rtol=1e-6)  # Cumulative sums lose some digits to the shift.


def test_two_lines_find_a_kink_and_its_level() -> None:
    y = np.concatenate([np.full(100, 2.0), 2 + 0.1 * np.arange(50), 7 - 0.1 * np.arange(50), np.full(100, 2.0)])
    kink = refine_onset(y, 104, 149, 2.0, 7.0)
    assert kink.at == pytest.approx(100, abs=1)
    assert kink.level == pytest.approx(2, abs=0.1)
    # Back means within a tenth of the height: five points before the end.
    assert refine_recovery(y, 150, 190, 2.0, 7.0) == pytest.approx(195, abs=1)


def test_moving_mean_and_bins() -> None:
    y = np.random.default_rng(3).standard_normal(2001)
    np.testing.assert_allclose(moving_mean(y, 5)[2:-2], np.convolve(y, np.ones(5) / 5, "valid"), rtol=1e-8, atol=1e-12)
    bins = binned(y)
    assert len(bins.values) <= MAX_BINS
    assert (bins.values * np.diff(bins.edges)).sum() == pytest.approx(y.sum())
    assert binned(y[:MAX_BINS]).values is not None
    assert not binned(y[:MAX_BINS]).within.any()


def test_learning_rate_zones() -> None:
    rate = np.concatenate([np.linspace(0, 1, 20), np.linspace(1, 0, 80), np.linspace(1, 0, 100)])
    assert rising_rate(rate) == [(0, 23), (99, 104)]
    curve = prepare(np.arange(200), np.random.default_rng(0).standard_normal(200), rate)
    marks = find_marks(curve, 0, (), (50,))
    assert marks.flags(10, 15) == ("warmup",)
    assert marks.flags(100, 120) == ("schedule_confounded",)
    assert marks.flags(45, 60) == ("resume",)
    assert marks.flags(60, 80) == ()


def test_jumps_at_epoch_ends_are_taken_out_and_ramps_are_not() -> None:
    step = np.where(np.arange(1000) < 500, 0.0, 3.0)
    noise = 0.1 * np.random.default_rng(4).standard_normal(1000)
    np.testing.assert_allclose(without_epoch_jumps(step + noise, np.array([500])), noise, atol=0.3)
    ramp = np.linspace(0, 100, 1000)
    np.testing.assert_allclose(without_epoch_jumps(ramp, np.array([500])), ramp, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "values", "extra", "message"),
    [
        ([*range(30), 29], [1.0] * 31, {}, "steps: 29 follows 29 at position 30"),
        ([*range(29), 40, 35], [1.0] * 31, {}, "35 follows 40 at position 30"),
        (range(30), [1.0] * 29, {}, "values: 29 values for 30 steps"),
        (range(30), [["a"]] * 30, {}, "values: expected numbers"),
        (range(30), [[1.0]] * 30, {}, "values: expected one dimension"),
        (range(10), [1.0] * 10, {}, "10 finite points; at least 20"),
        ([*range(29), np.nan], [1.0] * 30, {}, "steps: nan at position 29"),
        (range(30), [1.0] * 30, {"learning_rate": [1.0]}, "learning_rate: 1 values for 30 steps"),
        (range(30), [1.0] * 30, {"standard_errors": [-1.0] * 30}, "standard_errors: negative"),
    ],
)
def test_bad_curves(steps: list, values: list, extra: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(list(steps), values, **extra)


def test_only_discrete_values_are_dithered() -> None:
    smooth = np.random.default_rng(5).standard_normal(300)
    assert quantum(smooth) == quantum(np.zeros(300)) == 0
    assert dithered(smooth, 0.0, 0) is smooth
    coarse = np.round(smooth)
    assert quantum(coarse) == 1
    added = dithered(coarse, 1.0, 0) - coarse
    assert np.abs(added).max() <= 0.5
    assert added.std() == pytest.approx(1 / np.sqrt(12), rel=0.1)
