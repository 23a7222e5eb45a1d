"""The reduction keeps every bin's extremes, so that no spike is lost, and stays within its budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape.plots.curves import Curve, CurveSet, Panel, Trace
from landscape.plots.envelope import POINT_BUDGET, count_points, keep_indices, reduce


@pytest.mark.parametrize("points", [200, 2000])
def test_every_spike_survives(points: int) -> None:
    rng = np.random.default_rng(2)
    y = rng.standard_normal(100_000) * 0.1
    spikes = np.sort(rng.choice(len(y), points // 8, replace=False))
    y[spikes] += np.where(rng.random(len(spikes)) < 0.5, 50, -50)
    kept = keep_indices([y], points)
    assert len(kept) <= points + 2
    # At most one spike up and one down a bin can be told apart; no bin loses its highest or lowest value.
    edges = np.linspace(0, len(y), points // 4 + 1).round().astype(int)
    for start, stop in itertools.pairwise(edges):
        chosen = y[kept[(kept >= start) & (kept < stop)]]
        assert chosen.max() == y[start:stop].max()
        assert chosen.min() == y[start:stop].min()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 60))
def test_order_ends_and_extremes(values: list[float], points: int) -> None:
    y = np.array(values)
    kept = keep_indices([y], points)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(y) - 1
    assert y[kept].max() == y.max()
    assert y[kept].min() == y.min()


def test_breaks_and_bands_survive() -> None:
    y = np.sin(np.arange(10_000) / 50)
    y[4321] = np.nan
    upper = y + 0.1
    upper[777] = 9
    kept = keep_indices([y, y - 0.1, upper], 400)
    assert {4320, 4321, 4322, 777} <= set(kept.tolist())


def figure(lengths: list[int]) -> CurveSet:
    rng = np.random.default_rng(3)
    curves = tuple(
        Curve(
            label=str(number),
            color="#000000",
            x=np.arange(length) * 1.0,
            y=rng.standard_normal(length),
            lower=np.full(length, -3.0),
            upper=np.full(length, 3.0),
            n=np.full(length, 2),
            hollow=np.zeros(length, bool),
            raw=(Trace(np.arange(length) * 1.0, rng.standard_normal(length), "seed 0"),),
        )
        for number, length in enumerate(lengths)
    )
    return CurveSet("", (Panel("", curves, ""),))


def test_a_figure_is_reduced_to_its_budget_in_proportion() -> None:
    full = figure([100_000, 50_000, 100])
    small = reduce(full)
    assert count_points(full) == 4 * 150_100
    assert count_points(small) <= POINT_BUDGET * 1.05
    first, second, third = small.curves()
    assert 1.7 < len(first.x) / len(second.x) < 2.3
    assert len(third.x) == 100  # short series are never thinned
    for before, after in zip(full.curves(), small.curves(), strict=True):
        assert len(after.x) == len(after.y) == len(after.n) == len(after.hollow) == len(after.lower)  # type: ignore[arg-type]
        assert after.y.max() == before.y.max()
        assert after.raw[0].y.min() == before.raw[0].y.min()


def test_a_small_figure_is_left_alone() -> None:
    small = figure([500, 500])
    assert reduce(small) is small
