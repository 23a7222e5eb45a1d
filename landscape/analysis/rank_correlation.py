"""Do two columns of a table rise together? Rank correlations that say how sure they are, and when they say nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from landscape.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LEAST_ROWS = 8
"""With fewer complete rows no correlation is given: by chance, |ρ| of 7 is 0.7 or more one time in eleven."""

LEAST_RUNS = 5
"""From so many runs on, whole runs are resampled; a bootstrap of fewer would be one of a handful of values."""

COLUMNS = ("x", "y", "n", "num_runs", "spearman", "low", "high", "resampled", "remark")


def rank_correlations(
    table: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's ρ of pairs of columns, with percentile-bootstrap intervals (Efron and Tibshirani, 1993, ch. 13).

    The snapshots of one run follow each other, so they are not independent: with `LEAST_RUNS` runs or more, runs are
    drawn with all of their rows. With fewer the rows are drawn, and where a run has several, a remark says that the
    interval is too narrow. Infinities take part with their rank; rows with a NaN do not.

    Args:
        table: with a column ``run`` and those of the pairs.
        pairs: names of columns.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One row a pair: x, y, n (complete rows), num_runs, spearman, low and high (ends of the interval), resampled
        (``runs`` or ``rows``) and remark. With fewer than `LEAST_ROWS` complete rows the numbers are NaN and the
        remark says ``too few``.

    Raises:
        UsageError: an argument out of range, or a column that the table lacks.
    """
    import numpy as np
    import pandas as pd

    if not 0 < confidence < 1 or resamples < 1:
        raise UsageError(f"confidence {confidence}, resamples {resamples}; allowed: between 0 and 1, at least 1")
    rows = []
    for x, y in pairs:
        for name in ("run", x, y):
            if name not in table:
                raise UsageError(f"table: no column {name!r}")
        runs, values = table["run"].to_numpy(), np.array([table[x], table[y]], dtype=np.float64)
        whole = ~np.isnan(values).any(axis=0)
        rows.append({"x": x, "y": y, **_correlation(values[:, whole], runs[whole], confidence, resamples, seed)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def correlation_sentence(row: Mapping[str, Any]) -> str:
    """A row of `rank_correlations` in words."""
    runs = f"{row['num_runs']} run{'' if row['num_runs'] == 1 else 's'}"
    if math.isnan(row["spearman"]):
        return f"{row['x']} ~ {row['y']}: {row['remark']}"
    remark = f"; {row['remark']}" if row["remark"] else ""
    return (
        f"{row['x']} ~ {row['y']}: Spearman ρ = {row['spearman']:.2f} [{row['low']:.2f}, {row['high']:.2f}], 95 % by "
        f"bootstrap of {row['resampled']}, n = {row['n']} from {runs}{remark}"
    )


def _correlation(values: np.ndarray, runs: np.ndarray, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
    """Of values (2, n)."""
    import numpy as np

    of_run = np.unique(runs, return_inverse=True)[1]
    n, num_runs = len(runs), int(of_run.max(initial=-1)) + 1
    found = {"n": n, "num_runs": num_runs, "resampled": "runs" if num_runs >= LEAST_RUNS else "rows", "remark": ""}
    if n < LEAST_ROWS:
        return {**found, "remark": f"too few: {n} rows, at least {LEAST_ROWS}"}
    value = float(_spearman(values, np.ones((1, n)))[0])
    if math.isnan(value):
        return {**found, "remark": "one of the two never changes"}
    if num_runs < LEAST_RUNS and n > num_runs:
        found["remark"] = "rows of one run are not independent: the interval is too narrow"
    units = of_run if num_runs >= LEAST_RUNS else np.arange(n)
    count = units.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    ends = np.nanquantile(_spearman(values, drawn[:, units]), [(1 - confidence) / 2, (1 + confidence) / 2])
    return {**found, "spearman": value, "low": float(ends[0]), "high": float(ends[1])}


def _spearman(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """ρ (samples,) of values (2, n) of which row i occurs times[:, i] times; NaN where one of the two is constant.

    The correlation of the ranks, where ties share their mean rank.
    """
    import numpy as np

    total = times.sum(axis=1, keepdims=True)
    centered = []
    for column in values:
        _, tie, counts = np.unique(column, return_inverse=True, return_counts=True)
        order, starts = np.argsort(tie, kind="stable"), np.cumsum(counts) - counts
        in_tie = np.add.reduceat(times[:, order], starts, axis=1)
        ranks = np.cumsum(in_tie, axis=1) - (in_tie - 1) / 2
        centered.append(ranks[:, tie] - (total + 1) / 2)
    first, second = centered
    scale = np.sqrt((times * first**2).sum(axis=1) * (times * second**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return (times * first * second).sum(axis=1) / scale
