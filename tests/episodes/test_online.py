from __future__ import annotations

import json
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


def jumped(at: int = 300, height: float = 8.0) -> np.ndarray:
    """A descent of noise 1 that is higher from a step on and comes down again."""
    x = np.arange(600)
    after = np.where(x >= at, np.exp(-(x - at) / 60), 0)
    return 20 * np.exp(-x / 100) + height * after + np.random.default_rng(4).standard_normal(600)


def test_nothing_is_compared_across_a_resume() -> None:
    values = jumped()
    told, untold = OnlineWatch(), OnlineWatch()
    warned: dict[bool, list[int]] = {True: [], False: []}
    for step, value in enumerate(values.tolist()):
        if step == 300:
            told.resume()
        for watcher, key in ((told, True), (untold, False)):
            if watcher.update(step, value).warning:
                warned[key].append(step)
    assert not warned[True]
    assert 300 < warned[False][0] < 330


def test_a_rebound_after_a_resume_is_seen() -> None:
    values = jumped()
    values[450:] += 8
    watcher = OnlineWatch()
    warned = []
    for step, value in enumerate(values.tolist()):
        if step == 300:
            watcher.resume()
        warned += [step] if watcher.update(step, value).warning else []
    assert 450 < warned[0] < 490


@pytest.mark.parametrize("ramp", [0, 12])
def test_a_rise_with_the_learning_rate_does_not_warn(ramp: int) -> None:
    x = np.arange(600)
    cosine = 0.5 + 0.5 * np.cos(np.pi * (x % 300) / 300)
    rate = cosine * np.where(x < 300, 1, np.minimum((x - 300) / max(ramp, 1), 1))
    values = 20 * np.exp(-x / 100) + 8 * (x >= 300) * rate + np.random.default_rng(4).standard_normal(600)
    seen = {known: OnlineWatch() for known in (True, False)}
    warned = {
        known: [s for s in range(600) if watcher.update(s, values[s], 1e-3 * rate[s] if known else None).warning]
        for known, watcher in seen.items()
    }
    assert not warned[True]
    assert 300 < warned[False][0] < 340


@pytest.mark.parametrize("rate", [None, math.nan, 1e-3])
def test_a_learning_rate_that_says_nothing_changes_nothing(rate: float | None) -> None:
    values = jumped().tolist()
    plain, given = OnlineWatch(), OnlineWatch()
    for step, value in enumerate(values):
        assert given.update(step, value, rate) == plain.update(step, value)


@pytest.mark.parametrize("cut", [100, 299, 303, 320, 500])
def test_a_state_holds_the_learning_rate_too(cut: int) -> None:
    x = np.arange(600)
    rate = 0.5 + 0.5 * np.cos(np.pi * (x % 300) / 300)
    values = jumped()
    whole, after = OnlineWatch(), OnlineWatch()
    for step in range(cut):
        whole.update(step, values[step], rate[step])
    after.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for step in range(cut, 600):
        assert after.update(step, values[step], rate[step]) == whole.update(step, values[step], rate[step])


def test_a_state_saved_before_learning_rates_were_followed() -> None:
    saved = OnlineWatch().state_dict()
    old = {key: value for key, value in saved.items() if "rate" not in key and key != "blind_until"}
    watcher = OnlineWatch()
    watcher.load_state_dict(old)
    assert watcher.state_dict() == saved
