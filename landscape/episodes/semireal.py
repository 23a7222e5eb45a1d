"""Semi-real curves: residuals of real runs on the same batches, with rebounds of known size added.

Drawn jointly for a run, the base model and a sibling run, so that what the batches' difficulty adds to all three stays
common. Residuals are drawn in blocks (stationary bootstrap, Politis and Romano 1994), which keeps their short-range
correlation and their tails.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from landscape.episodes.benchmark import Detection, matches
from landscape.episodes.candidates import moving_mean
from landscape.episodes.control import Control, coefficient, smooth_descent
from landscape.episodes.curve import Array
from landscape.episodes.detector import detect_episodes
from landscape.episodes.repair import repair
from landscape.episodes.synthetic import SHAPES, Interval, Recipe, add_episode
from landscape.errors import UsageError

_BLOCK = 40
"""Mean length of a block, in steps."""
_SKIPPED, _LOCAL = 0.25, 51
"""Share of the run that is left out, where the loss and its noise fall fast; steps that a local scale is taken over."""
KINDS = ("raw", "base", "sibling")
AMPLITUDES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the rebounds, in raw noise units."""


@dataclass(frozen=True, eq=False)
class SharedRuns:
    """Step losses of runs that saw the same batches in the same order."""

    runs: Array
    """(runs, steps)."""
    base: Array
    """(steps,) of the untouched base model."""
    name: str = "runs"

    def __post_init__(self) -> None:
        if self.runs.ndim != 2 or len(self.runs) < 2 or self.runs.shape[1] != len(self.base):
            raise UsageError(f"runs: shape {self.runs.shape}; at least two runs of {len(self.base)} steps are needed.")
        if not (np.isfinite(self.runs).all() and np.isfinite(self.base).all()):
            raise UsageError("runs: NaN or infinite losses; a run that diverged is no source of residuals.")

    @cached_property
    def residuals(self) -> tuple[Array, Array]:
        """((runs, steps), (steps,)) after the first descent, without their smooth trend, in local standard deviations.

        Blocks from different places are strung together, so they must not differ in level or scale.
        """
        first = int(_SKIPPED * len(self.base))
        rows = np.stack([row - smooth_descent(repair(row).values) for row in self.runs])[:, first:]
        rows -= rows.mean(axis=1, keepdims=True)
        around = np.sqrt(moving_mean((rows**2).mean(axis=0), _LOCAL))
        base = self.base[first:] - self.base[first:].mean()
        return rows / around, base / base.std()

    def summary(self) -> dict[str, float]:
        """Correlations of first differences, and the share of a run's noise that each control leaves."""
        rows, base = self.residuals
        left: dict[str, list[float]] = {"base": [], "sibling": []}
        correlation: dict[str, list[float]] = {"base": [], "sibling": []}
        for i, row in enumerate(rows):
            for kind, other in (("base", base), ("sibling", rows[i - 1])):
                d = np.diff(row), np.diff(other)
                correlation[kind].append(float(np.corrcoef(*d)[0, 1]))
                left[kind].append(float(np.std(d[0] - coefficient(row, other) * d[1]) / np.std(d[0])))
        return {f"correlation, {k}": float(np.median(v)) for k, v in correlation.items()} | {
            f"noise left, {k}": float(np.median(v)) for k, v in left.items()
        }


@dataclass(frozen=True, eq=False)
class SemiRealCurve:
    """A curve with its controls on the same batches, and where its rebound is."""

    values: Array
    base: Array
    sibling: Array
    episodes: tuple[Interval, ...]


