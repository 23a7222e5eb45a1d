"""λmax under the loss: one row a space, the largest eigenvalue only, what did not converge is shown as such."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from landscape.plots import sharpness_curves
from tests.synthetic_runs import run


def both_spaces(**changes):
    data = run(sharp=True, **changes)
    assert data.sharpness is not None
    merged = data.sharpness.assign(space="merged", value=data.sharpness["value"] * 3)
    return replace(data, sharpness=pd.concat([data.sharpness, merged]))


def test_the_loss_stands_above_one_row_a_space_on_the_same_steps() -> None:
    result = sharpness_curves([both_spaces(rank=8), both_spaces(rank=64)], facet="rank")
    assert [panel.title for panel in result.panels] == ["r = 8", "r = 64", "", "", "", ""]
    assert result.columns == 2
    assert result.share_y == "row"
    assert [panel.y_label for panel in result.panels[::2]] == [
        "training loss (clean), nats/token",
        "sharpness λmax, adapter space",
        "sharpness λmax, merged space",
    ]
    assert [panel.x_label for panel in result.panels] == ["", "", "", "", "optimizer step", "optimizer step"]
    ranges = [panel.y_range for panel in result.panels]
    assert ranges[0] == ranges[1] != ranges[2] == ranges[3] != ranges[4] == ranges[5]


def test_only_the_largest_eigenvalue_is_drawn() -> None:
    data = run(sharp=True)
    curve = sharpness_curves([data]).panels[1].curves[0]
    assert data.sharpness is not None
    np.testing.assert_array_equal(curve.y, data.sharpness.query("index == 0")["value"])


def test_what_did_not_converge_is_open_and_counted() -> None:
    result = sharpness_curves([run(sharp=True)])
    curve = result.panels[1].curves[0]
    assert curve.hollow is not None
    assert curve.x[curve.hollow].tolist() == [40]
    assert "1 of 13 eigenvalues did not converge (open circles)." in result.notes
    assert "Measured on: probe split, 128 examples, 512 labels." in result.notes


def test_the_log_axis_says_what_it_cannot_show() -> None:
    data = run(sharp=True)
    assert data.sharpness is not None
    negative = data.sharpness.assign(value=-data.sharpness["value"])
    result = sharpness_curves([replace(data, sharpness=negative)], log_y=True)
    assert "13 values at or below 0 cannot be drawn on the log axis." in result.notes


def test_runs_without_eigenvalues_are_left_out() -> None:
    incomplete = replace(run(), sharpness=pd.DataFrame({"step": [1], "value": [2.0]}))
    result = sharpness_curves([run(method="mgpo"), incomplete])
    assert result.curves() == []


def test_preconditioned_sharpness_lies_under_the_others_with_its_threshold() -> None:
    data = run(sharp=True)
    assert data.sharpness is not None
    adapter = data.sharpness.assign(threshold=np.nan)
    scaled = data.sharpness.assign(space="preconditioned", value=data.sharpness["value"] / 100, threshold=38.0)
    merged = data.sharpness.assign(space="merged", threshold=np.nan)
    both = replace(data, sharpness=pd.concat([scaled, adapter, merged]))
    for log_y in (False, True):
        panels = sharpness_curves([both], log_y=log_y).panels
        assert [panel.y_label for panel in panels[1:]] == [
            "sharpness λmax, adapter space",
            "sharpness λmax, merged space",
            "preconditioned sharpness",
        ]
        assert [panel.level for panel in panels] == [None, None, None, (38.0, "stability threshold")]
        assert panels[3].y_range is not None
        assert panels[3].y_range[0] < 38 < panels[3].y_range[1]
        assert float(np.nanmax(panels[3].curves[0].y)) < 38


def test_two_thresholds_are_no_line() -> None:
    data = run(sharp=True)
    assert data.sharpness is not None
    frames = [data.sharpness.assign(space="preconditioned", threshold=value) for value in (38.0, 2.0)]
    runs = [replace(data, run_id=str(i), sharpness=frame) for i, frame in enumerate(frames)]
    assert [panel.level for panel in sharpness_curves(runs).panels] == [None, None]
