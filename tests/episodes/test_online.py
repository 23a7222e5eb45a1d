from __future__ import annotations

import math

import numpy as np
import pytest

from landscape.episodes.online import OnlineWatch, Watch
from landscape.episodes.synthetic import Recipe, generate


def watch(steps: np.ndarray, values: np.ndarray, **kwargs: float) -> list[Watch]:
    watcher = OnlineWatch(**kwargs)
    return [watcher.update(s, v) for s, v in zip(steps.tolist(), values.tolist(), strict=True)]


def test_warns_within_the_rebound_and_calms_after_it() -> None:
    curve = generate(Recipe(1000, "exponential", "white", "none", "cosine", 1, amplitude=8, duration=0.1), 3)
    (truth,) = curve.episodes
    seen = watch(curve.steps, curve.values)
    warned = [w.step for w in seen if w.warning]
    assert truth.onset < warned[0] < truth.recovery
    assert not seen[-1].warning
    assert seen[int(warned[0]) - 1].since is not None


def test_silent_on_curves_without_rebound() -> None:
    alarms = 0
    for seed in range(40):
        curve = generate(Recipe(600, "exponential", "ar0.5"), 700 + seed)
        alarms += any(w.warning for w in watch(curve.steps, curve.values))
    assert alarms <= 6  # At a rate of 0.05 more than 6 of 40 have probability 0.003.


@pytest.mark.parametrize("width", [1, 2])
def test_a_bad_batch_does_not_warn(width: int) -> None:
    values = np.exp(-np.arange(500) / 50) + 0.05 * np.random.default_rng(0).standard_normal(500)
    values[300 : 300 + width] += 10
    assert not any(w.warning for w in watch(np.arange(500.0), values))


def test_warmup_is_not_watched_and_nan_warns_at_once() -> None:
    values = np.concatenate([np.linspace(0, 5, 50), np.zeros(100)]) + 0.1 * np.random.default_rng(1).standard_normal(
        150
    )
    assert not any(w.warning for w in watch(np.arange(150.0), values, warmup_steps=60))
    values[120] = math.nan
    assert watch(np.arange(150.0), values)[120].warning


@pytest.mark.parametrize("points", [1000, 16_000])
def test_memory_is_logarithmic(points: int) -> None:
    watcher = OnlineWatch()
    for s, v in enumerate(np.random.default_rng(2).standard_normal(points).tolist()):
        watcher.update(s, v)
    assert len(watcher._scales) <= math.log2(points)