def load_shared_runs(path: str | Path) -> SharedRuns:
    """Read what `save_shared_runs` wrote.

    Raises:
        UsageError: no such file, or not in that form.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return SharedRuns(stored["runs"], stored["base"], str(stored["name"]))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: not a file of shared runs ({error}).") from None


def save_shared_runs(path: str | Path, runs: SharedRuns) -> None:
    """Write to one compressed npz."""
    np.savez_compressed(path, runs=runs.runs, base=runs.base, name=np.array(runs.name))


def stationary_blocks(length: int, points: int, rng: np.random.Generator) -> np.ndarray:
    """(points,) indices into a circle of `length`: blocks of geometric length that begin anywhere."""
    fresh = rng.random(points) < 1 / _BLOCK
    fresh[0] = True
    starts = rng.integers(0, length, points)
    block = np.maximum.accumulate(np.where(fresh, np.arange(points), 0))
    return (starts[block] + np.arange(points) - block) % length


def semi_real_curve(runs: SharedRuns, amplitude: float, seed: int, points: int = 600) -> SemiRealCurve:
    """One curve: residuals of a run, a drawn descent, and a rebound of `amplitude` raw noise units over a tenth of it.

    The base model's and the sibling's residuals come from the same steps; the sibling descends on its own.
    """
    rng = np.random.default_rng([seed, 5])
    rows, base = runs.residuals
    own, other = rng.choice(len(rows), 2, replace=False)
    at = stationary_blocks(rows.shape[1], points, rng)
    u = np.arange(points) / points
    clean, second = (rng.uniform(10, 30) * np.exp(-u * rng.uniform(3, 12)) for _ in range(2))
    recipe = Recipe(points, shape=str(rng.choice(sorted(SHAPES))), amplitude=amplitude, duration=0.1)
    start = rng.uniform(0.15, 0.8) * points
    truth = (add_episode(recipe, clean, 1.0, start, rng),) if amplitude > 0 else ()
    return SemiRealCurve(clean + rows[own][at], base[at], second + rows[other][at], truth)


def found(curve: SemiRealCurve, control: str) -> list[Detection]:
    """What `detect_episodes` says of the raw curve, or of the one adjusted by its base model or its sibling."""
    controls = {"raw": None, "base": Control(curve.base, "base"), "sibling": Control(curve.sibling, "sibling")}
    episodes = detect_episodes(np.arange(len(curve.values)), curve.values, control=controls[control])
    return [Detection(e.onset, e.peak, e.recovery, 1 - e.p_value) for e in episodes]


def sibling_table(runs: SharedRuns, count: int, first: int, tuning: int, alpha: float) -> list[dict[str, Any]]:
    """Recall (IoU ≥ 0.3) over amplitudes, raw and adjusted, at p ≤ alpha and at an equal false-positive rate.

    Thresholds of equal rate are tuned on other curves of the same runs. `false, sibling has it` is the price of taking
    a sibling for free of episodes: curves without one, adjusted by a sibling that has one of this amplitude. The last
    row holds the amplitudes that half the curves are found at, at equal rate.
    """
    rows: list[dict[str, Any]] = []
    nulls = [semi_real_curve(runs, 0, tuning + 700_000 + s) for s in range(4 * count)]
    threshold = {}
    for kind in KINDS:
        strengths = np.sort([max((d.strength for d in found(c, kind)), default=-np.inf) for c in nulls])[::-1]
        threshold[kind] = float(np.nextafter(strengths[int(alpha * len(strengths))], np.inf))
    for amplitude in AMPLITUDES:
        times = 2 if amplitude == 0 else 1
        curves = [semi_real_curve(runs, amplitude, first + 60_000 + s) for s in range(times * count)]
        row: dict[str, Any] = {"amplitude": amplitude, "curves": len(curves)}
        for kind in KINDS:
            hits = np.array([[_hit(c, found_, t) for t in (1 - alpha, threshold[kind])] for c in curves
                             for found_ in [found(c, kind)]])  # fmt: skip
            row[kind], row[f"{kind}, equal rate"] = hits.mean(axis=0).tolist()
        swapped = [replace(c, values=c.sibling, sibling=c.values) for c in curves]
        row["false, sibling has it"] = float(
            np.mean([any(d.strength >= 1 - alpha for d in found(c, "sibling")) for c in swapped])
        )
        rows.append(row)
    half = {f"{kind}, equal rate": half_found(rows, f"{kind}, equal rate") for kind in KINDS}
    return [*rows, {"amplitude": "half found at", "curves": "", **half}]


def _hit(curve: SemiRealCurve, detections: list[Detection], threshold: float) -> bool:
    """Whether the rebound is found; on a curve without one, whether anything is."""
    counted = [d for d in detections if d.strength >= threshold]
    return bool(matches(curve.episodes, counted, 0.3)) if curve.episodes else bool(counted)


def half_found(rows: list[dict[str, Any]], key: str) -> float:
    """Amplitude at which half the curves are found, by interpolation on log amplitude; NaN if none is."""
    points = [(np.log(r["amplitude"]), r[key]) for r in rows if r["amplitude"] > 0]
    for (a, low), (b, high) in itertools.pairwise(points):
        if low < 0.5 <= high:
            return float(np.exp(a + (b - a) * (0.5 - low) / (high - low)))
    return float("nan")
