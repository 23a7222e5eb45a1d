"""Contour levels are even in log loss, say what they are, and darken for every eye."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.plots.slice_levels import MOST_BANDS, RAMP, loss_levels
from tests.plots.test_style import TO_XYZ, VISION


@pytest.mark.parametrize(
    ("low", "high"), [(1, 10), (1.2, 1.9), (2.3, 2.3001), (0.01, 1e5), (1e-30, 1e30), (3, 3), (3, 3.4)]
)
def test_levels_are_even_in_log_loss_hold_all_and_have_labels_apart(low: float, high: float) -> None:
    levels = loss_levels(np.array([low, high, np.nan, np.inf]))
    assert levels.log
    steps = np.diff(np.log10(levels.edges))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert levels.edges[0] <= low * (1 + 1e-9)
    assert levels.edges[-1] >= high * (1 - 1e-9)
    assert 1 <= len(steps) <= MOST_BANDS
    assert len(levels.colors) == len(steps)
    said = np.array([float(label) for label in levels.labels])
    assert (np.diff(said) > 0).all()
    assert (np.abs(said - levels.edges)[:-1] <= 0.1 * np.diff(levels.edges)).all()


def test_levels_are_preferred_numbers() -> None:
    assert loss_levels(np.array([1.0, 10.0])).labels == (
        ["1", "1.26", "1.58", "2", "2.51", "3.16", "3.98", "5.01", "6.31", "7.94", "10"]
    )
    assert loss_levels(np.array([0.0, 1.0])).labels == [
        "0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("vision", VISION)
def test_the_ramp_darkens_for_every_eye(vision: str) -> None:
    linear = []
    for color in RAMP:
        channels = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear.append(np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4))
    luminance = (TO_XYZ @ np.clip(VISION[vision] @ np.array(linear).T, 0, 1))[1]
    lightness = 116 * np.cbrt(luminance) - 16
    # CIE L*: a step of 6 between neighbors is well above what is just noticed.
    assert (np.diff(lightness) < -6).all()
