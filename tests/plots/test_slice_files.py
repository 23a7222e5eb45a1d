"""Slices of a store as pictures: which belong together, what is drawn of each, and what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from landscape.plots import RunData, line_figures, surface_figures, surfaces_to_matplotlib, surfaces_to_plotly
from landscape.plots.slice_files import rebounds
from landscape.store.slices import SliceFile
from tests.synthetic_runs import run
from tests.synthetic_slices import path, quadratic, slice_file

LORA, MGPO, GGPO = (run(method=method) for method in ("lora", "mgpo", "ggpo"))
A, B, C = (data.run_id for data in (LORA, MGPO, GGPO))


def with_slices(items: Sequence[SliceFile], episodes: pd.DataFrame | None = None) -> list[RunData]:
    """The three runs with these slices; LoRA's loss tested."""
    runs = [replace(data, slices=[item for item in items if data.run_id in item.runs]) for data in (LORA, MGPO, GGPO)]
    return [replace(runs[0], episodes=episodes), *runs[1:]]


def candidates(*rows: tuple[str, float, float, float, float], adjust: str = "none") -> pd.DataFrame:
    """A run's table: kind, onset, peak, recovery and p-value."""
    frame = pd.DataFrame(rows, columns=["kind", "onset", "peak", "recovery", "p_value"])
    return frame.assign(column="loss_clean", adjust=adjust)


def common(step: int, center: tuple[float, float] = (0.0, 0.0)) -> dict:
    return {"common": {"id": "same", "step": step}, "center": list(center)}


JOINT = slice_file(A, B, C, paths=[path(C, turn=0.4), path(A), path(B, turn=0.2)])
SERIES = [slice_file(A, step=step, common=60, info=common(60)) for step in (60, 0, 30)]
PCA = slice_file(A, directions="pca", paths=[path(A)])
RANDOM = [slice_file(name) for name in (C, A, B)]


@pytest.mark.parametrize(
    ("items", "pictures"),
    [
        ([JOINT], [("LoRA, LoRA-MGPO and LoRA-GGPO on one common plane", [""])]),
        (SERIES, [("Loss around 3 snapshots of LoRA", ["step 0", "step 30", "step 60"])]),
        ([PCA], [("LoRA on the plane of its principal components", [""])]),
        ([slice_file(A)], [("Loss around LoRA", [""])]),
        (
            RANDOM,
            [("Loss around LoRA, LoRA-MGPO and LoRA-GGPO",
              ["LoRA, step 60", "LoRA-MGPO, step 60", "LoRA-GGPO, step 60"])],
        ),
        # What says most comes first, and other settings are another picture.
        ([*RANDOM[:1], PCA, *SERIES, JOINT], [
            ("LoRA, LoRA-MGPO and LoRA-GGPO on one common plane", [""]),
            ("Loss around 3 snapshots of LoRA", ["step 0", "step 30", "step 60"]),
            ("LoRA on the plane of its principal components", [""]),
            ("Loss around LoRA-GGPO", [""]),
        ]),
        ([slice_file(A), slice_file(A, seed=1)], [("Loss around LoRA", [""])] * 2),
        ([PCA, slice_file(B, directions="pca", paths=[path(B)])], [
            ("LoRA on the plane of its principal components", [""]),
            ("LoRA-MGPO on the plane of its principal components", [""]),
        ]),
        (
            [slice_file(A, step=step, directions="update", info={"since": step - 1}) for step in (9, 3)],
            [("Loss around 2 snapshots of LoRA", ["step 3", "step 9"])],
        ),
        (
            [slice_file(A, step=60, directions="line", info={"anchors": [0, 30, 60]})],
            [("Loss on the plane through snapshots of LoRA", [""])],
        ),
        ([slice_file(A, step=step) for step in range(9)],
         [("Loss around 4 snapshots of LoRA", ["step 0", "step 3", "step 5", "step 8"])]),
    ],
)  # fmt: skip
def test_which_slices_share_a_picture(items: list[SliceFile], pictures: list[tuple[str, list[str]]]) -> None:
    figures = surface_figures(with_slices(items))
    assert [(item.curves.title, [surface.title for surface in item.surfaces]) for item in figures] == pictures


