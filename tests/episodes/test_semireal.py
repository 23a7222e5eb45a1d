"""Semi-real curves: what is common to runs on the same batches stays common, and what is added is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from landscape.episodes import semireal
from landscape.episodes.semireal import (
    SharedRuns,
    half_found,
    load_shared_runs,
    save_shared_runs,
    semi_real_curve,
    sibling_table,
    stationary_blocks,
)
from landscape.errors import UsageError


def shared(steps: int = 300) -> SharedRuns:
    """Two runs and a base model whose noise is 0.987 and 0.9 correlated with theirs."""
    rng = np.random.default_rng(0)
    difficulty = rng.standard_normal(steps)
    noise = [np.sqrt(c) * difficulty + np.sqrt(1 - c) * rng.standard_normal(steps) for c in (0.987, 0.987, 0.82)]
    descent = 20 * np.exp(-np.arange(steps) / 50)
    return SharedRuns(descent + np.stack(noise[:2]), 30 + noise[2], "made")


def test_residuals_have_no_descent_and_unit_deviation() -> None:
    rows, base = shared(400).residuals
    assert rows.shape == (2, 300)
    assert (rows**2).mean() == pytest.approx(1, abs=0.02)
    assert np.abs(rows.reshape(2, 10, 30).mean(axis=2)).max() < 4 / np.sqrt(30)
    assert base.mean() == pytest.approx(0, abs=1e-9)
    assert base.std() == pytest.approx(1)


def test_summary_recovers_the_correlations() -> None:
    told = shared(2000).summary()
    assert told["correlation, sibling"] == pytest.approx(0.987, abs=0.003)
    assert told["correlation, base"] == pytest.approx(0.9, abs=0.02)
    # Of the difference of two curves that correlate c, √(1 - c²) of one's noise is left by the best coefficient.
    assert told["noise left, sibling"] == pytest.approx(np.sqrt(1 - 0.987**2), rel=0.1)


def test_blocks_continue_and_have_the_mean_length() -> None:
    at = stationary_blocks(250, 20_000, np.random.default_rng(1))
    assert at.min() >= 0
    assert at.max() < 250
    breaks = np.flatnonzero((np.diff(at) != 1) & (np.diff(at) != -249))
    # Gaps are geometric of mean 40: their mean varies by 40/√500 = 1.8.
    assert 20_000 / len(breaks) == pytest.approx(40, abs=4 * 1.8)


def test_a_curve_and_its_controls_share_their_noise() -> None:
    with_rebound, without = (semi_real_curve(shared(), a, seed=3) for a in (2.0, 0.0))
    assert without.episodes == ()
    (truth,) = with_rebound.episodes
    assert truth.onset < truth.peak < truth.recovery
    assert truth.recovery - truth.onset <= 0.1 * 600 + 3
    assert np.corrcoef(np.diff(without.values), np.diff(without.sibling))[0, 1] > 0.95
    again = semi_real_curve(shared(), 2.0, seed=3)
    np.testing.assert_array_equal(again.values, with_rebound.values)


def test_siblings_reveal_what_raw_curves_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semireal, "AMPLITUDES", (0.0, 1.0))
    rows = sibling_table(shared(), 5, 0, 1000, 0.05)
    found = {row["amplitude"]: row for row in rows}
    assert found[1.0]["sibling, equal rate"] > found[1.0]["raw, equal rate"]
    assert found[0.0]["curves"] == 10


def test_half_found_interpolates() -> None:
    rows = [{"amplitude": a, "k": k} for a, k in ((0.0, 0.05), (1.0, 0.2), (4.0, 0.8))]
    assert half_found(rows, "k") == pytest.approx(2)
    assert np.isnan(half_found(rows[:2], "k"))


def test_files(tmp_path: Path) -> None:
    save_shared_runs(tmp_path / "shared.npz", shared())
    again = load_shared_runs(tmp_path / "shared.npz")
    np.testing.assert_array_equal(again.runs, shared().runs)
    assert again.name == "made"
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="not a file of shared runs"):
        load_shared_runs(tmp_path / "other.npz")
    with pytest.raises(UsageError, match="at least two runs of 4 steps"):
        SharedRuns(np.zeros((1, 4)), np.zeros(4))
    with pytest.raises(UsageError, match="NaN or infinite"):
        SharedRuns(np.full((2, 4), np.nan), np.zeros(4))
