"""Means over seeds against pandas, and where their line must break."""

from __future__ import annotations

import numpy as np
import pandas as pd

from landscape.plots.aggregate import over_seeds
from landscape.plots.curves import Trace


def test_mean_sd_and_n_are_those_of_a_group_by() -> None:
    rng = np.random.default_rng(1)
    chosen = [np.sort(rng.choice(60, 40, replace=False)) for _ in range(4)]
    traces = [Trace(steps.astype(float), rng.standard_normal(40)) for steps in chosen]
    table = pd.concat([pd.DataFrame({"x": trace.x, "y": trace.y}) for trace in traces])
    expected = table.groupby("x")["y"].agg(["mean", "std", "count"])
    result = over_seeds(traces)
    np.testing.assert_array_equal(result.x, expected.index)
    np.testing.assert_allclose(result.mean, expected["mean"])
    np.testing.assert_allclose(result.sd, expected["std"])
    np.testing.assert_array_equal(result.n, expected["count"])


def test_the_line_breaks_where_a_run_drops_out() -> None:
    long = Trace(np.arange(6.0), np.zeros(6))
    short = Trace(np.arange(3.0), np.full(3, 10.0))
    broken = over_seeds([long, short]).broken()
    np.testing.assert_array_equal(broken.x, [0, 1, 2, 2.5, 3, 4, 5])
    np.testing.assert_array_equal(broken.mean, [5, 5, 5, np.nan, 0, 0, 0])
    np.testing.assert_array_equal(broken.n, [2, 2, 2, 0, 1, 1, 1])
    assert np.isnan(broken.sd[3:]).all()


def test_nothing_gives_nothing() -> None:
    assert len(over_seeds([]).broken().x) == 0
