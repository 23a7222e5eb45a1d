"""A surface in three dimensions on paper: heights, holes and paths."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.plots import Measured, PathData, SurfaceData, surface_3d_to_matplotlib, surface_figure
from landscape.plots.surface_3d_matplotlib import only_surface

MEASURED = Measured("adapter", "filter", 8, 80)
AXIS = np.linspace(-1, 1, 9)


def surface(*, title: str = "", hole: bool = False, paths: tuple[PathData, ...] = ()) -> SurfaceData:
    loss = 1 + AXIS[:, None] ** 2 + 2 * AXIS**2
    if hole:
        loss[:2, :2] = np.nan, np.inf
    return SurfaceData(AXIS, AXIS, loss, MEASURED, title=title, paths=paths)


def path() -> PathData:
    steps = np.arange(5)
    places = np.stack([np.linspace(-1, 0, 5), np.zeros(5)], axis=1)
    loss = 1 + places[:, 0] ** 2
    return PathData(steps, places, loss + 0.1, np.zeros(5), loss, label="LoRA")


def test_the_height_is_the_loss_as_the_color_has_it() -> None:
    result = surface_figure([surface(title="first"), surface(title="second", paths=(path(),))], title="Two")
    figure = surface_3d_to_matplotlib(result, 1)
    (axes,) = figure.axes
    (facets,) = axes.collections
    heights = facets._faces[..., 2]
    scaled = result.levels.scale(result.surfaces[1].loss)
    assert heights.min() == pytest.approx(scaled.min())
    assert heights.max() == pytest.approx(scaled.max())
    projected, own = axes.lines
    np.testing.assert_allclose(own.get_data_3d()[2], result.levels.scale(path().loss), rtol=1e-12)
    np.testing.assert_allclose(projected.get_data_3d()[2], result.levels.scale(path().surface_loss), rtol=1e-12)
    assert any("Two: second" in text.get_text() for text in figure.texts)


def test_where_the_loss_is_not_finite_there_is_a_hole() -> None:
    figure = surface_3d_to_matplotlib(surface_figure([surface(hole=True)], title="Holes"))
    figure.draw_without_rendering()
    whole = surface_3d_to_matplotlib(surface_figure([surface()], title="None"))
    count, full = (len(np.asarray(item.axes[0].collections[0]._faces)) for item in (figure, whole))
    assert full == 64
    faces = figure.axes[0].collections[0]._faces
    assert count < full or not np.isfinite(faces).all()


def test_one_surface_keeps_the_scale_of_all() -> None:
    result = surface_figure([surface(), surface(hole=True)], title="Two")
    one = only_surface(result, 1)
    assert one.levels is result.levels
    assert len(one.surfaces) == 1
    assert not one.curves.panels
