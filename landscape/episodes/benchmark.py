"""The benchmark: how often a detector is wrong on curves without an episode, and what it finds on curves with one.

`evaluate` runs any detector over recipes × seeds; the scores follow from the outcomes alone. A detector is a function
from a curve to intervals with a p-value or a strength; only what it counts as detected is handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from landscape.episodes.detector import CurveKind, detect_episodes
from landscape.episodes.synthetic import (
    CONFOUNDERS,
    NOISES,
    SHAPES,
    TRENDS,
    Interval,
    Recipe,
    SyntheticCurve,
    generate,
)

LENGTHS = (300, 600, 1000, 2000)
"""Points of a curve of step losses."""
DEVELOPMENT, TEST = 0, 5_000_000
"""First seeds of the two splits. The test split is used once a release."""


@dataclass(frozen=True)
class Detection:
    """One interval that a detector reports, with what decides whether it counts."""

    onset: float
    peak: float
    recovery: float
    strength: float
    """Larger is more certain; for p-values, 1 - p."""


Detector = Callable[[SyntheticCurve], list[Detection]]
Generator = Callable[[Recipe, int], SyntheticCurve]


def ours(curve: SyntheticCurve, kind: CurveKind = "steps", logarithm: bool = False) -> list[Detection]:
    """`detect_episodes` with everything that a user would know of the curve."""
    found = detect_episodes(
        curve.steps,
        curve.values,
        warmup_steps=curve.warmup_steps,
        learning_rate=curve.learning_rate,
        epoch_steps=curve.epoch_steps,
        resume_steps=curve.resume_steps,
        standard_errors=curve.standard_errors,
        kind=kind,
        logarithm=logarithm,
    )
    return [Detection(e.onset, e.peak, e.recovery, 1 - e.p_value) for e in found]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a detector made of one curve."""

    recipe: Recipe
    truth: tuple[Interval, ...]
    found: tuple[Detection, ...]
    milliseconds: float

    @property
    def strength(self) -> float:
        """Of the strongest detection; -inf without any."""
        return max((d.strength for d in self.found), default=-np.inf)


def evaluate(
    detector: Detector, recipes: Iterable[Recipe], first_seed: int, make: Generator = generate
) -> list[Outcome]:
    """Run a detector over recipes, the k-th with seed first_seed + k; processor time is taken for each curve."""
    result = []
    for k, recipe in enumerate(recipes):
        curve = make(recipe, first_seed + k)
        start = time.process_time()
        found = detector(curve)
        elapsed = 1e3 * (time.process_time() - start)
        result.append(Outcome(recipe, curve.episodes, tuple(found), elapsed))
    return result


def draw_recipes(
    count: int, rng: np.random.Generator, lengths: Sequence[int] = LENGTHS, **fixed: object
) -> list[Recipe]:
    """Recipes with every ingredient that is not fixed drawn uniformly from its table."""
    result = []
    for _ in range(count):
        drawn: dict[str, object] = {
            "points": int(rng.choice(lengths)),
            "trend": str(rng.choice(sorted(TRENDS))),
            "noise": str(rng.choice(sorted(NOISES))),
            "confounder": str(rng.choice(sorted(CONFOUNDERS))),
            "shape": str(rng.choice(sorted(SHAPES))),
        }
        result.append(Recipe(**{**drawn, **fixed}))  # type: ignore[arg-type]
    return result


