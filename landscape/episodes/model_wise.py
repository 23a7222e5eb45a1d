"""Model-wise double descent: a rise and a second descent of a final loss along rank, learning rate or sample size.

The replicates are seeds: a final loss y_ks at each of K ordered positions. The null hypothesis is a single valley:
means that first fall and then rise, with the monotone curves among them. A U is classical overfitting, a fall is "more
is better"; neither is a double descent. The alternative is an interior peak: positions i < j < k with μ_j above both.

*Statistic.* For every pair Welch's t of the difference, turned into a normal score z (replicates may scatter very
differently, as they do near divergence); then the largest over i < j < k of min(z_ij, z_kj), and z is large where j is
the higher. One triple alone would be an intersection-union test, exact at its own level (Berger 1982).

*Null distribution.* The maximum over triples is calibrated at the least favorable single valleys: a valley so deep at
position v that every comparison with it is certain, and a plateau on either side, where any fall is noise. Sampling at
the fitted valley instead would be liberal: the fit to a noisy plateau slopes away from what it is to exclude. The
largest p-value over v counts. Replicates are drawn normal, each position with its own variance: three to ten of them
do not show more of their distribution.

*Selection.* A rank's loss at its best learning rate must not be the smallest of several noisy ones: that lies below
what the rate gives, the more so the more rates and the more noise there are, and would make dips. `at_best` takes each
seed's loss at the rate that the other seeds prefer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.episodes.curve import Array
from landscape.episodes.trend import monotone_trend
from landscape.errors import UsageError

MIN_POSITIONS, MIN_REPLICATES = 4, 3
"""Fewer are called underpowered whatever the noise."""
_RESAMPLES = 1999
_POWER = 0.8


@dataclass(frozen=True, eq=False)
class ModelWise:
    """What a curve of final losses along an ordered axis says of an interior peak.

    Attributes:
        positions: (K,) ascending, such as ranks.
        means: (K,) over the replicates.
        standard_errors: (K,) of the means.
        replicates: (K,) how many.
        valley: (K,) the closest curve with a single valley, by weighted least squares.
        before: position of the trough before the peak.
        peak: position of the peak itself.
        after: position of the trough after it. All three NaN where fewer than three positions can be tested.
        amplitude: peak mean minus the higher of the two troughs; negative where no mean lies above two others.
        p_value: 1 where nothing could be tested.
        detectable: amplitude of a peak at the middle position that would be found in 80 % of such samples at alpha;
            NaN where nothing could be tested or it was not asked for.
        underpowered: why a large p-value says little, in words; empty where it says something.
    """

    positions: Array
    means: Array
    standard_errors: Array
    replicates: NDArray[np.int64]
    valley: Array
    before: float
    peak: float
    after: float
    amplitude: float
    p_value: float
    detectable: float
    underpowered: str


def model_wise(
    positions: ArrayLike,
    replicates: Sequence[ArrayLike],
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = _RESAMPLES,
    power: bool = True,
) -> ModelWise:
    """Test for a rise and a second descent along an axis.

    Args:
        positions: (K,) strictly increasing; ranks and learning rates as they are, only their order counts.
        replicates: the final losses at each position, one a seed; NaN (a run that was lost) is left out.
        alpha: level of the verdict about power.
        seed: of the resampling.
        resamples: p-values are multiples of 1/(resamples + 1).
        power: whether to find the detectable amplitude too, which takes most of the time.

    Raises:
        UsageError: positions that do not increase, lists that do not match, infinite values, alpha outside (0, 1).
    """
    at, groups = _checked(positions, replicates, alpha, resamples)
    sizes = np.array([len(group) for group in groups])
    means = np.array([group.mean() if len(group) else np.nan for group in groups])
    variances = np.array([group.var(ddof=1) if len(group) > 1 else np.nan for group in groups])
    errors = np.sqrt(variances / np.maximum(sizes, 1))
    usable = np.isfinite(variances)
    nothing = float("nan")
    where, height, p_value, detectable = (nothing,) * 3, nothing, 1.0, nothing
    if usable.sum() >= 3:
        rng = np.random.default_rng(seed)
        summary = _Summary(means[usable], variances[usable], sizes[usable])
        triple, score = summary.best()
        where = tuple(float(at[usable][index]) for index in triple)
        height = float(summary.means[triple[1]] - max(summary.means[triple[0]], summary.means[triple[2]]))
        null = _null_scores(summary, rng, resamples)
        p_value = float(((1 + (null >= score).sum(axis=1)) / (1 + resamples)).max())
        detectable = _detectable(summary, null, alpha, rng) if power else nothing
    return ModelWise(
        positions=at,
        means=means,
        standard_errors=errors,
        replicates=sizes,
        valley=_fit(means, errors, sizes),
        before=where[0],
        peak=where[1],
        after=where[2],
        amplitude=height,
        p_value=p_value,
        detectable=detectable,
        underpowered=_weakness(int(usable.sum()), sizes[usable]),
    )


def at_best(losses: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Each seed's loss at the setting that the other seeds prefer, (settings, seeds) → (seeds,), and which that is.

    A seed's own noise has no part in the choice, so its value is an unbiased one of the chosen setting. Settings in
    which any other seed was lost (NaN) are not chosen; a seed without a choice, or lost at it, is NaN with index -1
    or the chosen one.

    Raises:
        UsageError: not two-dimensional, or fewer than two seeds.
    """
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise UsageError(f"losses: shape {table.shape}; expected (settings, seeds) with at least 2 seeds.")
    values, chosen = np.full(table.shape[1], np.nan), np.full(table.shape[1], -1)
    for own in range(table.shape[1]):
        others = np.delete(table, own, axis=1).mean(axis=1)
        if np.isfinite(others).any():
            chosen[own] = int(np.nanargmin(np.where(np.isfinite(others), others, np.nan)))
            values[own] = table[chosen[own], own]
    return values, chosen


