"""Model-wise double descent: what is a single valley, and how often one is taken for more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from scipy.stats import norm, ttest_ind

from landscape.episodes.model_wise import (
    _scores,
    _sides,
    _Summary,
    at_best,
    model_wise,
    single_valley,
)
from landscape.errors import UsageError

Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy": lambda rng, shape: rng.standard_t(3, shape),
    "skewed": lambda rng, shape: rng.lognormal(size=shape),
    "unequal": lambda rng, shape: rng.standard_normal(shape) * np.geomspace(0.1, 3, shape[0])[:, None],
}
VALLEYS: dict[str, Callable[[int], np.ndarray]] = {
    "flat": np.zeros,
    "rise to a plateau": lambda k: np.r_[-50, np.zeros(k - 1)],
    "plateau to a fall": lambda k: np.r_[np.zeros(k - 1), -50],
    "two plateaus": lambda k: np.r_[np.zeros(k // 2), -50, np.zeros(k - k // 2 - 1)],
    "U": lambda k: np.abs(np.linspace(-2, 2, k)),
}


def false_alarms(noise: str, valley: str, positions: int, seeds: int, curves: int) -> np.ndarray:
    rng, shape = np.random.default_rng(7), VALLEYS[valley](positions)[:, None]
    samples = (shape + NOISES[noise](rng, (positions, seeds)) for _ in range(curves))
    return np.array([model_wise(range(positions), y, resamples=199, power=False).p_value for y in samples])


def assert_calibrated(p_values: np.ndarray) -> None:
    for level in (0.05, 0.1):
        assert (p_values <= level).mean() <= level + 2 * np.sqrt(level * (1 - level) / len(p_values))


def test_false_alarms_at_the_least_favorable_valley() -> None:
    p_values = false_alarms("normal", "rise to a plateau", 4, 5, 500)
    assert_calibrated(p_values)
    assert (p_values <= 0.1).mean() >= 0.03  # nor is it a test that never finds anything


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("valley", VALLEYS)
@pytest.mark.parametrize(("positions", "seeds"), [(4, 8), (6, 5), (8, 3)])
def test_false_alarms(noise: str, valley: str, positions: int, seeds: int) -> None:
    assert_calibrated(false_alarms(noise, valley, positions, seeds, 500))


def test_a_peak_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    found = [model_wise([4, 8, 16, 32, 64], peak(rng, 4.0), resamples=199, power=False) for _ in range(40)]
    assert np.mean([one.p_value <= 0.05 for one in found]) >= 0.9
    significant = [one for one in found if one.p_value <= 0.05]
    assert {one.peak for one in significant} == {16.0}
    heights = np.array([one.amplitude for one in significant])
    # The higher of several troughs is taken, so the height is a little less than 4 in the mean.
    assert 3.2 < heights.mean() < 4.2


def peak(rng: np.random.Generator, height: float, seeds: int = 6) -> np.ndarray:
    """On flat ground, at the middle of five positions."""
    return height * (np.arange(5) == 2)[:, None] + rng.standard_normal((5, seeds))


def test_the_detectable_height_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    known = np.median([model_wise(range(5), peak(rng, 0, 8), resamples=199).detectable for _ in range(20)])
    samples = (peak(rng, known, 8) for _ in range(100))
    found = [model_wise(range(5), y, resamples=199, power=False).p_value <= 0.05 for y in samples]
    assert abs(np.mean(found) - 0.8) <= 4 * np.sqrt(0.8 * 0.2 / 100)


def test_scores_are_welchs() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.normal(0, scale, size) for scale, size in ((1, 5), (4, 8), (0.3, 3))]
    summary = [np.array([g.mean() for g in groups]), np.array([g.var(ddof=1) for g in groups])]
    z = _scores(*summary, np.array([len(g) for g in groups]))
    for j in range(3):
        for i in range(3):
            if i != j:
                p = ttest_ind(groups[j], groups[i], equal_var=False, alternative="greater").pvalue
                assert z[j, i] == pytest.approx(norm.isf(p), rel=1e-8)


def test_the_statistic_is_the_largest_over_all_triples() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        sizes = np.full(6, 4)
        summary = _Summary(rng.standard_normal(6), rng.uniform(0.5, 2, 6), sizes)
        z = _scores(summary.means, summary.variances, sizes)
        triples = {(i, j, k): min(z[j, i], z[j, k]) for j in range(1, 5) for i in range(j) for k in range(j + 1, 6)}
        (i, j, k), score = summary.best()
        assert score == pytest.approx(max(triples.values()))
        assert triples[i, j, k] == score


def test_sampling_at_the_fit_would_be_liberal() -> None:
    """Why the null is not the fitted valley: there the same statistic is exceeded less often."""
    rng = np.random.default_rng(4)
    gaps = []
    for _ in range(30):
        y = VALLEYS["rise to a plateau"](6)[:, None] + rng.standard_normal((6, 5))
        means, variances = y.mean(axis=1), y.var(axis=1, ddof=1)
        summary = _Summary(means, variances, np.full(6, 5))
        noise, scatter = summary.sample(400, rng)

        def exceeding(center: np.ndarray, noise=noise, scatter=scatter, summary=summary) -> float:
            left, right = _sides(_scores(center + noise, scatter, summary.sizes))
            return float((np.minimum(left, right).max(axis=-1) >= 1.645).mean())

        gaps.append(exceeding(VALLEYS["rise to a plateau"](6)) - exceeding(single_valley(means)))
    assert np.mean(gaps) > 4 * np.std(gaps) / np.sqrt(len(gaps))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_valley_is_the_best_of_all(weighted: bool) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        y = rng.standard_normal(9)
        w = rng.uniform(0.2, 5, 9) if weighted else np.ones(9)
        fit = single_valley(y, w if weighted else None)
        turn = int(fit.argmin())
        assert (np.diff(fit[: turn + 1]) <= 1e-12).all()
        assert (np.diff(fit[turn:]) >= -1e-12).all()
        losses = []
        for cut in range(10):
            parts = [isotonic_regression(y[:cut], weights=w[:cut], increasing=False).x] if cut else []
            parts += [isotonic_regression(y[cut:], weights=w[cut:]).x] if cut < 9 else []
            losses.append((w * (y - np.concatenate(parts)) ** 2).sum())
        assert (w * (y - fit) ** 2).sum() == pytest.approx(min(losses), rel=1e-8)


def test_a_single_valley_is_its_own_fit() -> None:
    y = np.array([3.0, 1, 0.5, 0.7, 2])
    np.testing.assert_array_equal(single_valley(y), y)
    result = model_wise([1, 2, 4, 8, 16], y[:, None] + np.random.default_rng(0).normal(0, 0.01, (5, 6)))
    np.testing.assert_allclose(result.valley, result.means, rtol=1e-12)
    assert result.amplitude < 0
    assert result.p_value > 0.9


def test_the_smallest_of_several_is_not_taken() -> None:
    """Four learning rates that are equally good: the best of the means lies low, the seeds' own values do not."""
    rng = np.random.default_rng(6)
    naive, honest = [], []
    for _ in range(1000):
        losses = rng.standard_normal((4, 5))
        naive.append(losses.mean(axis=1).min())
        honest.append(at_best(losses)[0].mean())
    assert np.mean(naive) < -0.4
    assert abs(np.mean(honest)) <= 4 * np.std(honest) / np.sqrt(1000)