# Scores.


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided confidence interval of a proportion (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high


@dataclass(frozen=True)
class FalsePositives:
    """False-positive rate on curves without an episode."""

    curves: int
    rate: float
    low: float
    high: float


def false_positives(outcomes: Sequence[Outcome], threshold: float) -> FalsePositives:
    """Share of curves with any detection of at least this strength, with its 95 % interval."""
    wrong = sum(o.strength >= threshold for o in outcomes)
    return FalsePositives(len(outcomes), wrong / max(len(outcomes), 1), *clopper_pearson(wrong, len(outcomes)))


def overlap(a: Interval | Detection, b: Interval | Detection) -> float:
    """Intersection over union of [onset, recovery]."""
    shared = min(a.recovery, b.recovery) - max(a.onset, b.onset)
    union = max(a.recovery, b.recovery) - min(a.onset, b.onset)
    return max(shared, 0.0) / union if union > 0 else 0.0


def matches(truth: Sequence[Interval], found: Sequence[Detection], lowest: float) -> list[tuple[int, int]]:
    """One-to-one matching of intervals that overlap by `lowest` or more, best pairs first."""
    pairs = sorted(((overlap(t, d), i, j) for i, t in enumerate(truth) for j, d in enumerate(found)), reverse=True)
    used_truth: set[int] = set()
    used_found: set[int] = set()
    result = []
    for value, i, j in pairs:
        if value >= lowest and i not in used_truth and j not in used_found:
            used_truth.add(i)
            used_found.add(j)
            result.append((i, j))
    return result


@dataclass(frozen=True)
class Sensitivity:
    """How well episodes are found and placed."""

    curves: int
    precision: float
    recall: float
    f1: float
    onset_error: float
    """Median distance of matched onsets, as a share of the run; NaN without a match."""
    peak_error: float


def counts(outcomes: Sequence[Outcome], threshold: float, lowest: float = 0.3) -> np.ndarray:
    """(curves, 3): matched, true and reported episodes of each curve, matched at an intersection over union."""
    rows = []
    for o in outcomes:
        counted = [d for d in o.found if d.strength >= threshold]
        rows.append((len(matches(o.truth, counted, lowest)), len(o.truth), len(counted)))
    return np.array(rows).reshape(-1, 3)


def f1_score(table: np.ndarray) -> np.ndarray:
    """F1 of (..., curves, 3) counts, (...)."""
    hits, true, reported = np.moveaxis(table.sum(axis=-2), -1, 0)
    return 2 * hits / np.maximum(true + reported, 1)


def f1_difference(a: np.ndarray, b: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """F1 of a minus F1 of b on the same curves, with its 95 % interval from resampling the curves (Efron 1979)."""
    chosen = np.random.default_rng([seed, 6]).multinomial(len(a), np.full(len(a), 1 / len(a)), draws)
    both = [np.tensordot(chosen, t, axes=1)[:, None, :] for t in (a, b)]
    low, high = np.quantile(f1_score(both[0]) - f1_score(both[1]), [0.025, 0.975])
    return float(f1_score(a) - f1_score(b)), float(low), float(high)


def sensitivity(outcomes: Sequence[Outcome], threshold: float, lowest: float = 0.3) -> Sensitivity:
    """Precision, recall and F1 by one-to-one matching at an intersection over union of `lowest`."""
    table = counts(outcomes, threshold, lowest)
    hits, total, reported = table.sum(axis=0).tolist()
    onset, peak = [], []
    for o in outcomes:
        counted = [d for d in o.found if d.strength >= threshold]
        for i, j in matches(o.truth, counted, lowest):
            onset.append(abs(o.truth[i].onset - counted[j].onset) / o.recipe.points)
            peak.append(abs(o.truth[i].peak - counted[j].peak) / o.recipe.points)
    middle = (float(np.median(v)) if v else float("nan") for v in (onset, peak))
    return Sensitivity(len(outcomes), hits / max(reported, 1), hits / max(total, 1), float(f1_score(table)), *middle)


def equal_rate_threshold(nulls: Sequence[Outcome], rate: float = 0.05) -> float:
    """The lowest strength that at most this share of the curves without an episode reaches."""
    strengths = np.sort([o.strength for o in nulls])[::-1]
    allowed = int(rate * len(strengths))
    return float(np.nextafter(strengths[allowed], np.inf)) if allowed < len(strengths) else -np.inf


@dataclass(frozen=True)
class Uniformity:
    """Kolmogorov-Smirnov test of p-values against the uniform distribution, asymptotic."""

    distance: float
    p_value: float
    excess: float
    """One-sided: by how much small p-values are more frequent than they may be."""
    excess_p_value: float


def kolmogorov_smirnov(p_values: Sequence[float]) -> Uniformity:
    """Two-sided (Kolmogorov 1933), and one-sided against p-values that are too small (Smirnov 1939)."""
    from scipy.special import kolmogorov

    p, n = np.sort(p_values), len(p_values)
    above = float((np.arange(1, n + 1) / n - p).max())
    distance = max(above, float((p - np.arange(n) / n).max()))
    return Uniformity(
        distance, float(kolmogorov(distance * np.sqrt(n))), above, float(np.exp(-2 * n * max(above, 0.0) ** 2))
    )
