"""Few points, far apart: each piece against its definition, and the test's errors of both kinds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from landscape.episodes import detect_episodes
from landscape.episodes.correction import SMALLEST, shipped
from landscape.episodes.evaluations import (
    FILE,
    LONGEST,
    evaluation_design,
    examined,
    noise_level,
    redness,
    relative_scale,
    tempered,
    terms,
    white_scan,
)
from landscape.episodes.synthetic import autoregressive
from landscape.errors import UsageError
from tests.benchmark_scripts import load_benchmark


def descent(points: int, seed: int, height: float = 10.0) -> np.ndarray:
    """Noise of deviation 1 on a descent."""
    rng = np.random.default_rng([seed, points])
    return height * np.exp(-np.arange(points) / (0.15 * points)) + rng.standard_normal(points)


def bump(points: int, amplitude: float, duration: float = 0.25) -> np.ndarray:
    """A triangle in the middle of the run."""
    at = np.arange(points) / points
    return amplitude * np.clip(1 - np.abs(at - 0.55) / (duration / 2), 0, None)


@pytest.mark.parametrize("points", [20, 47, 200])
def test_every_rise_is_that_of_its_windows(points: int) -> None:
    rng = np.random.default_rng(points)
    values, scale = rng.standard_normal(points), rng.uniform(0.5, 2, points)
    design = evaluation_design(points)
    found = white_scan(values, scale, design)
    assert min(c.width for c in design.contrasts) == 2
    for k in rng.choice(len(design.contrasts), 10):
        c = design.contrasts[k]
        i = int(rng.choice(c.positions))
        early, late = np.arange(i, i + c.before), np.arange(i + c.before + c.gap, i + c.before + c.gap + c.width)
        deviation = np.sqrt((scale[late] ** 2).sum() / c.width**2 + (scale[early] ** 2).sum() / c.before**2)
        assert found.rises[k][i] == pytest.approx((values[late].mean() - values[early].mean()) / deviation, rel=1e-8)
        assert found.maxima[k] == found.rises[k].max()


def test_the_level_is_that_of_white_noise_of_any_scale_and_trend() -> None:
    # Root mean square of a normal cut at 2.5 of itself: where the cut's fixed point lies.
    inside = lambda c: float(norm.expect(lambda z: min(abs(z), c) ** 2)) - (c / 2.5) ** 2  # noqa: E731
    expected = float(brentq(inside, 1, 5)) / 2.5  # type: ignore[arg-type]
    scale = relative_scale(np.linspace(3, 1, 280), 280)
    trend = 30 * np.exp(-np.arange(280) / 60)
    noise = np.random.default_rng(0).standard_normal((60, 280))
    found = [noise_level(2 * scale * row + trend, scale) for row in noise]
    # Two passes from a quantile are not quite the fixed point: 1 %.
    assert np.mean(found) == pytest.approx(2 * expected, abs=4 * np.std(found) / np.sqrt(60) + 0.02)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_redness_is_that_of_the_process(phi: float) -> None:
    covariance = phi ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    weights = [np.repeat([-0.5, 1, -0.5], h) / h for h in (1, 2)]
    one, two = (float(w @ covariance[: len(w), : len(w)] @ w) for w in weights)
    rng = np.random.default_rng(2)
    found = [redness(autoregressive(rng.standard_normal(500), phi), np.ones(300), (0, 0)) for _ in range(60)]
    assert np.mean(found) == pytest.approx(0.5 * np.log(2 * two / one), abs=4 * np.std(found) / np.sqrt(60))
    # A rebound is no noise: what is set aside is not seen.
    row = autoregressive(rng.standard_normal(500), phi)
    high = row + np.where((np.arange(300) > 100) & (np.arange(300) < 150), 40, 0)
    assert redness(high, np.ones(300), (100, 151)) == pytest.approx(redness(row, np.ones(300), (100, 151)), rel=1e-8)


def test_redness_is_not_looked_at_where_little_of_it_shows() -> None:
    assert (terms(50, 0.7) == terms(50, 0.0)).all()
    assert terms(100, 0.7)[4] == 0.7
    assert 0 < terms(70, 0.7)[4] < 0.7


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (None, [1, 1, 1]),
        ([0, 0, 0], [1, 1, 1]),
        ([2, 2, 2], [1, 1, 1]),
        ([1, 7, 5], [0.2, 1.4, 1.0]),
        ([0, 2, 2], [1, 1, 1]),
    ],
)
def test_errors_say_how_the_scale_differs(errors: list[float] | None, expected: list[float]) -> None:
    found = relative_scale(None if errors is None else np.array(errors, float), 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (found**2).mean() == pytest.approx(1)


def test_one_high_evaluation_is_cut_and_two_are_not() -> None:
    values = descent(60, 1)
    values[[20, 40, 41]] += 15
    values[0] += 100
    found = tempered(values, np.ones(60))
    assert found.outliers.tolist() == [20]
    assert found.values[20] < values[20] - 5
    assert (np.delete(found.values, 20) == np.delete(values, 20)).all()
    (spike,) = [e for e in detect_episodes(np.arange(60), values, kind="evaluation") if e.kind == "spike"]
    assert (spike.peak, spike.flags, spike.p_value) == (20, ("bad_batch",), 1)


def test_scores_and_tails_are_inverse_to_one_another() -> None:
    known = shipped(FILE)
    x = terms(120, 0.2)
    for share in (0.5, 0.05, 0.01):
        assert known.tail(known.exceeded(share, x), x) == pytest.approx(share, rel=1e-6)
    assert known.tail(1e9, x) == SMALLEST


def test_the_script_that_computes_the_null_runs_and_the_shipped_one_is_its() -> None:
    script = load_benchmark("episodes_correction")
    rows = [script.evaluated(seed) for seed in range(60)]
    p = [shipped(FILE).tail(score, known) for score, known, _ in rows]
    # Uniform but for the weights, which move the mean by 0.02; that of 60 has a standard error of 0.037.
    assert np.mean(p) == pytest.approx(0.5, abs=0.17)
    assert {weight for *_, weight in rows} == {1, 1.25, 1.5}
    again = script.of_evaluations(60)
    assert (len(again.location), again.about) == (len(terms(20, 0.0)), {"curves": 60})
    assert shipped(FILE).about == {"curves": 6000}


@pytest.mark.parametrize("points", [20, 60, 200])
@pytest.mark.parametrize("height", [0.0, 20.0])
def test_white_noise_is_seldom_a_rebound(points: int, height: float) -> None:
    wrong = sum(
        detect_episodes(np.arange(points), descent(points, 7 + seed, height), kind="evaluation")[0].p_value <= 0.05
        for seed in range(60)
    )
    assert wrong <= 8  # At a rate of 0.05 more than 8 of 60 have probability 0.003.


@pytest.mark.parametrize(("points", "amplitude", "least"), [(24, 9.0, 22), (60, 7.0, 22), (200, 5.0, 22)])
def test_rebounds_are_found_where_steps_would_not_show_them(points: int, amplitude: float, least: int) -> None:
    found = 0
    for seed in range(25):
        first = detect_episodes(np.arange(points), descent(points, seed) + bump(points, amplitude), kind="evaluation")[
            0
        ]
        middle = 0.55 * points
        found += first.p_value <= 0.05 and first.onset < middle < first.recovery
    assert found >= least  # Of 25; all were found when this was written.


def test_errors_that_are_common_to_all_take_nothing_away() -> None:
    values = descent(40, 3) + bump(40, 8)
    plain, told = (
        detect_episodes(np.arange(40), values, standard_errors=errors, kind="evaluation")[0].p_value
        for errors in (None, np.full(40, 50.0))
    )
    assert plain == told <= 0.05


def test_marks_hold_for_evaluations_too_but_for_epochs() -> None:
    steps, values = np.arange(0, 6000, 100), descent(60, 5) + bump(60, 9)
    plain = detect_episodes(steps, values, kind="evaluation")
    assert plain[0].p_value <= 0.01
    assert detect_episodes(steps, values, epoch_steps=[2500, 3300, 4000], kind="evaluation") == plain
    warm = detect_episodes(steps, values, warmup_steps=4500, kind="evaluation")
    assert min(e.p_value for e in warm) > 0.05
    assert any("warmup" in e.flags for e in warm)
    resumed = detect_episodes(steps, values, resume_steps=[2700], kind="evaluation")
    assert resumed[0].p_value > plain[0].p_value


def test_many_evaluations_are_tested_as_steps() -> None:
    values = descent(LONGEST + 1, 2)
    assert detect_episodes(np.arange(len(values)), values, kind="evaluation") == detect_episodes(
        np.arange(len(values)), values
    )


@pytest.mark.parametrize(
    "values",
    [
        np.full(30, 2.0),
        np.linspace(3, 1, 30),
        np.where(np.arange(30) < 15, 2.0, 1.0),
        np.where(np.arange(40) % 4 == 0, 0.75, 0.5),
        np.where(np.arange(30) == 12, np.nan, np.linspace(3, 1, 30)),
        1e300 * descent(30, 1),
        1e-300 * descent(30, 1),
    ],
    ids=["constant", "line", "step", "levels", "nan", "huge", "tiny"],
)
def test_curves_without_noise_or_of_any_size(values: np.ndarray) -> None:
    found = detect_episodes(np.arange(len(values)), values, kind="evaluation")
    assert all(e.p_value > 0.05 for e in found)


def test_a_rebound_without_noise_is_certain() -> None:
    values = 10 * np.exp(-np.arange(40) / 6) + bump(40, 3)
    first = detect_episodes(np.arange(40), values, kind="evaluation")[0]
    assert first.p_value <= 0.001
    assert 14 <= first.onset <= 18 < first.peak <= 23 < first.recovery <= 28


def test_what_is_not_allowed_is_not_searched() -> None:
    values, design = descent(30, 4) + bump(30, 8), evaluation_design(30)
    everywhere = examined(values, np.ones(30))
    left = tuple(c.positions < 5 for c in design.contrasts)
    assert examined(values, np.ones(30), left).seen.maxima.max() < everywhere.seen.maxima.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "evaluations"},
            "kind: 'evaluations' is not known; allowed: evaluation, steps. Did you mean 'evaluation'",
        ),
        ({"kind": "evaluation", "standard_errors": np.full(30, np.inf)}, "standard_errors: infinite"),
        ({"kind": "evaluation", "standard_errors": np.full(30, -1.0)}, "standard_errors: negative or NaN"),
    ],
)
def test_bad_usage(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detect_episodes(np.arange(30), descent(30, 0), **arguments)
