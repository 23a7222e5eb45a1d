from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from landscape.episodes.benchmark import (
    Detection,
    Outcome,
    clopper_pearson,
    counts,
    equal_rate_threshold,
    evaluate,
    f1_difference,
    f1_score,
    false_positives,
    kolmogorov_smirnov,
    matches,
    overlap,
    sensitivity,
)
from landscape.episodes.benchmark_run import add_arguments, run
from landscape.episodes.benchmark_tables import CELLS
from landscape.episodes.detector import RESAMPLES, VERSION
from landscape.episodes.rivals import installed
from landscape.episodes.synthetic import (
    CONFOUNDERS,
    NOISES,
    SHAPES,
    TRENDS,
    Interval,
    Recipe,
    generate,
    long_memory,
)
from landscape.errors import UsageError


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 40), (40, 40), (12, 200)])
def test_clopper_pearson(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(method="exact")
    np.testing.assert_allclose(clopper_pearson(k, n), expected, rtol=1e-8)


def test_kolmogorov_smirnov() -> None:
    p = np.random.default_rng(0).random(500) ** 1.1
    found = kolmogorov_smirnov(p.tolist())
    both = kstest(p, "uniform", method="asymp")
    np.testing.assert_allclose((found.distance, found.p_value), (both.statistic, both.pvalue), rtol=1e-8)
    above = kstest(p, "uniform", alternative="greater", method="exact")
    assert found.excess == pytest.approx(above.statistic, rel=1e-8)
    assert found.excess_p_value == pytest.approx(above.pvalue, rel=0.05)  # Asymptotic against exact.


@pytest.mark.parametrize("trend", sorted(TRENDS))
def test_trends_never_rise(trend: str) -> None:
    for seed in range(5):
        y = TRENDS[trend](np.linspace(0, 1, 500), np.random.default_rng(seed))
        assert np.diff(y).max() <= 1e-12


@pytest.mark.parametrize("noise", sorted(NOISES))
def test_noise_has_variance_one(noise: str) -> None:
    rng = np.random.default_rng(1)
    power = np.array([(NOISES[noise](1000, rng) ** 2).mean() for _ in range(200)])
    tolerance = {"ripple": 0.25}.get(noise, 0.02)  # A ripple's amplitude is drawn for each curve.
    assert abs(power.mean() - 1) < 4 * power.std() / np.sqrt(200) + tolerance


def test_long_memory_decays_like_a_power() -> None:
    rng = np.random.default_rng(2)
    noise = np.stack([long_memory(1024, rng) for _ in range(300)])
    widths = np.array([16, 64])
    spread = [np.diff(noise.reshape(300, -1, w).mean(axis=2)[:, ::2], axis=1).var() for w in widths]
    slope = np.log(spread[1] / spread[0]) / np.log(4)
    assert slope == pytest.approx(2 * 0.35 - 1, abs=0.1)  # The power law is an asymptote.


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("trend", ["flat", "power"])
def test_the_noise_free_curve_rises_by_the_amplitude(shape: str, trend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOISES, "white", lambda n, rng: np.zeros(n))
    curve = generate(Recipe(1000, trend, "white", "none", shape, 1, amplitude=5, duration=0.1), 4)
    (truth,) = curve.episodes
    at = [int(s) - 1 for s in (truth.onset, truth.peak, truth.recovery)]
    y = curve.values
    assert (y - np.minimum.accumulate(y)).max() == pytest.approx(5, rel=1e-3)
    assert y[at[1]] == y[at[0] :].max()
    assert y[at[0]] - y[: at[1]].min() <= 0.05 * 5 + np.abs(np.diff(y[at[0] - 1 : at[0] + 1])).max()
    assert truth.recovery - truth.onset <= 0.1 * 1000 + 3


@pytest.mark.parametrize("confounder", sorted(CONFOUNDERS))
def test_generation_is_reproducible(confounder: str) -> None:
    a, b = (generate(Recipe(300, confounder=confounder), 9) for _ in range(2))
    np.testing.assert_array_equal(a.values, b.values)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="noise: 'pink' is not known"):
        generate(Recipe(noise="pink"), 0)


