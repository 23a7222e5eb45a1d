"""Synthetic loss curves whose episodes are known by construction: trend × noise × confounder × episode.

Everything is in noise units: the noise has marginal standard deviation 1 at every point of a curve (level-dependent
noise: 1 where the trend is at its mean level). An episode of amplitude A makes the noise-free curve itself rise by A
noise units (of the point where it begins); it lasts from where the curve has risen by 5 % of that to where it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from landscape.errors import unknown

Array = NDArray[np.float64]
EDGE = 0.05
"""Share of its amplitude at which an episode counts as begun."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Where an episode begins, peaks and ends, in steps."""

    onset: float
    peak: float
    recovery: float


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a curve is made of; every name is a key of the tables below."""

    points: int = 1000
    trend: str = "power"
    noise: str = "ar0.5"
    confounder: str = "none"
    shape: str = "triangle"
    episodes: int = 0
    amplitude: float = 6.0
    """Noise units."""
    duration: float = 0.1
    """Share of the run."""
    recovered: float = 1.0
    """Share of the rise that is lost again: 1 episode, 0.5 partial, 0 divergence."""


@dataclass(frozen=True, eq=False)
class SyntheticCurve:
    """A curve, what a user would know of it, and the truth."""

    recipe: Recipe
    steps: Array
    values: Array
    episodes: tuple[Interval, ...]
    warmup_steps: int = 0
    learning_rate: Array | None = None
    epoch_steps: tuple[int, ...] = ()
    resume_steps: tuple[int, ...] = ()
    standard_errors: Array | None = None
    """Of the values, where they are an evaluation's."""


# Trends on u in [0, 1], falling from 1 to 0 or below: each never increases.


def _power(u: Array, rng: np.random.Generator) -> Array:
    return (1 + u * rng.uniform(20, 200)) ** -rng.uniform(0.3, 0.9)


def _exponential(u: Array, rng: np.random.Generator) -> Array:
    return np.exp(-u * rng.uniform(3, 20))


def _exponential_cosine(u: Array, rng: np.random.Generator) -> Array:
    return 0.7 * _exponential(u, rng) + 0.15 * (1 + np.cos(np.pi * u))


def _staircase(u: Array, rng: np.random.Generator) -> Array:
    epochs = int(rng.integers(3, 7))
    return np.exp(-rng.uniform(2, 4) * np.floor(u * epochs) / epochs) + 0.1 * (1 - u)


def _flat(u: Array, rng: np.random.Generator) -> Array:
    return np.zeros_like(u)


def _plateau(u: Array, rng: np.random.Generator) -> Array:
    return np.exp(-np.maximum(u - rng.uniform(0.05, 0.2), 0) * rng.uniform(5, 20))


TRENDS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "power": _power,
    "exponential": _exponential,
    "exponential_cosine": _exponential_cosine,
    "staircase": _staircase,
    "flat": _flat,
    "plateau": _plateau,
}


# Noise of marginal standard deviation 1.


def autoregressive(innovations: Array, phi: float) -> Array:
    """AR(1) with the given innovations; the first points, where it is not stationary yet, are cut off.

    Args:
        innovations: (n + 200,).
        phi: Coefficient.
    """
    from scipy.signal import lfilter

    return np.asarray(lfilter([np.sqrt(1 - phi**2)], [1, -phi], innovations))[200:]


def _gaussian(phi: float) -> Callable[[int, np.random.Generator], Array]:
    return lambda n, rng: autoregressive(rng.standard_normal(n + 200), phi)


def _heavy(n: int, rng: np.random.Generator) -> Array:
    return autoregressive(rng.standard_t(3, n + 200) / np.sqrt(3), float(rng.choice([0, 0.5, 0.8])))


def long_memory(n: int, rng: np.random.Generator, d: float = 0.35) -> Array:
    """Fractional noise of memory d: spectrum |2 sin(ω/2)|^-2d (Granger and Joyeux 1980), scaled to variance 1."""
    length = 8 * n
    frequency = 2 * np.sin(np.pi * np.arange(1, length // 2 + 1) / length)
    shape = np.concatenate([[0.0], frequency**-d])
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * shape, length)
    return noise[:n] / np.sqrt((shape[1:] ** 2).mean())


def _ripple(n: int, rng: np.random.Generator) -> Array:
    phase = 2 * np.pi * (np.arange(n) / (n * rng.uniform(0.01, 0.05)) + rng.uniform())
    wave = np.sin(phase) if rng.uniform() < 0.5 else 2 * (phase / (2 * np.pi) % 1) - 1
    return (_gaussian(0.5)(n, rng) + rng.uniform(0.7, 1.5) * wave) / 1.4


NOISES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "white": _gaussian(0.0),
    "ar0.5": _gaussian(0.5),
    "ar0.8": _gaussian(0.8),
    "heavy": _heavy,
    "level": _gaussian(0.5),
    "long_memory": long_memory,
    "ripple": _ripple,
}


