from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.errors import UsageError
from landscape.slices import Coordinates, line_through, loss_slice, plane_through, planes, principal_plane
from tests.oracles import flat_loss
from tests.slices.models import double, ragged
from tests.small_models import KINDS


def snapshots(model: nn.Module, count: int, seed: int = 0) -> list[Tensor]:
    """A drifting random walk from the model's parameters, (n,) each."""
    generator = torch.Generator().manual_seed(seed)
    start = Coordinates(model).flatten()
    drift = torch.randn(start.shape, generator=generator, dtype=start.dtype)
    steps = [drift + torch.randn(start.shape, generator=generator, dtype=start.dtype) for _ in range(count)]
    return [start + 0.02 * sum(steps[:i], torch.zeros_like(start)) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plane_passes_through_its_three_snapshots(kind: str) -> None:
    model, batches = double(kind), ragged(kind)
    points = snapshots(model, 3)
    plane = plane_through(model, *points)
    loss, _ = flat_loss(model, batches)
    for point, expected in zip(points, [(0.0, 0.0), None, None], strict=True):
        coordinates, distance = plane.project(point)
        assert distance < 1e-12 * float(point.norm())
        torch.testing.assert_close(plane.at(coordinates), point, rtol=1e-12, atol=1e-14)
        if expected is not None:
            np.testing.assert_array_equal(coordinates, expected)
    (x1, y1), _ = plane.project(points[1])
    (x2, y2), _ = plane.project(points[2])
    assert (x1, y1) == pytest.approx((float((points[1] - points[0]).norm()), 0), abs=1e-12)
    assert y2 > 0
    assert np.hypot(x2, y2) == pytest.approx(float((points[2] - points[0]).norm()))
    result = loss_slice(
        model, batches, directions=plane.directions, origin=plane.origin, axes=[sorted([0, x1, x2]), sorted([0, y2])]
    )
    for x, y, point in ((0, 0, points[0]), (x1, 0, points[1]), (x2, y2, points[2])):
        value = result.loss[list(result.axes[0]).index(x), list(result.axes[1]).index(y)]
        assert value == pytest.approx(float(loss(point)), rel=1e-8)


def test_the_plane_in_float32() -> None:
    model = double("causal").float()
    points = snapshots(model, 3)
    plane = plane_through(model, *points)
    for point in points:
        coordinates, distance = plane.project(point)
        assert distance < 1e-6 * float(point.norm())
        torch.testing.assert_close(plane.at(coordinates), point, rtol=1e-5, atol=1e-6)


def test_the_line_has_its_snapshots_at_0_and_1() -> None:
    model = double("causal")
    first, second, third = snapshots(model, 3)
    line = line_through(model, first, second)
    assert torch.equal(line.at([0]), first)
    torch.testing.assert_close(line.at([1]), second, rtol=1e-14, atol=1e-15)
    (coordinate,), distance = line.project(third)
    # Pythagoras, with the foot of the perpendicular from the third.
    foot = first + coordinate * (second - first)
    assert float((third - foot) @ (second - first)) == pytest.approx(0, abs=1e-10)
    assert distance == pytest.approx(float((third - foot).norm()))


class Counting(Sequence[Tensor]):
    """Snapshots that count how often they are read."""

    def __init__(self, items: list[Tensor]) -> None:
        self.items, self.reads = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        self.reads += 1
        return self.items[index]

    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("never all at once")


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("center", ["last", "mean"])
def test_principal_components_are_those_of_the_dense_decomposition(
    center: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = double("causal")
    points = snapshots(model, 7) + snapshots(model, 5, seed=1)  # two runs jointly
    monkeypatch.setattr(planes, "_BLOCK_BYTES", block * 8 * len(points[0]))
    plane = principal_plane(model, Counting(points), center=center)
    matrix = torch.stack(points)
    origin = points[-1] if center == "last" else matrix.mean(dim=0)
    _, S, V = torch.linalg.svd(matrix - origin, full_matrices=False)
    torch.testing.assert_close(plane.origin, origin, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close((plane.directions @ V[:2].T).abs(), torch.eye(2).double(), rtol=0, atol=1e-8)
    assert plane.explained is not None
    np.testing.assert_allclose(plane.explained, (S[:2] ** 2 / (S**2).sum()).numpy(), rtol=1e-10)


def test_a_long_trajectory_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("causal")
    points = Counting(snapshots(model, 12))
    monkeypatch.setattr(planes, "_BLOCK_BYTES", 4 * 8 * len(points.items[0]))
    principal_plane(model, points, dims=1)
    # The last; 3 blocks of the Gram matrix and 3 pairs of them; the directions.
    assert points.reads == 1 + (12 + 3 * 4) + 12


def test_snapshots_by_name() -> None:
    model = double("causal")
    points = snapshots(model, 3)
    coordinates = Coordinates(model)
    named = [dict(zip(coordinates.names, coordinates.split(point), strict=True)) for point in points]
    assert torch.equal(plane_through(model, *named).directions, plane_through(model, *points).directions)


def test_planes_that_do_not_exist() -> None:
    model = double("causal")
    a, b, c = snapshots(model, 3)
    broken = torch.full_like(a, torch.nan)
    with pytest.raises(UsageError, match="snapshots: the three lie on a line"):
        plane_through(model, a, b, a + 3 * (b - a))
    with pytest.raises(UsageError, match="snapshots: the three lie on a line"):
        plane_through(model, a, a, b)
    with pytest.raises(UsageError, match="snapshots: equal"):
        line_through(model, a, a)
    with pytest.raises(UsageError, match=r"snapshots\[1\]: NaN or infinite parameters"):
        plane_through(model, a, broken, c)
    with pytest.raises(UsageError, match=r"snapshots\[0\]: NaN or infinite parameters"):
        principal_plane(model, [broken, a, b])
    with pytest.raises(UsageError, match="snapshots: 2; a principal plane of 2 dimensions needs 3"):
        principal_plane(model, [a, b])
    with pytest.raises(UsageError, match="snapshots: they span fewer than 2 dimensions"):
        principal_plane(model, [a, b, b])
    with pytest.raises(UsageError, match="snapshots: they span fewer than 1 dimensions"):
        principal_plane(model, [a, a], dims=1)
    with pytest.raises(UsageError, match="center: 'first' is not known"):
        principal_plane(model, [a, b, c], center="first")
    with pytest.raises(UsageError, match="dims: 3; allowed: 1, 2"):
        principal_plane(model, [a, b, c], dims=3)
