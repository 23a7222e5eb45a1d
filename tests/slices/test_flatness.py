from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.slices import SliceResult, flatness, loss_slices
from tests.curvature.conftest import SHAPES
from tests.slices.models import double, ragged

AXIS = np.linspace(-2, 2, 21)


def of(values: np.ndarray, *axes: np.ndarray, precision: str = "float64") -> SliceResult:
    described: dict[str, Any] = {
        "origin_loss": float(values[tuple(size // 2 for size in values.shape)]), "metric": "loss", "space": "adapter",
        "normalization": "filter", "seed": 0, "draw": 0, "directions": None, "cosine": None, "num_examples": 1,
        "num_labels": 1, "num_parameters": 1, "evaluation": "in_place", "seconds_a_point": {}, "seconds": 0.0,
    }  # fmt: skip
    return SliceResult(axes=axes, loss=values, standard_error=values * 0, precision=precision, **described)


def quadratic(a: float, b: float, c: float = 0.0) -> SliceResult:
    """3 + (a·x² + b·y²)/2 + c·x·y."""
    x, y = AXIS[:, None], AXIS[None, :]
    return of(3 + (a * x**2 + b * y**2) / 2 + c * x * y, AXIS, AXIS)


def line(curvature: float) -> SliceResult:
    return of(1 + curvature * AXIS**2 / 2, AXIS)


@pytest.mark.parametrize("delta", [0.1, 0.5, 1.0])
def test_widths_of_quadratics(delta: float) -> None:
    numbers = flatness([line(2.0), line(8.0)], delta)
    widths = [2 * np.sqrt(2 * delta / curvature) for curvature in (2.0, 8.0)]
    assert numbers.width.value == pytest.approx(np.mean(widths), rel=1e-10)
    assert numbers.width.standard_error == pytest.approx(abs(widths[0] - widths[1]) / 2, rel=1e-10)
    assert numbers.width.num_draws == 2
    assert np.isnan(numbers.anisotropy.value)
    assert numbers.nonconvexity.value == 0


def test_planes_of_quadratics() -> None:
    numbers = flatness([quadratic(2, 8), quadratic(4, 4, 2)], 0.5)
    widths = [2 * np.sqrt(1 / curvature) for curvature in (2, 8, 4, 4)]
    assert numbers.width.value == pytest.approx(np.mean(widths), rel=1e-10)
    assert numbers.width.num_draws == 4
    # Eigenvalues 2 and 8; 4 ± 2.
    assert numbers.anisotropy.value == pytest.approx((4 + 3) / 2, rel=1e-8)
    assert numbers.anisotropy.standard_error == pytest.approx(0.5, rel=1e-8)
    assert numbers.nonconvexity.value == 0


def test_nonconvexity_is_a_share_of_the_slice() -> None:
    assert flatness([quadratic(1, -0.1)], 0.1).nonconvexity.value == 1
    assert flatness([quadratic(1, 1, 1.1)], 0.1).nonconvexity.value == 1
    x = AXIS
    # x⁴ - 1.2x² is concave in the middle; its second difference is negative where 12x² + 2h² < 2.4.
    inner, spacing = x[1:-1], x[1] - x[0]
    expected = (12 * inner**2 + 2 * spacing**2 < 2.4).mean()
    assert 0.1 < expected < 0.9
    assert flatness([of(x**4 - 1.2 * x**2, x)], 0.1).nonconvexity.value == pytest.approx(expected)


def test_rounding_is_not_nonconvexity() -> None:
    values = (7.6 + 0 * AXIS).astype(np.float32) + np.random.default_rng(0).choice([-1, 0, 1], 21) * np.float32(4.8e-7)
    noisy = values.astype(float)
    assert flatness([of(noisy, AXIS, precision="float32")], 0.1).nonconvexity.value == 0
    assert flatness([of(noisy, AXIS)], 0.1).nonconvexity.value > 0


def test_a_slice_that_never_rises_is_infinitely_wide() -> None:
    assert flatness([line(2.0), line(0.01)], 0.5).width.value == np.inf
    assert flatness([of(AXIS, AXIS)], 0.5).width.value == np.inf  # falls on one side


def test_walls_of_nan_end_the_width() -> None:
    values = AXIS**2
    values[np.abs(AXIS) > 1.1] = np.nan
    values[AXIS < -1.5] = 0  # beyond the wall, not seen
    last = np.abs(AXIS)[np.abs(AXIS) < 1.1].max()
    assert flatness([of(values, AXIS)], 5.0).width.value == pytest.approx(2 * last)
    assert flatness([of(values, AXIS)], 0.25).width.value == pytest.approx(1.0, rel=1e-8)


def test_uneven_axes() -> None:
    axis = np.array([-2.0, -1.1, -0.4, 0.0, 0.3, 0.9, 2.0])
    numbers = flatness([of(axis**2 + axis**3 / 10, axis)], 0.25)
    roots = np.roots([0.1, 1, 0, -0.25])
    near = sorted(roots[np.argsort(np.abs(roots))[:2]].real)
    assert numbers.width.value == pytest.approx(near[1] - near[0], rel=1e-10)


def test_of_a_model() -> None:
    model, batches = double("causal", **SHAPES["causal"]), ragged("causal")
    ensemble = loss_slices(model, batches, points=11, radius=0.5, draws=3)
    numbers = flatness(ensemble.slices, 0.01)
    assert numbers.width.num_draws == 6
    assert numbers.anisotropy.value >= 1
    assert 0 <= numbers.nonconvexity.value <= 1


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="slices: none"):
        flatness([], 1)
    with pytest.raises(UsageError, match="delta: 0; allowed: numbers greater than 0"):
        flatness([line(1)], 0)
    for axis in (np.linspace(-1, 1, 3), np.linspace(-1, 1, 10)):
        with pytest.raises(UsageError, match=r"slices\[0\]: allowed: at least 5 points an axis, coordinate 0"):
            flatness([of(axis**2, axis)], 1)