def test_scores_by_hand() -> None:
    truth = (Interval(10, 15, 20), Interval(50, 55, 60))
    found = (Detection(11, 15, 20, 0.99), Detection(12, 15, 21, 0.97), Detection(80, 85, 90, 0.96))
    assert overlap(truth[0], found[0]) == pytest.approx(0.9)
    assert matches(truth, found, 0.3) == [(0, 0)]
    score = sensitivity([Outcome(Recipe(100), truth, found, 1.0)], 0.95)
    assert (score.precision, score.recall, score.f1) == (pytest.approx(1 / 3), 0.5, pytest.approx(0.4))
    assert score.onset_error == pytest.approx(0.01)
    assert sensitivity([Outcome(Recipe(100), truth, found, 1.0)], 0.98).precision == 1
    assert counts([Outcome(Recipe(100), truth, found, 1.0)], 0.95).tolist() == [[1, 2, 3]]


def test_differences_of_f1_and_their_interval() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((2, 400)) < np.array([[0.9], [0.6]])
    a, b = (np.stack([h, np.ones(400), np.ones(400)], axis=1).astype(int) for h in hits)
    difference, low, high = f1_difference(a, b)
    assert difference == pytest.approx(float(f1_score(a) - f1_score(b)))
    # One true and one reported a curve: F1 is the share of hits, and the curves are paired but independent here.
    error = np.sqrt(hits[0].var() / 400 + hits[1].var() / 400)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)
    assert low < difference < high
    assert f1_difference(a, a) == (0, 0, 0)


def test_equal_rate_threshold() -> None:
    nulls = [Outcome(Recipe(), (), (Detection(0, 1, 2, s),), 1.0) for s in range(100)]
    threshold = equal_rate_threshold(nulls, 0.05)
    assert false_positives(nulls, threshold).rate == 0.05


@pytest.mark.parametrize("name", sorted(installed()))
def test_rivals_find_an_obvious_rebound(name: str) -> None:
    recipe = Recipe(1000, "flat", "white", "none", "cosine", 1, amplitude=15, duration=0.06)
    (outcome,) = evaluate(installed()[name].detector, [recipe], 3)
    best = max(outcome.found, key=lambda d: d.strength)
    assert best.onset <= outcome.truth[0].peak + 30
    assert best.recovery >= outcome.truth[0].onset


def test_a_whole_run_writes_its_tables(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    path = tmp_path / "result.json"
    arguments = ["--curves", "1", "--nulls", "8", "-o", str(path), "--only"]
    result = run(parser.parse_args([*arguments, "nulls", "semi_real"]))
    assert json.loads(path.read_text()).keys() == result.keys()
    detectors = 1 + len(installed())
    assert len(result["false_positives"]) == detectors * (len(CONFOUNDERS) + 1)
    assert len(result["sensitivity"]) == detectors * (len(CELLS) + 1)
    for row in result["false_positives"]:
        assert row["low"] <= row["rate"] <= row["upper"]
    assert "semi_real" not in result  # Needs runs.
    # A second call with the same setting adds to the file; the numbers of curves are those of each table.
    again = run(parser.parse_args([*arguments, "calibration"]))
    assert again.keys() == {*result, "calibration"}
    assert [row["curves"] for row in again["calibration"]] == [8] * 7 + [2] * 4
    counted = json.loads(path.read_text())["setting"]
    assert counted["curves"] == {
        "false_positives": {"group": 4, "tuning": 6},
        "sensitivity": {"cell": 2},
        "calibration": {"family": 8, "foreign_flat": 2},
    }
    assert {row["curves"] for row in result["false_positives"] if row["group"] != "all"} == {4}
    assert {row["curves"] for row in result["sensitivity"] if row["amplitude"] != "all"} == {2}
    assert (counted["resamples"], counted["detector"]) == (RESAMPLES, VERSION)
