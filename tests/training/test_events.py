"""The alarm that keeps snapshots around a rise of the loss."""

from __future__ import annotations

import numpy as np

from landscape.training.events import LossRise


def alarms(values) -> list[int]:
    watch = LossRise()
    return [step for step, value in enumerate(values) if watch.update(float(value))]


def test_a_rebound_fires_once_near_its_onset():
    rng = np.random.default_rng(0)
    descent = 2 * np.exp(-np.arange(200) / 40) + 1
    bump = np.where(
        (np.arange(200) > 100) & (np.arange(200) < 160), 0.8 * np.sin((np.arange(200) - 100) / 60 * np.pi), 0
    )
    found = alarms(descent + bump + 0.02 * rng.normal(size=200))
    assert len(found) == 1
    assert 100 < found[0] < 120


def test_descents_rarely_fire():
    rng = np.random.default_rng(1)
    descent = 2 * np.exp(-np.arange(300) / 40) + 1
    fired = [bool(alarms(descent + 0.05 * rng.normal(size=300))) for _ in range(40)]
    assert np.mean(fired) < 0.5


def test_two_rebounds_fire_twice():
    x = np.arange(300)
    curve = 1.0 + np.exp(-x / 20) + 0.5 * np.exp(-(((x - 100) / 10) ** 2)) + 0.5 * np.exp(-(((x - 220) / 10) ** 2))
    assert len(alarms(curve)) == 2