def test_of_several_draws_the_mean_and_its_spread() -> None:
    item = slice_file(A, draws=3)
    [[surface]] = [figure.surfaces for figure in surface_figures(with_slices([item]))]
    x, y = 4, 1
    values = np.array([quadratic(np.array([item.axes[0][x], item.axes[1][y]]), draw) for draw in range(3)])
    assert surface.loss[x, y] == pytest.approx(values.mean(), rel=1e-12)
    assert surface.spread is not None
    assert surface.spread[x, y] == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / 2), rel=1e-9)
    assert surface.standard_error is None
    assert "Mean over 3 planes" in " ".join(surface.notes)


def test_a_path_is_on_the_plane_of_the_first_draw() -> None:
    item = slice_file(A, draws=3, directions="random", trajectory=11, paths=[path(A)])
    [figure] = surface_figures(with_slices([item]))
    np.testing.assert_array_equal(figure.surfaces[0].loss, item.loss[0])
    assert "The first of 3 planes" in " ".join(figure.curves.notes)


def test_paths_carry_the_runs_names_and_colors_in_one_order() -> None:
    [figure] = surface_figures(with_slices([JOINT]))
    assert [item.label for item in figure.surfaces[0].paths] == ["LoRA", "LoRA-MGPO", "LoRA-GGPO"]
    assert [item.color for item in figure.surfaces[0].paths] == ["#d55e00", "#0072b2", "#009e73"]
    drawn = figure.surfaces[0].paths[2]
    np.testing.assert_array_equal(drawn.coordinates, JOINT.trajectories[0].coordinates)
    np.testing.assert_array_equal(drawn.loss, JOINT.trajectories[0].loss)
    notes = " ".join(figure.curves.notes)
    assert "may differ in gauge" in notes
    assert "90% of the snapshots' squared distance" in notes


def test_runs_that_were_not_chosen_are_left_out_and_said() -> None:
    [figure] = surface_figures([replace(LORA, slices=[JOINT])])
    assert [item.label for item in figure.surfaces[0].paths] == ["LoRA"]
    assert "Paths of runs that were not chosen are left out: 2." in " ".join(figure.curves.notes)
    assert figure.curves.title == "LoRA on a plane of several runs"


def test_seeds_and_settings_tell_paths_apart() -> None:
    runs = [run(seed=0), run(seed=1), run(learning_rate=1e-3)]
    item = slice_file(*(data.run_id for data in runs), paths=[path(data.run_id) for data in runs])
    [figure] = surface_figures([replace(data, slices=[item]) for data in runs])
    labels = [one.label for one in figure.surfaces[0].paths]
    assert labels == ["LoRA  lr = 5e-4  seed 0", "LoRA  lr = 5e-4  seed 1", "LoRA  lr = 1e-3"]
    assert len({one.color for one in figure.surfaces[0].paths}) == 3


ADJUSTED = candidates(("episode", 1, 2, 3, 0.01), adjust="base")
EPISODE = candidates(("episode", 17, 31, 44, 0.002), ("spike", 5, 5, 6, 1.0), ("partial", 50, 52, 55, 0.4))


