"""Reduction of long series that keeps every spike: the first, lowest, highest and last point of each bin.

This is M4 (Jugel et al., VLDB 2014): at one bin a pixel column the line looks exactly as the full one. Trackers that
subsample at random lose spikes; nothing here is random.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from landscape.plots.curves import Curve, CurveSet, FloatArray, IntArray, Trace

POINT_BUDGET = 50_000
"""Points a browser draws fluently as SVG in one figure."""

SMALLEST_SHARE = 200
"""Points that any series may keep, however many series share the budget."""


def keep_indices(columns: Sequence[FloatArray], points: int) -> IntArray:
    """Indices (sorted) to keep so that the extremes of every column survive in each of equally long bins.

    Args:
        columns: series (points,) over the same x; NaN entries break a line and their neighbors are kept.
        points: about how many indices may be kept; fewer than 4 a column are raised to that.
    """
    length = len(columns[0])
    if length <= points:
        return np.arange(length)
    bins = max(1, points // (2 * len(columns) + 2))
    edges = np.linspace(0, length, bins + 1).round().astype(np.int64)
    kept = {0, length - 1, *edges[:-1].tolist(), *(edges[1:] - 1).tolist()}
    for column in columns:
        finite = np.isfinite(column)
        low, high = np.where(finite, column, np.inf), np.where(finite, column, -np.inf)
        for start, stop in itertools.pairwise(edges.tolist()):
            kept.add(start + int(low[start:stop].argmin()))
            kept.add(start + int(high[start:stop].argmax()))
        breaks = np.flatnonzero(finite[1:] != finite[:-1])
        kept.update(breaks.tolist(), (breaks + 1).tolist())
    return np.array(sorted(kept), dtype=np.int64)


def reduce(result: CurveSet, budget: int = POINT_BUDGET) -> CurveSet:
    """The same figure with at most about ``budget`` points; unchanged where it already has no more.

    Each series keeps a share of the budget in proportion to its length, of which at least `SMALLEST_SHARE`. A band
    counts twice, being two lines.
    """
    total = count_points(result)
    if total <= budget:
        return result
    share = budget / total
    panels = tuple(
        replace(panel, curves=tuple(_reduce_curve(curve, share) for curve in panel.curves)) for panel in result.panels
    )
    return replace(result, panels=panels)


def count_points(result: CurveSet) -> int:
    """Points drawn, counting a band as two lines."""
    return sum(
        len(curve.x) * (1 if curve.lower is None else 3) + sum(len(raw.x) for raw in curve.raw)
        for curve in result.curves()
    )


def _reduce_curve(curve: Curve, share: float) -> Curve:
    columns = [column for column in (curve.y, curve.lower, curve.upper) if column is not None]
    kept = keep_indices(columns, max(SMALLEST_SHARE, int(share * len(curve.x))))
    raw = []
    for trace in curve.raw:
        indices = keep_indices([trace.y], max(SMALLEST_SHARE, int(share * len(trace.x))))
        raw.append(Trace(trace.x[indices], trace.y[indices], trace.label))
    return replace(
        curve,
        x=curve.x[kept],
        y=curve.y[kept],
        lower=None if curve.lower is None else curve.lower[kept],
        upper=None if curve.upper is None else curve.upper[kept],
        n=None if curve.n is None else curve.n[kept],
        hollow=None if curve.hollow is None else curve.hollow[kept],
        raw=tuple(raw),
    )
