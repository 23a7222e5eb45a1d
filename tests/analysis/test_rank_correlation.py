"""Rank correlations: against SciPy on the rows written out, their intervals' coverage, and when none is given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from landscape.analysis.rank_correlation import COLUMNS, LEAST_ROWS, _spearman, rank_correlations
from landscape.errors import UsageError


def table(x: Any, y: Any, run: Any = None) -> pd.DataFrame:
    """Each row a run of its own unless they are given."""
    return pd.DataFrame({"run": [f"r{i}" for i in range(len(x))] if run is None else run, "x": x, "y": y})


def correlation(data: pd.DataFrame, **options: Any) -> dict[str, Any]:
    (row,) = rank_correlations(data, [("x", "y")], **options).to_dict("records")
    assert tuple(row) == COLUMNS
    return row


def scipys(x: Any, y: Any) -> float:
    found: Any = spearmanr(x, y)
    return found.statistic


def normal(n: int, rho: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T


def test_the_coefficient_is_scipys_on_the_rows_as_often_as_they_occur() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(0, 5, 12), rng.normal(size=12)]).astype(float)  # with ties
    values[1, 3] = np.inf
    times = rng.multinomial(12, np.full(12, 1 / 12), size=50)
    expected = [scipys(*np.repeat(values, row, axis=1)) for row in times]
    np.testing.assert_allclose(_spearman(values, times), expected, rtol=1e-12)
    found = correlation(table(*values))
    assert found["spearman"] == pytest.approx(scipys(*values), rel=1e-12)
    assert (found["n"], found["num_runs"], found["resampled"], found["remark"]) == (12, 12, "runs", "")
    assert found["low"] < found["spearman"] < found["high"]


def test_intervals_cover_what_they_say() -> None:
    """Of 200 samples of a normal distribution, whose Spearman correlation is 6/π·asin(ρ/2) (Pearson, 1907)."""
    truth = 6 / math.pi * math.asin(0.3)
    found = [
        correlation(table(*normal(20, 0.6, seed)), confidence=0.9, resamples=300, seed=seed) for seed in range(200)
    ]
    covered = sum(row["low"] <= truth <= row["high"] for row in found) / 200
    assert covered == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / 200))


def test_rows_of_one_run_count_as_one_draw() -> None:
    x, y = normal(10, 0.6, 1)
    often = table(np.repeat(x, 5), np.repeat(y, 5), np.repeat(range(10), 5))
    single, repeated = correlation(table(x, y)), correlation(often)
    assert {key: repeated[key] for key in ("spearman", "low", "high")} == pytest.approx(
        {key: single[key] for key in ("spearman", "low", "high")}
    )
    assert (repeated["n"], repeated["num_runs"], repeated["resampled"]) == (50, 10, "runs")
    few = correlation(table(x, y, ["a"] * 4 + ["b"] * 6))
    assert few["resampled"] == "rows"
    assert few["remark"] == "rows of one run are not independent: the interval is too narrow"
    assert (few["low"], few["high"]) == pytest.approx((single["low"], single["high"]))  # as if they were


@pytest.mark.parametrize("left_out", [np.nan, None])
def test_with_too_few_complete_rows_there_is_none(left_out: Any) -> None:
    x, y = normal(LEAST_ROWS, 0.9, 2)
    enough = correlation(table(x, y))
    assert math.isfinite(enough["spearman"])
    found = correlation(table([*x[:-1], left_out], y))
    assert found["remark"] == "too few: 7 rows, at least 8"
    assert all(math.isnan(found[key]) for key in ("spearman", "low", "high"))
    nothing = correlation(table([], []))
    assert (nothing["n"], nothing["num_runs"]) == (0, 0)


def test_a_constant_has_no_ranks() -> None:
    found = correlation(table(np.ones(9), np.arange(9)))
    assert found["remark"] == "one of the two never changes"
    assert math.isnan(found["spearman"])


def test_the_interval_depends_on_the_seed_alone() -> None:
    data = table(*normal(15, 0.5, 3))
    assert correlation(data, seed=1) == correlation(data, seed=1)
    assert correlation(data, seed=1) != correlation(data, seed=2)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"confidence": 1}, "confidence 1, resamples 2000; allowed: between 0 and 1"),
    ({"resamples": 0}, "resamples 0; allowed: .* at least 1"),
    ({"pairs": [("x", "z")]}, "table: no column 'z'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rank_correlations(table([1], [2]), **{"pairs": [("x", "y")], **options})
