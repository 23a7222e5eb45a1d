"""Computes the null distributions that `landscape.episodes` ships, from curves of known noise.

    python experiments/benchmarks/episodes_correction.py -o correction.json     # some minutes on one core
    python experiments/benchmarks/episodes_correction.py --check --varied 500 --fixed 240     # some seconds
    python experiments/benchmarks/episodes_correction.py --evaluations 6000 -o evaluations.json

With ``--check`` nothing is written: p-values of the curves by the shipped distribution, which must be uniform within
their error if it belongs to the detector as it is. The margin for long memory, which is no estimate, is left out.

Curves without an episode, flat, of 40 to 640 points: white and AR(1) noise, fractional noise of memory 0.1 to 0.45,
heavy tails, ripple. Of evaluations, 20 to 300 of them: white noise, of which all or a tenth shows, and noise of any
kind as large, half as large or none. Their seeds belong to neither split of the benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from landscape.episodes import evaluations
from landscape.episodes.calibration import calibrate, fit_null
from landscape.episodes.correction import FILE, Correction, fit_correction, regressed, shipped, without_margin, write
from landscape.episodes.curve import binned
from landscape.episodes.detector import RESAMPLES
from landscape.episodes.noise import Array
from landscape.episodes.repair import repair
from landscape.episodes.scan import scan, scan_design
from landscape.episodes.synthetic import NOISES, Recipe, autoregressive, generate, long_memory

VARIED, FIXED, EVALUATIONS = 1_000_000, 2_000_000, 3_000_000
"""First seeds of curves of varied and of one length, and of evaluations."""
NAMED = ("white", "ar0.5", "ar0.8", "long_memory", "heavy", "ripple")
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)
WEIGHT = 1.5
"""Of curves with long memory or heavy tails, relative to the others; of evaluations with a run's noise as large as
their error."""


def varied(seed: int) -> tuple[str, Array]:
    """Noise of a random length and family."""
    rng = np.random.default_rng([VARIED + seed, 77])
    long = rng.uniform() < 0.6
    n = int(rng.integers(300, 641)) if long else round(np.exp(rng.uniform(np.log(40), np.log(300))))
    family = rng.uniform()
    if family < 0.6:
        phi = float(rng.choice([0, 0.5, 0.8, rng.uniform(0, 0.9)]))
        return "autoregressive", autoregressive(rng.standard_normal(n + 200), phi)
    if family < 0.8:
        return "long_memory", long_memory(n, rng, rng.uniform(0.1, 0.45))
    name = "heavy" if family < 0.9 else "ripple"
    return name, NOISES[name](n, rng)


def scored(values: Array, seed: int) -> tuple[float, Array]:
    """Standardized score of a curve, and its noise's features."""
    bins = binned(repair(np.asarray(values, np.float64) / 2.0 ** np.round(np.log2(np.ptp(values)))).values).values
    bins = bins - bins.mean()
    design = scan_design(len(bins))
    everywhere = (None,) * len(design.contrasts)
    found = scan(bins, design, everywhere, keep=True)
    fit = fit_null(bins, found, design, seed)
    null = calibrate(fit, design, everywhere, seed, RESAMPLES)
    return null.standardized(float(null.score(found.maxima))), fit.features


def simulated(varied_count: int, fixed_count: int) -> tuple[Array, Array, Array]:
    """Scores (m,), features (m, 4) and weights (m,)."""
    rows, families = [], []
    for seed in range(varied_count):
        family, values = varied(seed)
        families.append(family)
        rows.append(scored(values, seed))
    for seed in range(fixed_count):
        families.append(NAMED[seed % len(NAMED)])
        rows.append(scored(generate(Recipe(600, "flat", families[-1]), FIXED + seed).values, seed))
    weights = np.where(np.isin(families, ["long_memory", "heavy"]), WEIGHT, 1.0)
    return np.array([row[0] for row in rows]), np.stack([row[1] for row in rows]), weights


def evaluated(seed: int) -> tuple[float, Array, float]:
    """Score, regressors and weight of evaluations without an episode."""
    rng = np.random.default_rng([EVALUATIONS + seed, 77])
    n = round(np.exp(rng.uniform(np.log(20), np.log(evaluations.LONGEST))))
    noise, own = str(rng.choice(sorted(NOISES))), float(rng.choice((0, 0.5, 1)))
    common = float(rng.choice((0, 0.9)))
    values = np.sqrt(1 - common) * rng.standard_normal(n) + own * NOISES[noise](n, rng)
    scale = evaluations.relative_scale(np.exp(0.05 * rng.standard_normal(n)), n)
    test = evaluations.examined(evaluations.tempered(values - values.mean(), scale).values, scale)
    return float(test.null.score(test.seen.maxima)), test.null.known, 1 + own * (WEIGHT - 1)


def of_evaluations(count: int) -> Correction:
    """The null distribution of evaluations' scores."""
    scores, known, weights = zip(*(evaluated(seed) for seed in range(count)), strict=True)
    return regressed(np.array(scores), np.stack(known), np.array(weights), {"curves": count})


def checked(scores: Array, features: Array, weights: Array) -> list[tuple[float, float, float]]:
    """(level, weighted share of p-values below it, its standard error) by the shipped distribution without margin."""
    shipped_ = without_margin(shipped())
    p = np.array([shipped_.p_value(score, known) for score, known in zip(scores.tolist(), features, strict=True)])
    unit = float(np.sqrt((weights**2).sum()) / weights.sum())
    shares = [(a, float(weights[p <= a].sum() / weights.sum())) for a in LEVELS]
    return [(a, share, unit * float(np.sqrt(a * (1 - a)))) for a, share in shares]


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and regress and write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--varied", type=int, default=5000, help="curves of varied length and noise")
    parser.add_argument("--fixed", type=int, default=2400, help="curves of 600 points")
    parser.add_argument("--check", action="store_true", help="hold the shipped distribution against the curves")
    parser.add_argument("--evaluations", type=int, help="curves; the distribution of evaluations instead of steps")
    parser.add_argument("-o", "--output", type=Path, help="default: the file in the package")
    options = parser.parse_args(arguments)
    if options.evaluations:
        write(of_evaluations(options.evaluations), options.output or evaluations.FILE)
        return
    scores, features, weights = simulated(options.varied, options.fixed)
    if options.check:
        for level, share, error in checked(scores, features, weights):
            print(f"P(p ≤ {level:g}) = {share:.4f} ± {error:.4f}")
        return
    about = {"varied": options.varied, "fixed": options.fixed, "resamples": RESAMPLES}
    write(fit_correction(scores, features, weights, about), options.output or FILE)


if __name__ == "__main__":
    main()