def single_valley(values: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """The weighted least-squares curve that falls and then rises, (n,) → (n,); the best of all places to turn."""
    y = np.asarray(values, dtype=np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    best, least = y, np.inf
    for turn in range(len(y) + 1):
        # Turning between two points needs no common level: the sides meet in a valley whatever they are.
        fit = np.concatenate([_antitone(y[:turn], w[:turn]), _antitone(y[turn:][::-1], w[turn:][::-1])[::-1]])
        loss = float((w * (y - fit) ** 2).sum())
        if loss < least * (1 - 1e-12):
            best, least = fit, loss
    return best


@dataclass(frozen=True, eq=False)
class _Summary:
    """Means, variances and sizes of the positions that have at least two replicates."""

    means: Array
    variances: Array
    sizes: NDArray[np.int64]

    def best(self) -> tuple[tuple[int, int, int], float]:
        """The triple with the largest statistic, and that."""
        z = _scores(self.means[None], self.variances[None], self.sizes)[0]
        left, right = _sides(z)
        statistic = np.minimum(left, right)
        peak = int(statistic.argmax())
        before, after = int(z[peak, :peak].argmax()), peak + 1 + int(z[peak, peak + 1 :].argmax())
        return (before, peak, after), float(statistic[peak])

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Means about 0 and variances of resampled replicates, (count, K) each."""
        means = rng.standard_normal((count, len(self.sizes))) * np.sqrt(self.variances / self.sizes)
        freedom = self.sizes - 1
        return means, self.variances * rng.chisquare(freedom, (count, len(freedom))) / freedom


def _scores(means: Array, variances: Array, sizes: NDArray[np.int64]) -> Array:
    """Normal scores of Welch's t that j is higher than i, (..., K) → (..., K, K) indexed [j, i]."""
    from scipy.special import ndtri, stdtr

    squared = variances / sizes
    total = squared[..., :, None] + squared[..., None, :]
    shares = squared**2 / (sizes - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / (shares[..., :, None] + shares[..., None, :])
        t = (means[..., :, None] - means[..., None, :]) / np.sqrt(total)
    # Equal replicates have no scatter: a difference between them is certain, none is nothing.
    t = np.where(np.isnan(t), 0.0, t)
    freedom = np.where(np.isfinite(freedom), freedom, 1.0)
    return -ndtri(stdtr(freedom, -t))


def _sides(z: Array) -> tuple[Array, Array]:
    """How clearly each position is above one before it, and above one after it; (..., K) each."""
    count = z.shape[-1]
    earlier = np.tril(np.ones((count, count), bool), -1)
    left = np.where(earlier, z, -np.inf).max(axis=-1)
    right = np.where(earlier.T, z, -np.inf).max(axis=-1)
    return left, right


def _null_scores(summary: _Summary, rng: np.random.Generator, resamples: int) -> Array:
    """Statistics at the least favorable single valleys, (K, resamples): one row a place of the valley."""
    z = _scores(*summary.sample(resamples, rng), summary.sizes)
    count = len(summary.sizes)
    rows = []
    for valley in range(count):
        # Before the valley any rise counts, as the fall to it is certain; behind it any fall.
        left = np.where(np.tril(np.ones((valley, valley), bool), -1), z[:, :valley, :valley], -np.inf)
        after = count - valley - 1
        right = np.where(np.triu(np.ones((after, after), bool), 1), z[:, valley + 1 :, valley + 1 :], -np.inf)
        parts = [side.reshape(resamples, -1).max(axis=1, initial=-np.inf) for side in (left, right)]
        rows.append(np.maximum(*parts))
    return np.array(rows)


def _detectable(summary: _Summary, null: Array, alpha: float, rng: np.random.Generator) -> float:
    """Height of a peak at the middle position, on flat ground, that is found with a power of 80 %."""
    critical = float(np.sort(null, axis=1)[:, int((1 - alpha) * null.shape[1])].max())
    count = min(null.shape[1], 400)
    means, variances = summary.sample(count, rng)
    bump = (np.arange(len(summary.sizes)) == len(summary.sizes) // 2).astype(float)

    def power(height: float) -> float:
        left, right = _sides(_scores(means + height * bump, variances, summary.sizes))
        return float((np.minimum(left, right).max(axis=-1) >= critical).mean())

    unit = float(np.sqrt((summary.variances / summary.sizes).max()))
    low, high = 0.0, unit
    while power(high) < _POWER:
        low, high = high, 2 * high
        if high > 1e6 * unit or not unit:
            return float("nan")
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= _POWER else (middle, high)
    return high


def _weakness(usable: int, sizes: NDArray[np.int64]) -> str:
    """Why the test can find only very large peaks, or none."""
    if usable < MIN_POSITIONS:
        return f"{usable} positions with at least 2 replicates; {MIN_POSITIONS} or more are needed"
    if sizes.min() < MIN_REPLICATES:
        return f"{sizes.min()} replicates at a position; {MIN_REPLICATES} or more are needed"
    return ""


def _fit(means: Array, errors: Array, sizes: NDArray[np.int64]) -> Array:
    """The single valley nearest to the means, weighted by their precision where all have one."""
    known = sizes > 0
    precise = np.isfinite(errors[known]).all() and (errors[known] > 0).all()
    fit = np.full(len(means), np.nan)
    fit[known] = single_valley(means[known], errors[known] ** -2.0 if precise else sizes[known])
    return fit


def _antitone(values: Array, weights: Array) -> Array:
    """Non-increasing weighted least squares (pool adjacent violators)."""
    if np.ptp(weights) == 0 if len(weights) else True:
        return np.asarray(monotone_trend(values), dtype=np.float64) if len(values) else values
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        level, mass, size = value, weight, 1
        while blocks and blocks[-1][0] < level:
            previous, more, count = blocks.pop()
            level, mass, size = (level * mass + previous * more) / (mass + more), mass + more, size + count
        blocks.append((level, mass, size))
    return np.repeat([level for level, _, _ in blocks], [size for _, _, size in blocks])


def _checked(
    positions: ArrayLike, replicates: Sequence[ArrayLike], alpha: float, resamples: int
) -> tuple[Array, list[Array]]:
    at = np.asarray(positions, dtype=np.float64)
    if at.ndim != 1 or not np.isfinite(at).all() or (np.diff(at) <= 0).any():
        raise UsageError(f"positions: {at.tolist()} must be finite and increase strictly.")
    if len(replicates) != len(at):
        raise UsageError(f"replicates: {len(replicates)} lists for {len(at)} positions.")
    if not 0 < alpha < 1:
        raise UsageError(f"alpha: {alpha!r} must lie between 0 and 1.")
    if resamples < 19:
        raise UsageError(f"resamples: {resamples!r} must be 19 or more.")
    groups = []
    for place, values in zip(at, replicates, strict=True):
        group = np.asarray(values, dtype=np.float64)
        group = group[~np.isnan(group)]
        if not np.isfinite(group).all():
            raise UsageError(f"replicates: an infinite value at position {place:g}; NaN leaves a lost run out.")
        groups.append(group)
    return at, groups
