"""What is known of a curve's noise beside its spectrum, and the null distribution that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from landscape.episodes import correction
from landscape.episodes.correction import SMALLEST, TAILS, fit_correction, shipped
from landscape.episodes.memory import noise_memory, short_redness
from landscape.episodes.synthetic import autoregressive, long_memory
from landscape.episodes.trend import without_drops
from tests.benchmark_scripts import load_benchmark


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_noise_that_forgets_has_no_memory(phi: float) -> None:
    rng = np.random.default_rng(0)
    found = [noise_memory(autoregressive(rng.standard_normal(1200), phi)) for _ in range(20)]
    # White noise is fractional noise of memory 0: the least memory of the grid is as likely there.
    assert np.median(found) < 0.03


@pytest.mark.parametrize("d", [0.25, 0.4])
def test_long_memory_is_found(d: float) -> None:
    rng = np.random.default_rng(1)
    found = [noise_memory(long_memory(1000, rng, d)) for _ in range(20)]
    # The estimate's standard error is √(6/(1000·π²)) = 0.025 beside a grid of 0.05.
    assert np.median(found) == pytest.approx(d, abs=0.05)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_short_redness_is_that_of_the_process(phi: float) -> None:
    rng = np.random.default_rng(2)
    covariance = phi ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    weights = [np.repeat([-0.5, 1, -0.5], h) / h for h in (1, 2)]
    one, two = (float(w @ covariance[: len(w), : len(w)] @ w) for w in weights)
    found = [short_redness(autoregressive(rng.standard_normal(4200), phi), np.ones(4000)) for _ in range(20)]
    error = np.std(found) / np.sqrt(20)
    assert np.mean(found) == pytest.approx(np.log(2 * two / one), abs=4 * error)


def test_drops_are_taken_out_and_noise_is_left() -> None:
    noise = np.random.default_rng(3).standard_normal(600)
    steps = np.where(np.arange(600) < 200, 30.0, np.where(np.arange(600) < 400, 15.0, 0.0))
    found = without_drops(steps + noise)
    parts = [found[a : a + 150].mean() for a in (25, 225, 425)]
    # Each drop is taken with the noise of the two points beside it, √2.
    assert np.ptp(parts) < 4 * np.sqrt(2 * 2)
    np.testing.assert_array_equal(without_drops(noise), noise)
    dip = noise.copy()
    dip[300:304] -= 20  # Comes back: a dip and no drop.
    np.testing.assert_array_equal(without_drops(dip), dip)


def features(count: int, rng: np.random.Generator) -> np.ndarray:
    low, high = [4.0, 0.9, -0.2, 0.0], [6.4, 2.0, 1.2, 0.3]
    return rng.uniform(low, high, (count, 4))


def test_a_fitted_correction_gives_uniform_p_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correction, "MARGIN", 0.0)
    rng = np.random.default_rng(4)
    known = features(6000, rng)
    scores = 1 + known[:, 2] + np.exp(0.3 * known[:, 2]) * rng.gumbel(size=6000)
    fitted = fit_correction(scores[:5000], known[:5000], np.ones(5000), {})
    p = np.array([fitted.p_value(*one) for one in zip(scores[5000:], known[5000:], strict=True)])
    for a in (0.02, 0.1, 0.5):
        assert (p <= a).mean() == pytest.approx(a, abs=4 * np.sqrt(a * (1 - a) / 1000))


def test_the_margin_only_makes_p_values_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    known = features(2000, rng)
    scores = rng.gumbel(size=2000)
    with_margin = fit_correction(scores, known, np.ones(2000), {})
    monkeypatch.setattr(correction, "MARGIN", 0.0)
    without = fit_correction(scores, known, np.ones(2000), {})
    forgets, remembers = np.array([6.0, 1.1, 0.5, 0.0]), np.array([6.0, 1.1, 0.5, 0.3])
    assert with_margin.p_value(3.0, forgets) == without.p_value(3.0, forgets)
    assert with_margin.p_value(3.0, remembers) > without.p_value(3.0, remembers)


def test_shipped_p_values_fall_with_the_score_and_are_bounded() -> None:
    known = np.array([6.4, 1.1, 0.5, 0.0])
    p = [shipped().p_value(score, known) for score in np.linspace(-5, 60, 200)]
    assert np.all(np.diff(p) <= 0)
    assert (p[0], p[-1]) == (1.0, SMALLEST)
    assert len(shipped().quantiles) == len(TAILS)
    assert np.all(np.diff(shipped().quantiles) >= 0)


def test_coefficients_survive_the_file(tmp_path: Path) -> None:
    correction.write(shipped(), tmp_path / "correction.json")
    assert (tmp_path / "correction.json").read_text() == correction.FILE.read_text()


def test_the_script_that_computes_it_runs_and_the_shipped_one_is_its(tmp_path: Path) -> None:
    script = load_benchmark("episodes_correction")
    scores, known, weights = script.simulated(120, 60)
    for level, share, error in script.checked(scores, known, weights):
        assert share == pytest.approx(level, abs=4 * error)
    # A detector whose scores were higher by one of their standard deviations would be told.
    told = script.checked(scores + 1, known, weights)
    assert any(abs(share - level) > 4 * error for level, share, error in told)
    script.main(["--varied", "30", "--fixed", "30", "-o", str(tmp_path / "new.json")])
    stored = json.loads((tmp_path / "new.json").read_text())
    assert stored["about"] == {"varied": 30, "fixed": 30, "resamples": 99}
    assert stored.keys() == json.loads(correction.FILE.read_text()).keys()
    assert len(stored["quantiles"]) == len(TAILS)