def test_rebounds_that_count_are_marked_at_the_nearest_snapshots() -> None:
    [figure] = surface_figures(with_slices([JOINT], EPISODE))
    lora, mgpo, _ = figure.surfaces[0].paths
    assert lora.marks == ((18, "onset (18)"), (30, "peak (30)"), (42, "recovery (42)"))
    assert mgpo.marks == ()
    assert "landscape analyze episodes" in figure.curves.missing[0]
    assert surface_figures(with_slices([PCA], EPISODE))[0].curves.missing == ()


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        (None, []),
        (EPISODE, ["episode"]),
        (candidates(("divergence", 50, 60, 60, 0.0), ("episode", 10, 20, 30, 0.01)), ["divergence", "episode"]),
        (candidates(*[("episode", 10, 20, 30, p) for p in (0.03, 0.01, 0.02)]), ["episode"] * 2),
        # The raw curve's, unless only an adjusted one was tested.
        (pd.concat([candidates(("none", np.nan, np.nan, np.nan, 1.0)), ADJUSTED]), []),
        (ADJUSTED, ["episode"]),
        (candidates(("episode", 1, 2, 3, 0.01)).assign(column="grad_norm"), []),
    ],
)  # fmt: skip
def test_which_rebounds_count(table: pd.DataFrame | None, kinds: list[str]) -> None:
    assert [item.kind for item in rebounds(replace(LORA, episodes=table))] == kinds


def test_marks_at_one_snapshot_share_a_name_and_those_outside_are_left_out() -> None:
    table = candidates(("episode", 29, 31, 90, 0.001), ("divergence", 55, 60, 60, 0.0))
    [figure] = surface_figures(with_slices([PCA], table))
    assert figure.surfaces[0].paths[0].marks == (
        (30, "onset 2, peak 2 (30)"), (54, "onset 1 (54)"), (60, "peak 1 (60)"),
    )  # fmt: skip


def test_titles_say_where_the_episode_is() -> None:
    [figure] = surface_figures(with_slices(SERIES, EPISODE))
    assert [surface.title for surface in figure.surfaces] == [
        "step 0, before the episode", "step 30, in the episode", "step 60, after the episode",
    ]  # fmt: skip
    assert "directions and axes of step 60" in figure.curves.chosen


def test_where_the_snapshot_lies() -> None:
    series = [
        slice_file(A, step=step, directions="pca", common=60, paths=[path(A)], info=common(60, center))
        for step, center in ((0, (1.4, 0.0)), (60, (0.0, 0.0)))
    ]
    [figure] = surface_figures(with_slices(series))
    assert [surface.center for surface in figure.surfaces] == [(1.4, 0.0), (0.0, 0.0)]
    assert "Black ring: the snapshot through which the plane goes." in figure.curves.notes
    [alone], [principal] = (surface_figures(with_slices([item])) for item in (slice_file(A), PCA))
    assert alone.surfaces[0].center == (0.0, 0.0)
    assert "Cross: the snapshot through which the plane goes." in alone.curves.notes
    assert principal.surfaces[0].center is None
    for item in (figure, alone):
        assert "center" in [trace.name for trace in surfaces_to_plotly(item).data]
        surfaces_to_matplotlib(item)


def test_what_is_said_of_the_filling_and_the_flatness() -> None:
    [figure] = surface_figures(with_slices([slice_file(A, tolerance=0.01, evaluated=0.5)]))
    surface, notes = figure.surfaces[0], " ".join(figure.curves.notes)
    assert surface.evaluated is not None
    measured = int(surface.evaluated.sum())
    assert f"{measured} of 49 points measured, the others interpolated" in notes
    assert (
        "error at most 0.003 nats by 100 held-out points; with 95 % confidence 96.4% of them are within 0.0012."
        in notes
    )
    assert "Width at +0.1 nats: 1.200 ± 0.034; anisotropy 2.50 ± 0.10; negative curvature at 0 % of the" in notes
    [contour] = [trace for trace in surfaces_to_plotly(figure).data if trace.type == "contour"]
    texts = np.array(contour.text).T
    assert all((text.startswith("≈") and "±" not in text) != known for text, known in zip(
        texts.ravel(), surface.evaluated.ravel(), strict=True))  # fmt: skip


def test_a_wall_does_not_use_up_the_colors() -> None:
    loss = slice_file(A).loss.copy()
    loss[0, 0, 0] = 1e9
    [figure] = surface_figures(with_slices([replace(slice_file(A), loss=loss)]))
    assert figure.levels.edges[-1] < 20  # 30 times the model's own loss of 0.5
    assert any("up to 1e+09" in note for note in figure.curves.notes)