# Episodes on v: 0 at the onset, 1 at the end, amplitude 1; zero outside unless it never recovers.


def _triangle(v: Array, rng: np.random.Generator) -> Array:
    top = rng.uniform(0.25, 0.6)
    return np.clip(np.minimum(v / top, (1 - v) / (1 - top)), 0, 1)


def _cosine(v: Array, rng: np.random.Generator) -> Array:
    return np.where((v > 0) & (v < 1), 0.5 - 0.5 * np.cos(2 * np.pi * v), 0)


def _gamma(v: Array, rng: np.random.Generator) -> Array:
    t = np.maximum(v, 0) * 5.5  # t²·exp(2 - t)/4 is at 5 % again near t = 7.6; cut where the truth says
    return t**2 * np.exp(2 - t) / 4


def _logistic(v: Array, rng: np.random.Generator) -> Array:
    rate = rng.uniform(15, 30)
    rise, fall = (1 / (1 + np.exp(-np.clip(rate * s, -50, 50))) for s in (v - 0.25, 0.75 - v))
    return rise * fall


def _shock(v: Array, rng: np.random.Generator) -> Array:
    return np.where(v >= 0, np.exp(-3.0 * np.maximum(v, 0)), 0)


SHAPES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "triangle": _triangle,
    "cosine": _cosine,
    "gamma": _gamma,
    "logistic": _logistic,
    "shock": _shock,
}


def _profile(recipe: Recipe, start: float, rng: np.random.Generator) -> Array:
    """An episode's form, amplitude 1, that first exceeds `EDGE` at point `start` and lasts `duration` of the run."""
    unit = np.linspace(-1, 3, 8001)
    form = SHAPES[recipe.shape](unit, rng)
    form /= form.max()
    above = np.flatnonzero(form > EDGE)
    low, high = unit[above[0]], unit[above[-1]]
    width = recipe.duration * recipe.points / (high - low)
    at = np.arange(recipe.points)
    bump = np.interp((at - start) / width + low, unit, form, left=0, right=form[-1])
    if recipe.recovered < 1:
        after = at >= start + (unit[form.argmax()] - low) * width
        bump[after] = 1 - recipe.recovered * (1 - bump[after])
    return bump


def _rise(curve: Array, start: int, end: int) -> tuple[float, int, int]:
    """(largest rise above the minimum so far, where that minimum is, where the peak is) within [start, end)."""
    part = curve[start:end]
    lowest = np.minimum.accumulate(part)
    peak = int((part - lowest).argmax())
    return float(part[peak] - lowest[peak]), start + int(peak - part[peak::-1].argmin()), start + peak


def add_episode(recipe: Recipe, clean: Array, scale: float, start: float, rng: np.random.Generator) -> Interval:
    """Add to the noise-free curve a bump that makes it rise by the recipe's amplitude, in place; return the truth.

    A falling trend hides part of a bump, so the bump is as high as it must be for the curve itself to rise by
    `amplitude`. The episode lasts from where the curve has risen by `EDGE` of that to where it is back there.
    """
    bump = _profile(recipe, start, rng)
    begin, end = (
        max(int(start - 0.05 * recipe.points), 0),
        min(int(start + recipe.duration * recipe.points) + 2, len(clean)),
    )
    wanted, low, high = recipe.amplitude * scale, 0.0, recipe.amplitude * scale
    while _rise(clean + high * bump, begin, end)[0] < wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _rise(clean + middle * bump, begin, end)[0] >= wanted else (middle, high)
    clean += high * bump
    _, bottom, peak = _rise(clean, begin, end)
    level = clean[bottom] + EDGE * wanted
    onset = bottom + int((clean[bottom : peak + 1] > level).argmax())
    after = np.flatnonzero(clean[peak:] <= level)
    return Interval(float(onset), float(peak), float(peak + after[0] if len(after) else len(clean) - 1))


def starts(recipe: Recipe, rng: np.random.Generator) -> list[float]:
    """Onsets, in points: after the first tenth of the run and apart from one another."""
    n, room = recipe.points, 0.97 - 0.1 - recipe.episodes * (recipe.duration + 0.08)
    if recipe.episodes == 0:
        return []
    gaps = np.sort(rng.uniform(0, max(room, 0), recipe.episodes))
    return [float(n * (0.1 + gap + i * (recipe.duration + 0.08))) for i, gap in enumerate(gaps)]


def marked(truth: Iterable[Interval]) -> tuple[Interval, ...]:
    """Intervals in point indices as steps, of which the first is 1."""
    return tuple(Interval(t.onset + 1, t.peak + 1, t.recovery + 1) for t in truth)


