"""The exact sign-flip test and its interval against all sign patterns, one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from landscape.episodes.comparison import EXACT_UP_TO, compare_pairs, subset_means
from landscape.errors import UsageError


def flipped(differences: np.ndarray) -> np.ndarray:
    """Means under every pattern of signs."""
    return np.array([np.mean(differences * signs) for signs in itertools.product([1, -1], repeat=len(differences))])


def brute_p(differences: np.ndarray) -> float:
    return float((np.abs(flipped(differences)) >= abs(differences.mean()) - 1e-12).mean())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("pairs", [1, 2, 5, 8])
def test_p_value_is_the_share_of_patterns(pairs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0.5, 1, pairs), rng.normal(0, 1, pairs)
    result = compare_pairs(first, second)
    assert result.p_value == pytest.approx(brute_p(first - second), rel=1e-12)
    assert result.difference == pytest.approx((first - second).mean(), rel=1e-12)
    assert result.pairs == pairs


@pytest.mark.parametrize("pairs", [6, 8, 10])
def test_interval_holds_what_the_test_does_not_reject(pairs: int) -> None:
    differences = np.random.default_rng(pairs).normal(1, 2, pairs)
    result = compare_pairs(differences, np.zeros(pairs))
    width = result.high - result.low
    for shift, inside in [(1e-6, True), (-1e-6, False), (0.3, True), (-0.3, False)]:
        for end, sign in ((result.low, 1), (result.high, -1)):
            rejected = brute_p(differences - end - sign * shift * width) <= 0.05
            assert rejected != inside
    assert 0.95 <= result.level < 1


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Whatever the distribution, if only it is symmetric: here with heavy tails and a scale a pair."""
    rng, scale = np.random.default_rng(0), np.geomspace(0.1, 10, 8)
    covered = []
    for _ in range(2000):
        result = compare_pairs(3 + scale * rng.standard_t(1, 8), np.zeros(8))
        covered.append(result.low <= 3 <= result.high)
    assert abs(np.mean(covered) - result.level) <= 4 * np.sqrt(result.level * (1 - result.level) / 2000)


def test_five_pairs_are_too_few() -> None:
    result = compare_pairs([-9, -8, -7, -9, -8], [0, 0, 0, 0, 0])
    assert (result.p_value, result.smallest_p, result.too_few) == (1 / 16, 1 / 16, True)
    assert (result.low, result.high, result.level) == (-9, -7, 1 - 1 / 16)
    assert not compare_pairs(np.arange(6), np.zeros(6)).too_few


def test_equal_values_and_ties() -> None:
    equal = compare_pairs(np.ones(6), np.ones(6))
    assert (equal.p_value, equal.difference, equal.low, equal.high) == (1.0, 0.0, 0.0, 0.0)
    assert np.isnan(equal.standardized)
    # 0.1 + 0.2 - 0.3 is not 0 in floating point: the pattern that flips these must count as a tie.
    tied = np.array([0.1, 0.2, -0.3, 1.0, 1.0, 1.0])
    assert compare_pairs(tied, np.zeros(6)).p_value == brute_p(tied)


def test_lost_runs_leave_their_pair_out() -> None:
    result = compare_pairs([1, np.nan, 3, 2], [0, 0, np.nan, 1])
    assert (result.pairs, result.difference) == (2, 1.0)


def test_many_pairs_are_sampled() -> None:
    differences = np.random.default_rng(3).normal(0.45, 1, EXACT_UP_TO + 1)
    sampled = compare_pairs(differences, np.zeros(EXACT_UP_TO + 1))
    exact = min(1.0, 2 * (flipped(differences) >= differences.mean() - 1e-12).mean())
    assert sampled.p_value == pytest.approx(exact, abs=4 * 2 * np.sqrt(exact / 2 / 65_536))
    assert len(subset_means(differences)) == 65_535


@pytest.mark.parametrize(
    ("first", "second", "alpha", "message"),
    [
        ([1, 2], [1], 0.05, "second: 1 values for 2"),
        ([np.nan], [1], 0.05, "no pair with both values"),
        ([np.inf], [1], 0.05, "an infinite value"),
        ([1], [1], 1.0, "alpha: 1.0 must lie between 0 and 1"),
    ],
)
def test_errors(first, second, alpha, message) -> None:
    with pytest.raises(UsageError, match=message):
        compare_pairs(first, second, alpha)