FAR = "distance in parameters"


@pytest.mark.parametrize(
    ("settings", "info", "labels"),
    [
        ({}, {}, ["random direction 1 (× row norms)", "random direction 2 (× row norms)"]),
        ({"normalization": "none"}, {}, ["random direction 1 (× N(0, 1))", "random direction 2 (× N(0, 1))"]),
        ({"directions": "pca"}, {}, [f"PC 1 ({FAR})", f"PC 2 ({FAR})"]),
        ({"directions": "update"}, {"since": 50}, ["last update (× its length)", "random direction (× its length)"]),
        ({"directions": "gradient"}, {}, [f"gradient ({FAR})", f"random direction ({FAR})"]),
        ({"directions": "top", "normalization": "layer"}, {},
         ["top eigenvector (× layer norms)", "second eigenvector (× layer norms)"]),
        ({"directions": "line"}, {"anchors": [0, 30, 60]},
         [f"from step 0 to step 30 ({FAR})", f"across, to step 60 ({FAR})"]),
    ],
)  # fmt: skip
def test_axes_have_names_and_units(settings: dict, info: dict, labels: list[str]) -> None:
    [figure] = surface_figures(with_slices([slice_file(A, info=info, **settings)]))
    assert [figure.surfaces[0].x_label, figure.surfaces[0].y_label] == labels


def test_a_plane_through_three_runs_names_them() -> None:
    item = slice_file(A, B, C, directions="line", trajectory=3, paths=[path(name) for name in (A, B, C)])
    [figure] = surface_figures(with_slices([item]))
    assert figure.surfaces[0].x_label == "from LoRA to LoRA-MGPO (distance in parameters)"


def test_full_fine_tuning_has_no_gauge() -> None:
    data = run(method="full")
    [figure] = surface_figures([replace(data, slices=[slice_file(data.run_id)])])
    assert "gauge" not in " ".join(figure.curves.notes)


# Lines


def test_lines_of_several_steps_share_a_panel_in_shades() -> None:
    items = [slice_file(A, step=step, dims=1, draws=4) for step in (60, 0, 30)]
    [figure] = line_figures(with_slices(items))
    curves = figure.curves()
    assert [curve.label for curve in curves] == ["step 0", "step 30", "step 60"]
    assert len({curve.color for curve in curves}) == 3
    np.testing.assert_allclose(curves[0].y, items[1].loss.mean(axis=0), rtol=1e-12)
    assert all(curve.band == "±1 sd over directions" for curve in curves)
    assert figure.panels[0].x_label == "random direction (× row norms)"


def test_a_line_between_snapshots_says_its_barrier() -> None:
    item = slice_file(A, dims=1, directions="line", info={"anchors": [0, 60], "barrier": 0.25})
    [figure] = line_figures(with_slices([item]))
    assert figure.panels[0].x_label == "share of the way from step 0 to step 60"
    assert "0.25 nats" in " ".join(figure.notes)
    assert figure.curves()[0].band == "±1 standard error over examples"


def test_snapshots_on_a_line_are_drawn_at_their_own_loss() -> None:
    item = slice_file(A, dims=1, directions="pca", paths=[path(A, dims=1)])
    [figure] = line_figures(with_slices([item]))
    line, snapshots = figure.curves()
    assert (line.label, snapshots.label) == ("LoRA", "LoRA: its snapshots")
    assert (np.diff(snapshots.x) > 0).all()
    np.testing.assert_allclose(snapshots.y[::-1], item.trajectories[0].loss)
    assert "they lie up to 1 off the line" in " ".join(figure.notes)


def test_one_and_two_dimensions_are_kept_apart() -> None:
    runs = with_slices([slice_file(A), slice_file(A, dims=1)])
    assert len(surface_figures(runs)) == len(line_figures(runs)) == 1
    assert surface_figures([LORA]) == line_figures([LORA]) == []