def generate(recipe: Recipe, seed: int, heights: tuple[float, float] = (8, 40)) -> SyntheticCurve:
    """The curve of a recipe; the same recipe and seed give the same curve.

    Args:
        heights: between which the descent's height is drawn, in noise units, log-uniform.

    Raises:
        UsageError: a name that is in none of the tables.
    """
    for key, table in (("trend", TRENDS), ("noise", NOISES), ("confounder", CONFOUNDERS), ("shape", SHAPES)):
        if getattr(recipe, key) not in table:
            raise unknown(key, getattr(recipe, key), table)
    rng = np.random.default_rng([seed, recipe.points])
    n = recipe.points
    clean = TRENDS[recipe.trend](np.arange(n) / n, rng) * np.exp(rng.uniform(*np.log(heights)))
    scale = np.ones(n)
    if recipe.noise == "level" and recipe.trend != "flat":
        level = clean - clean.min() + 0.3 * np.ptp(clean)
        scale = level / level.mean()
    truth = [add_episode(recipe, clean, scale[int(start)], start, rng) for start in starts(recipe, rng)]
    steps = np.arange(1, n + 1, dtype=np.float64)
    curve = SyntheticCurve(recipe, steps, clean + scale * NOISES[recipe.noise](n, rng), marked(truth))
    return CONFOUNDERS[recipe.confounder](curve, scale, rng)


# Confounders: what a curve does that is no episode. Each keeps its marks, which a user would pass on.


def _bad_batches(curve: SyntheticCurve, scale: Array, rng: np.random.Generator) -> SyntheticCurve:
    values, n = curve.values.copy(), len(curve.values)
    # One in each of the run's thirds at most, so that no two make a longer one.
    for third in range(int(rng.integers(1, 4))):
        at, width = int(n * (third + rng.uniform(0.03, 0.93)) / 3), int(rng.integers(1, 3))
        values[at : at + width] += rng.uniform(8, 25) * scale[at]
    return replace(curve, values=values)


def _epoch_steps(curve: SyntheticCurve, scale: Array, rng: np.random.Generator) -> SyntheticCurve:
    """The loss falls at every epoch's end, and rises again at some: another order, another mixture."""
    values, n = curve.values.copy(), len(curve.values)
    marks = [int(n * k / 4) for k in (1, 2, 3)]
    for mark in marks:
        values[mark:] += rng.uniform(-5, 2) * scale[mark]
    return replace(curve, values=values, epoch_steps=tuple(int(curve.steps[mark]) for mark in marks))


def _resume(curve: SyntheticCurve, scale: Array, rng: np.random.Generator) -> SyntheticCurve:
    """After a resume the loss is higher and comes back with a time constant of 1 to 10 % of the run, or stays."""
    values, n = curve.values.copy(), len(curve.values)
    at = int(rng.integers(int(0.2 * n), int(0.8 * n)))
    height = rng.uniform(3, 10) * scale[at]
    decay = np.exp(-np.arange(n - at) / (n * rng.uniform(0.01, 0.1))) if rng.uniform() < 0.7 else 1.0
    values[at:] += height * decay
    return replace(curve, values=values, resume_steps=(int(curve.steps[at]),))


def _warmup_hump(curve: SyntheticCurve, scale: Array, rng: np.random.Generator) -> SyntheticCurve:
    values, n = curve.values.copy(), len(curve.values)
    warmup = int(n * rng.uniform(0.03, 0.12))
    values[:warmup] += rng.uniform(5, 15) * scale[:warmup] * np.sin(np.pi * np.arange(warmup) / warmup) ** 2
    return replace(curve, values=values, warmup_steps=int(curve.steps[warmup]))


def _restart(curve: SyntheticCurve, scale: Array, rng: np.random.Generator) -> SyntheticCurve:
    """Cosine decay with one warm restart; the loss follows the learning rate up and down again."""
    n = len(curve.values)
    at = int(rng.integers(int(0.3 * n), int(0.7 * n)))
    ramp = int(n * rng.choice([0.0, 0.02]))
    before = 0.5 + 0.5 * np.cos(np.pi * np.arange(at) / at)
    after = 0.5 + 0.5 * np.cos(np.pi * np.arange(n - at) / (n - at))
    after *= np.minimum(np.arange(n - at) / max(ramp, 1), 1)
    values = curve.values.copy()
    lag = 1 - np.exp(-np.arange(n - at) / max(0.003 * n, 1))
    values[at:] += rng.uniform(3, 10) * scale[at] * after * lag
    return replace(curve, values=values, learning_rate=1e-3 * np.concatenate([before, after]))


CONFOUNDERS: dict[str, Callable[[SyntheticCurve, Array, np.random.Generator], SyntheticCurve]] = {
    "none": lambda curve, scale, rng: curve,
    "bad_batch": _bad_batches,
    "epoch_step": _epoch_steps,
    "resume": _resume,
    "warmup_hump": _warmup_hump,
    "restart": _restart,
}
