"""Slices as plain data and as drawn: one scale for all, nothing invented where the loss is not finite."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import replace

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from landscape.errors import UsageError
from landscape.plots import (
    LineSlice,
    Measured,
    PathData,
    SurfaceData,
    SurfaceSet,
    color_map,
    line_slices,
    surface_3d,
    surface_figure,
    surface_table,
    surfaces_to_matplotlib,
    surfaces_to_plotly,
    to_matplotlib,
    to_plotly,
)
from landscape.plots.matplotlib_page import RC
from landscape.plots.plotly_page import recolored
from landscape.plots.slice_labels import spots
from landscape.plots.slice_levels import UNKNOWN
from landscape.plots.slices_plotly import PAGE
from landscape.plots.style import method_style

MEASURED = Measured("adapter", "filter", 64, 5120, precision="float32")


def bowl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1.35 + 0.45 * x**2 + 0.35 * (y - 0.3 * x**2) ** 2


def surface(*, title: str = "", shift: float = 0.0, paths: tuple[PathData, ...] = (), points: int = 15) -> SurfaceData:
    x, y = np.linspace(-2, 1.5, points), np.linspace(-1.6, 1.7, points + 2)
    loss = bowl(x[:, None] - shift, y[None, :])
    return SurfaceData(x, y, loss, MEASURED, title, 0.02 * loss, paths, "PC 1", "PC 2")


def broken(item: SurfaceData) -> SurfaceData:
    loss = item.loss.copy()
    loss[-4:, -5:] = np.inf
    loss[2, 3] = np.nan
    return replace(item, loss=loss)


def path(seed: int = 0, method: str = "lora", count: int = 13, marks: tuple[tuple[float, str], ...] = ()) -> PathData:
    t = np.linspace(0, 1, count)
    bend = np.sin(np.pi * t) * (0.9 + 0.3 * seed)
    places = np.stack([-1.6 * (1 - t) ** 2 + 0.2 * seed * t, 1.2 * (1 - t) - bend], axis=1)
    below = bowl(*places.T)
    style = method_style(method)
    away = np.sqrt(t * (1 - t))
    own = below - 0.1 * away
    return PathData(
        np.round(600 * t).astype(np.int64),
        places,
        own,
        away,
        below,
        0.02 + 0 * t,
        0.87,
        style.label,
        style.color,
        marks,
    )


def diverged(item: PathData) -> PathData:
    places, loss = item.coordinates.copy(), item.loss.copy()
    places[-2:], loss[-2:] = np.nan, np.nan
    return replace(item, coordinates=places, loss=loss, distance=np.where(np.isnan(loss), np.nan, item.distance))


def accuracies() -> SurfaceData:
    values = np.linspace(0, 0.6, 255).reshape(15, 17)
    return replace(surface(), loss=values, measured=replace(MEASURED, metric="accuracy"))


FIGURES: dict[str, Callable[[], SurfaceSet]] = {
    "one": lambda: surface_figure(
        [surface(paths=(path(marks=((300, "peak"),)),))], title="A title that is long enough to need a second line here"
    ),
    "episode": lambda: surface_figure(
        [
            surface(title=name, shift=0.2 * index, paths=(path(marks=((step, name.lower()),)),))
            for index, (name, step) in enumerate([("Before", 200), ("During", 300), ("After", 450)])
        ],
        chosen="LoRA on gsm8k",
    ),
    "methods": lambda: surface_figure([surface(paths=(path(0), path(1, "ggpo"), path(2, "mgpo", count=40)))]),
    "no paths": lambda: surface_figure([surface(title="LoRA"), surface(title="LoRA-MGPO", shift=0.4)]),
    "four": lambda: surface_figure([surface(title=f"r = {rank}", paths=(path(),)) for rank in (8, 16, 32, 64)]),
    "not finite": lambda: surface_figure([broken(surface(paths=(diverged(path()),)))]),
    "nothing finite": lambda: surface_figure([replace(surface(), loss=np.full((15, 17), np.nan))]),
    "constant": lambda: surface_figure([replace(surface(), loss=np.full((15, 17), 2.0))]),
    "accuracy": lambda: surface_figure(
        [
            replace(
                surface(), loss=np.linspace(0, 0.6, 255).reshape(15, 17), measured=replace(MEASURED, metric="accuracy")
            )
        ]
    ),
    "one snapshot": lambda: surface_figure([surface(paths=(path(count=1),))]),
}


@pytest.fixture(params=FIGURES)
def result(request: pytest.FixtureRequest) -> SurfaceSet:
    return FIGURES[request.param]()


# Data


def test_a_wall_does_not_use_up_the_scale() -> None:
    item = replace(surface(), loss=np.where(surface().loss > 3, 1e8, surface().loss))
    figure = surface_figure([item], highest=4.0)
    assert figure.levels.edges[-1] < 4.5
    assert any("up to 1e+08" in note for note in figure.curves.notes)
    assert np.nanmax(surfaces_to_plotly(figure).data[0].z) <= np.log10(4.5)


def test_marks_stand_at_the_nearest_snapshot_on_the_plane() -> None:
    found = spots(diverged(path(marks=((310, "peak"), (600, "end of all")))))
    assert [(spot.kind, spot.index, spot.text) for spot in found] == [
        ("start", 0, "step 0"), ("end", 10, "500"), ("mark", 6, "peak"), ("mark", 10, "end of all"),
    ]  # fmt: skip


def test_a_line_is_the_mean_over_directions_with_its_spread_and_gaps() -> None:
    x = np.linspace(-1, 1, 7)
    draws = np.random.default_rng(0).normal(2, 0.1, (5, 7))
    draws[1, 3], draws[2, 6] = np.inf, np.nan
    result = line_slices([LineSlice(x, draws, MEASURED, "LoRA"), LineSlice(x, draws[0], MEASURED, "alone")])
    curve, alone = result.curves()
    kept = [0, 1, 2, 4, 5]
    np.testing.assert_allclose(curve.y[kept], draws.mean(axis=0)[kept], rtol=1e-12)
    assert curve.upper is not None
    around = draws[:, kept] - draws[:, kept].mean(axis=0)
    spread = np.sqrt((around**2).sum(axis=0) / 4)
    np.testing.assert_allclose((curve.upper - curve.y)[kept], spread, rtol=1e-12)
    assert np.isnan(curve.y[[3, 6]]).all()
    assert [end.x for end in curve.ends] == pytest.approx([x[2], x[4], x[5]])
    assert alone.lower is None
    assert alone.ends == ()
    assert any("No finite loss at 2 of 7 points" in note for note in result.notes)
    # Two stretches of a band, two lines and the marks at the gaps.
    assert len(to_plotly(result).data) == 5
    assert to_matplotlib(result).axes


def test_cells_without_a_finite_corner_are_unknown() -> None:
    loss = np.ones((4, 3))
    loss[1, 0], loss[3, 2] = np.nan, np.inf
    item = SurfaceData(np.array([0.0, 1, 2, 4]), np.array([0.0, 1, 3]), loss, MEASURED)
    assert item.unknown_cells() == [(0, 2, 0, 1), (2, 4, 1, 3)]
    assert item.finite.sum() == 10


def test_surfaces_share_scale_and_axes() -> None:
    figure = FIGURES["episode"]()
    highest = max(item.loss.max() for item in figure.surfaces)
    assert figure.levels.edges[-1] >= highest
    assert figure.x_range == (-2, 1.5)
    contours = [trace for trace in surfaces_to_plotly(figure).data if trace.type == "contour"]
    assert len(contours) == 3
    assert len({(str(one.contours), str(one.colorscale), one.zmin, one.zmax) for one in contours}) == 1
    assert [one.showscale for one in contours] == [True, False, False]


def test_notes_say_what_was_measured_and_what_it_depends_on() -> None:
    notes = " ".join(FIGURES["not finite"]().curves.notes)
    for words in (
        "Space: adapter. Normalization: filter. Measured on 64 examples (5120 labels, float32).",
        "depends on the gauge: rescaling a layer's factors to cA and B/c changes nothing",
        "colors under the path are not its loss",
        "evenly spaced in log(loss)",
        "Hatched: no finite loss at 21 of 255 grid points.",
        "87%",
    ):
        assert words in notes
    merged = surface_figure([replace(surface(), measured=replace(MEASURED, space="merged"))])
    assert any("does not depend on the gauge" in note for note in merged.curves.notes)


def test_the_table_has_the_numbers_drawn() -> None:
    figure = FIGURES["not finite"]()
    frame = surface_table(figure)
    item = figure.surfaces[0]
    grid = frame[frame["series"] == "surface"]
    assert len(grid) == item.loss.size
    by_place = {(row.x, row.y): row.loss for row in grid.itertuples()}
    assert by_place[item.x[4], item.y[7]] == item.loss[4, 7]
    assert by_place[item.x[-1], item.y[-1]] == np.inf
    run = frame[frame["series"] == "path"]
    for column in ("loss", "surface_loss", "distance", "standard_error"):
        np.testing.assert_array_equal(run[column], getattr(item.paths[0], column))
    np.testing.assert_array_equal(run["step"], item.paths[0].steps)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: surface_figure([]), "surfaces: 0; allowed: 1 to 4"),
        (lambda: surface_figure([surface()] * 5), "surfaces: 5; allowed: 1 to 4"),
        (lambda: surface_figure([surface(), replace(surface(), x_label="PC 9")]), r"surfaces\[1\]: x_label 'PC 9'"),
        (
            lambda: surface_figure([surface(), replace(surface(), measured=replace(MEASURED, metric="accuracy"))]),
            r"surfaces\[1\]: metric 'accuracy'",
        ),
        (lambda: replace(surface(), loss=np.ones((3, 3))), r"loss: shape \(3, 3\); allowed: \(15, 17\)"),
        (lambda: replace(surface(), standard_error=np.ones(3)), "standard_error: shape"),
        (lambda: replace(surface(), x=np.zeros(15)), "x: shape .* ascending"),
        (lambda: replace(path(), steps=np.zeros(13, dtype=int)), "steps: 13 snapshots; allowed: at least 1, ascending"),
        (lambda: replace(path(), coordinates=np.zeros((13, 3))), r"coordinates: shape \(13, 3\); allowed: \(13, 2\)"),
        (lambda: replace(path(), distance=np.zeros(2)), "distance: shape"),
        (lambda: line_slices([]), "lines: none"),
        (lambda: LineSlice(np.arange(3.0), np.ones((2, 4)), MEASURED), r"loss: shape \(2, 4\); x has 3 points"),
        (
            lambda: line_slices(
                [
                    LineSlice(np.arange(3.0), np.ones(3), MEASURED),
                    LineSlice(np.arange(3.0), np.ones(3), replace(MEASURED, metric="accuracy")),
                ]
            ),
            "lines: metrics accuracy, loss; allowed: one",
        ),
    ],
)
def test_bad_input(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


# Drawing


def words(figure: Figure) -> list[Text]:
    return [item for item in figure.findobj(Text) if isinstance(item, Text) and item.get_visible() and item.get_text()]


def is_tick(text: str) -> bool:
    return text.replace("−", "-").replace(".", "").replace("-", "").replace("e", "").isdigit()


def test_no_two_texts_overlap_and_all_are_on_the_page(result: SurfaceSet) -> None:
    figure = surfaces_to_matplotlib(result)
    with mpl.rc_context(RC):
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    # Ticks beyond an axis's ends are not drawn; step labels are numbers that must keep apart all the same.
    kept = [item for item in words(figure) if item.get_gid() == "step label" or not is_tick(item.get_text())]
    boxes = [(item.get_text(), item.get_window_extent(renderer)) for item in kept]
    page = figure.bbox
    for text, box in boxes:
        assert box.x0 >= page.x0 - 1, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y0 >= page.y0 - 1, text
        assert box.y1 <= page.y1 + 1, text
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        assert not one.padded(-0.5).overlaps(other.padded(-0.5)), (first, second)


def test_step_labels_keep_apart_in_plotly(result: SurfaceSet) -> None:
    figure = surfaces_to_plotly(result)
    layout = figure.layout
    wide = PAGE - layout.margin.l - layout.margin.r
    body = layout.height - layout.margin.t - layout.margin.b
    labels = [note for note in layout.annotations if note.name == "step label"]
    # Ends and names are always said; the first step once a surface.
    for item in result.surfaces:
        alone = len(item.paths) == 1
        said = [spot.text for run in item.paths for spot in spots(run, alone=alone) if spot.kind != "start"]
        assert set(said) <= {note.text for note in labels}
    boxes = []
    for note in labels:
        name = note.xref.split()[0][1:]
        across, up = layout[f"xaxis{name}"].domain, layout[f"yaxis{name}"].domain
        x = wide * (across[0] + note.x * (across[1] - across[0]))
        y = body * (up[0] + note.y * (up[1] - up[0]))
        # Digits of the page's font at 11 pixels are 6.2 wide.
        boxes.append((note.text, x, y, 6.2 * len(note.text), 13))
    for one, other in itertools.combinations(boxes, 2):
        apart = abs(one[1] - other[1]) >= (one[3] + other[3]) / 2 or abs(one[2] - other[2]) >= 13
        assert apart, (one, other)


def test_the_page_shows_each_points_band_and_hatches_what_is_unknown() -> None:
    item = broken(surface(points=21))
    figure = surface_figure([item])
    static = surfaces_to_matplotlib(figure)
    buffer = io.BytesIO()
    static.savefig(buffer, format="png", dpi=150)
    buffer.seek(0)
    pixels = matplotlib.image.imread(buffer)[:, :, :3]
    ax = static.axes[0]
    transform = ax.transData.transform
    scale = 150 / static.dpi
    levels = figure.levels
    checked = 0
    for i, j in itertools.product(range(1, 20), range(1, 22)):
        place = transform((item.x[i], item.y[j])) * scale
        row, column = pixels.shape[0] - 1 - round(float(place[1])), round(float(place[0]))
        value = item.loss[i, j]
        if not np.isfinite(value):
            # A hatch line or its ground, both of which are warm; the ramp is cold throughout.
            red, _, blue = pixels[row, column]
            assert red > blue
            continue
        band = np.searchsorted(levels.edges, value) - 1
        share = np.log(value / levels.edges[band]) / np.log(levels.edges[band + 1] / levels.edges[band])
        if not 0.2 < share < 0.8 or not np.isfinite(item.loss[i - 1 : i + 2, j - 1 : j + 2]).all():
            continue
        expected = [int(levels.colors[band][k : k + 2], 16) / 255 for k in (1, 3, 5)]
        np.testing.assert_allclose(pixels[row, column], expected, atol=0.01)  # 8 bits a channel
        checked += 1
    assert checked > 80


def test_plotly_draws_the_results_numbers(result: SurfaceSet) -> None:
    figure = surfaces_to_plotly(result)
    assert {trace.type for trace in figure.data} <= {"contour", "scatter"}
    contours = [trace for trace in figure.data if trace.type == "contour"]
    for item, trace in zip(result.surfaces, contours, strict=True):
        expected = np.log10(item.loss) if result.levels.log else item.loss
        good = item.finite
        # In float32, as it is embedded in pages.
        np.testing.assert_allclose(np.array(trace.z).T[good], expected[good], rtol=1e-6)
        assert np.isnan(np.array(trace.z).T[~good]).all()
        # Plotly spreads the scale's ends over the bands below ``start`` and above ``end``.
        bands = round((trace.contours.end - trace.contours.start) / trace.contours.size) + 2
        assert bands == max(2, len(result.levels.colors))
    hatched = [trace for trace in figure.data if trace.name == "not finite"]
    assert len(hatched) == sum(not item.finite.all() for item in result.surfaces)
    assert all(trace.fillpattern.bgcolor == UNKNOWN for trace in hatched)
    runs = [run for item in result.surfaces for run in item.paths]
    scatter = [trace for trace in figure.data if trace.type == "scatter"]
    drawn = [trace for trace in scatter if trace.mode == "lines+markers" and trace.text is not None]
    for run, trace in zip(runs, drawn, strict=True):
        np.testing.assert_array_equal(np.stack([trace.x, trace.y], axis=1), run.coordinates[run.seen])
    entries = [trace.name for trace in figure.data if trace.showlegend and trace.type == "scatter"]
    assert sorted(entries) == sorted(curve.label for curve in result.curves.legend())


def test_the_dark_theme_is_the_color_map_applied() -> None:
    result = FIGURES["methods"]()
    light = surfaces_to_plotly(result)
    dark = surfaces_to_plotly(result, theme="dark")
    assert recolored(light.to_plotly_json()["layout"], color_map(light)) == dark.to_plotly_json()["layout"]
    assert surface_3d(result, theme="dark").layout.paper_bgcolor == dark.layout.paper_bgcolor != "#ffffff"


def test_without_heading_the_page_prints_title_and_notes() -> None:
    result = FIGURES["episode"]()
    bare = surfaces_to_plotly(result, heading=False)
    assert all(result.curves.title not in note.text for note in bare.layout.annotations)
    assert any(note.text == "<b>Before</b>" for note in bare.layout.annotations)
    assert bare.layout.height < surfaces_to_plotly(result).layout.height


def test_in_three_dimensions_the_run_stands_off_the_surface() -> None:
    result = FIGURES["not finite"]()
    item, run = result.surfaces[0], result.surfaces[0].paths[0]
    ground, stems, below, own = surface_3d(result).data
    np.testing.assert_array_equal(np.isnan(ground.z), ~item.finite.T)
    np.testing.assert_allclose(np.array(ground.z).T[item.finite], item.loss[item.finite], rtol=1e-6)
    np.testing.assert_array_equal(below.z, run.surface_loss[run.seen])
    np.testing.assert_array_equal(own.z, run.loss[run.seen])
    assert len(stems.x) == 3 * len(run.seen)


def test_strings_of_the_store_are_text() -> None:
    hostile = "<script>alert(1)</script> $x^2$ %{y}"
    run = replace(path(marks=((300, hostile),)), label=hostile)
    result = surface_figure([replace(surface(title=hostile, paths=(run,)), x_label=hostile)], title=hostile)
    assert "<script" not in surfaces_to_plotly(result).to_json()
    assert "<script" not in surface_3d(result).to_json()
    surfaces_to_matplotlib(result).canvas.draw()
