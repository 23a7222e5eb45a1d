"""Paired comparison of two methods: an exact sign-flip test with the interval that inverts it.

Two methods on the same seed see the same batches in the same order, so their difference has little of the seed's own
luck. If the methods do not differ, each seed's difference is as likely to have the other sign: the test compares the
mean difference with those of all 2^n sign patterns (Fisher 1935) and assumes nothing of the distribution. With n seeds
no two-sided p-value is below 2^(1-n): 5 seeds cannot reach 0.05, 6 can.

The interval holds every shift that the same test does not reject. Flipping the signs of d - δ in a subset raises the
mean exactly if that subset's mean is at most δ; so the interval's ends are order statistics of the means of all
2^n - 1 nonempty subsets (Hartigan 1969, "typical values").

Several cells (rank, learning rate) that share their seeds are averaged seed by seed first: data order and
initialization tie the cells of one seed together, and only seeds are independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from landscape.episodes.curve import Array, numbers
from landscape.errors import UsageError

EXACT_UP_TO = 16
"""Pairs up to which all sign patterns are counted; above, `_PATTERNS` random ones."""
_PATTERNS = 65_536


@dataclass(frozen=True)
class PairedComparison:
    """Mean difference over pairs, with its test and interval.

    Attributes:
        difference: mean of first minus second.
        low: lower end of the interval.
        high: its upper end.
        level: confidence level of the interval: 1 - alpha, or what so few pairs allow.
        p_value: two-sided, of the hypothesis that the differences are symmetric about 0.
        pairs: n.
        smallest_p: that n pairs can give, 2^(1-n).
        too_few: whether that exceeds alpha, so that no difference, however large, would be significant.
        standardized: mean over the standard deviation of the differences (Cohen's d_z); NaN where that is 0.
    """

    difference: float
    low: float
    high: float
    level: float
    p_value: float
    pairs: int
    smallest_p: float
    too_few: bool
    standardized: float


def compare_pairs(first: ArrayLike, second: ArrayLike, alpha: float = 0.05, seed: int = 0) -> PairedComparison:
    """Compare paired measurements, (n,) each.

    Pairs in which either is NaN are left out. Above `EXACT_UP_TO` pairs the sign patterns are a random sample.

    Raises:
        UsageError: lengths that differ, infinite values, alpha outside (0, 1), or no pair.
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha: {alpha!r} must lie between 0 and 1.")
    a = numbers("first", first)
    differences = a - numbers("second", second, len(a))
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    if not n:
        raise UsageError("first: no pair with both values; give each method's values on the same seeds.")
    if not np.isfinite(differences).all():
        raise UsageError("first: an infinite value; leave out or cap what diverged.")
    means = subset_means(differences, seed)
    patterns = len(means) + 1
    # Below 2^-40 of their size differences are rounding: a pattern that ties with the observed one must count.
    slack = 2.0**-40 * float(np.abs(differences).max())
    above = 1 + int((means <= slack).sum())
    below = 1 + int((means >= -slack).sum())
    # Of all patterns none is below the observed one if all differences are 0.
    p_value = min(1.0, 2 * min(above, below) / patterns)
    smallest = 2.0 ** (1 - n)
    rank = max(int(np.floor(alpha / 2 * patterns)), 1)
    spread = float(differences.std(ddof=1)) if n > 1 else 0.0
    mean = float(differences.mean())
    return PairedComparison(
        difference=mean,
        low=float(means[rank - 1]),
        high=float(means[-rank]),
        level=max(1 - 2 * rank / patterns, 0.0),
        p_value=p_value,
        pairs=n,
        smallest_p=smallest,
        too_few=smallest > alpha,
        standardized=mean / spread if spread > 0 else float("nan"),
    )


def subset_means(values: Array, seed: int = 0) -> Array:
    """Sorted means of all nonempty subsets of (n,) values, or of `_PATTERNS` - 1 random ones above `EXACT_UP_TO`."""
    n = len(values)
    if n <= EXACT_UP_TO:
        sums, sizes = np.zeros(1), np.zeros(1)
        for value in values:
            sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
        return np.sort(sums[1:] / sizes[1:])
    chosen = np.random.default_rng(seed).random((_PATTERNS - 1, n)) < 0.5
    chosen[~chosen.any(axis=1)] = True
    return np.sort(chosen @ values / chosen.sum(axis=1))