def test_best_rates_leave_out_what_others_lost() -> None:
    losses = np.array([[1.0, 1.0, 1.0], [0.5, np.nan, 0.5]])
    values, chosen = at_best(losses)
    # Only the seed that was lost itself is told by all others that the second setting is best.
    np.testing.assert_array_equal(chosen, [0, 1, 0])
    np.testing.assert_array_equal(values, [1.0, np.nan, 1.0])
    values, chosen = at_best([[np.nan, np.nan]])
    assert np.isnan(values).all()
    assert (chosen == -1).all()


def test_what_is_too_little_is_said() -> None:
    rng = np.random.default_rng(8)
    assert model_wise([1, 2, 3], rng.standard_normal((3, 8))).underpowered.startswith("3 positions")
    assert model_wise([1, 2, 3, 4], rng.standard_normal((4, 2))).underpowered.startswith("2 replicates")
    assert model_wise([1, 2, 3, 4], rng.standard_normal((4, 3))).underpowered == ""
    nothing = model_wise([1, 2], rng.standard_normal((2, 8)))
    assert nothing.p_value == 1.0
    assert np.isnan([nothing.peak, nothing.amplitude, nothing.detectable]).all()
    assert model_wise([1, 2, 3, 4], np.ones((4, 3))).p_value == 1.0
    lost = model_wise([1, 2, 3, 4], [[1, 2, np.nan], [np.nan, np.nan], [1, 2], [2, 1]])
    assert lost.replicates.tolist() == [2, 0, 2, 2]
    assert np.isnan(lost.valley).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("positions", "replicates", "options", "message"),
    [
        ([1, 1], [[1], [2]], {}, r"positions: \[1.0, 1.0\] must be finite and increase"),
        ([1, 2], [[1]], {}, "replicates: 1 lists for 2 positions"),
        ([1, 2], [[1], [np.inf]], {}, "an infinite value at position 2"),
        ([1, 2], [[1], [2]], {"alpha": 0}, "alpha: 0 must lie between 0 and 1"),
        ([1, 2], [[1], [2]], {"resamples": 3}, "resamples: 3 must be 19 or more"),
    ],
)
def test_errors(positions, replicates, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        model_wise(positions, replicates, **options)


def test_at_best_needs_seeds() -> None:
    with pytest.raises(UsageError, match=r"losses: shape \(3,\)"):
        at_best([1, 2, 3])
