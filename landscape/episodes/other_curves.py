"""Synthetic curves that are no step losses: gradient norms, and evaluations with the errors of their means.

Both are built from the ingredients of `landscape.episodes.synthetic`, so trends, noises, confounders and episodes have
the same names, and the truth is known by construction in the same way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from landscape.episodes.synthetic import (
    NOISES,
    TRENDS,
    Recipe,
    SyntheticCurve,
    add_episode,
    generate,
    marked,
    starts,
)

EVALUATIONS = (20, 30, 50, 100, 200)
"""Evaluations in a run."""
_SPREAD = (0.1, 0.4)
"""Standard deviation of the logarithm of a gradient norm from step to step."""
_FALL = (0.1, 2.3)
"""By what its logarithm falls over the run: not at all, nearly, or to a tenth."""
_WANDERING = (0.0, 0.5, 1.0)
"""Standard deviations of the run's own noise, in standard errors of an evaluation."""
_SHARED = (0.0, 0.9)
"""Share of an evaluation's error variance that all of them have in common: other examples each time, or the same."""
_KNOWN = 0.05
"""Relative error of the standard errors themselves."""


def gradient_norm_curve(recipe: Recipe, seed: int) -> SyntheticCurve:
    """A positive curve whose logarithm is trend, noise, confounder and episode: everything multiplies.

    An amplitude of A makes the logarithm of the noise-free curve rise by A standard deviations of its noise, which is
    0.1 to 0.4. On its own scale such a curve has noise in proportion to its level, and skewed.
    """
    spread = float(np.random.default_rng([seed, recipe.points, 8]).uniform(*_SPREAD))
    logarithm = generate(recipe, seed, (_FALL[0] / spread, _FALL[1] / spread))
    return replace(logarithm, values=np.exp(spread * logarithm.values))


def evaluation_curve(recipe: Recipe, seed: int) -> SyntheticCurve:
    """A run's evaluations: few points, each the mean of a sample, with its standard error.

    The error is drawn anew for each evaluation, or nearly all of it is the same throughout, as where the same examples
    are evaluated every time; the run's own noise comes on top. One noise unit is both together, whether or not the
    curve shows the common part. Standard errors fall with the level, by half at most, and are known to 5 %.
    """
    rng = np.random.default_rng([seed, recipe.points, 9])
    n = recipe.points
    clean = TRENDS[recipe.trend](np.arange(n) / n, rng) * np.exp(rng.uniform(np.log(8), np.log(40)))
    errors = 0.5 + 0.5 * (clean - clean.min()) / max(float(np.ptp(clean)), 1.0)
    wandering, shared = float(rng.choice(_WANDERING)), float(rng.choice(_SHARED))
    scale = errors * np.sqrt(1 + wandering**2)
    truth = [add_episode(recipe, clean, float(scale[int(start)]), start, rng) for start in starts(recipe, rng)]
    noise = np.sqrt(1 - shared) * rng.standard_normal(n) + np.sqrt(shared) * rng.standard_normal()
    values = clean + errors * (noise + wandering * NOISES[recipe.noise](n, rng))
    told = errors * np.exp(_KNOWN * rng.standard_normal(n))
    return SyntheticCurve(recipe, np.arange(1, n + 1, dtype=np.float64), values, marked(truth), standard_errors=told)


def without_errors(curve: SyntheticCurve) -> SyntheticCurve:
    """The curve as one has it to whom nobody told its standard errors."""
    return replace(curve, standard_errors=None)
