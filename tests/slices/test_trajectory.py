from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.errors import UsageError
from landscape.slices import (
    Coordinates,
    accuracy,
    covering_axes,
    interpolate,
    loss_slice,
    plane_through,
    principal_plane,
    trace_trajectory,
)
from tests.measurement.test_context import break_forward, unchanged, used_model
from tests.oracles import flat_loss
from tests.slices.models import double, ragged
from tests.slices.test_planes import snapshots
from tests.small_models import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_loss_beside_that_of_the_surface(kind: str) -> None:
    model, batches = double(kind), ragged(kind)
    points = snapshots(model, 6)
    plane = principal_plane(model, points)
    trajectory = trace_trajectory(model, batches, plane, points)
    loss, _ = flat_loss(model, batches)
    matrix, origin = torch.stack(points), plane.origin
    shadows = origin + (matrix - origin) @ plane.directions.T @ plane.directions
    np.testing.assert_allclose(trajectory.loss, [float(loss(point)) for point in points], rtol=1e-8)
    np.testing.assert_allclose(trajectory.surface_loss, [float(loss(point)) for point in shadows], rtol=1e-8)
    np.testing.assert_allclose(trajectory.distance, (matrix - shadows).norm(dim=1), atol=1e-10)
    assert plane.explained is not None
    assert trajectory.explained_variance == pytest.approx(plane.explained.sum())
    assert trajectory.coordinates.shape == (6, 2)
    np.testing.assert_allclose(trajectory.coordinates[-1], 0, atol=1e-12)
    assert trajectory.num_examples == 6
    assert np.ptp(trajectory.loss - trajectory.surface_loss) > 1e-4


def test_snapshots_in_the_plane_have_the_surfaces_loss() -> None:
    model, batches = double("causal"), ragged("causal")
    points = snapshots(model, 3)
    plane = plane_through(model, *points)
    trajectory = trace_trajectory(model, batches, plane, points)
    np.testing.assert_allclose(trajectory.surface_loss, trajectory.loss, rtol=1e-10)
    assert trajectory.explained_variance == pytest.approx(1)
    axes = covering_axes(trajectory.coordinates, points=5)
    surface = loss_slice(model, batches, directions=plane.directions, origin=plane.origin, axes=axes)
    low, high = (np.array([axis[end] for axis in surface.axes]) for end in (0, -1))
    extent = np.ptp(trajectory.coordinates, axis=0)
    np.testing.assert_allclose(low, trajectory.coordinates.min(axis=0) - extent / 4)
    np.testing.assert_allclose(high, trajectory.coordinates.max(axis=0) + extent / 4)


def test_a_diverged_snapshot_is_kept_as_such() -> None:
    model, batches = double("causal"), ragged("causal")
    points = snapshots(model, 4)
    plane = principal_plane(model, points)
    expected = trace_trajectory(model, batches, plane, points, metric=accuracy)
    assert expected.metric == "accuracy"
    broken = [*points[:2], torch.full_like(points[0], torch.inf), *points[2:]]
    trajectory = trace_trajectory(model, batches, plane, broken, metric=accuracy)
    assert np.isnan(trajectory.loss[2])
    assert np.isnan(trajectory.coordinates[2]).all()
    np.testing.assert_array_equal(np.delete(trajectory.loss, 2), expected.loss)
    assert trajectory.explained_variance == pytest.approx(expected.explained_variance)


@pytest.mark.parametrize("after", [1, 4])
def test_the_model_is_left_as_found(after: int) -> None:
    model = used_model()
    points = snapshots(model, 3)
    plane = plane_through(model, *points)
    with unchanged(model):
        trace_trajectory(model, ragged("causal"), plane, points)
    break_forward(model, KeyboardInterrupt(), after)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        trace_trajectory(model, ragged("causal"), plane, points)


def test_bad_trajectories() -> None:
    model, other = double("causal"), double("classification")
    points = snapshots(model, 3)
    plane = plane_through(model, *points)
    with pytest.raises(UsageError, match="snapshots: none"):
        trace_trajectory(model, ragged("causal"), plane, [])
    with pytest.raises(UsageError, match=r"snapshots\[0\]: shape"):
        trace_trajectory(model, ragged("causal"), plane, [points[0][:-1]])
    with pytest.raises(UsageError, match="plane: shape"):
        trace_trajectory(other, ragged("classification"), plane, [Coordinates(other).flatten()])


def test_axes_that_cover() -> None:
    flat = np.array([[0.0, 1.0], [2.0, 1.0], [np.nan, 0.0]])
    x, y = covering_axes(flat, points=3, margin=0.5)
    np.testing.assert_allclose(x, [-1, 1, 3])
    np.testing.assert_allclose(y, [-1, 1, 3])
    with pytest.raises(UsageError, match="coordinates: all in one place"):
        covering_axes(flat[:1])
    with pytest.raises(UsageError, match=r"0 finite points, points 21, margin 0\.25; allowed"):
        covering_axes(flat[2:])


def test_interpolation_and_its_barrier() -> None:
    model, batches = double("causal"), ragged("causal")
    first, second = snapshots(model, 2)
    second = first + 40 * (second - first)
    result = interpolate(model, batches, first, second, points=9)
    loss, _ = flat_loss(model, batches)
    expected = [float(loss(torch.lerp(first, second, t))) for t in np.linspace(0, 1, 9)]
    np.testing.assert_allclose(result.slice.loss, expected, rtol=1e-8)
    chord = np.linspace(expected[0], expected[-1], 9)
    assert result.barrier == pytest.approx(max(expected - chord))
    assert result.barrier > 0.01
    with pytest.raises(UsageError, match="points: 2; allowed: from 3"):
        interpolate(model, batches, first, second, points=2)
    with pytest.raises(UsageError, match="snapshots: equal"):
        interpolate(model, batches, first, first)
