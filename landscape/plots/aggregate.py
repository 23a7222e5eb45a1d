"""Averages over seeds: mean, standard deviation and the number of runs at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landscape.plots.curves import FloatArray, IntArray, Trace


@dataclass(frozen=True)
class SeedMean:
    """Statistics over runs at each step that any of them has, all (points,).

    ``sd`` is the sample standard deviation (n - 1), NaN where ``n`` is 1.
    """

    x: FloatArray
    mean: FloatArray
    sd: FloatArray
    n: IntArray

    def broken(self) -> SeedMean:
        """With a NaN between steps where ``n`` changes, so that no line joins means over different runs.

        When a diverged run drops out, the mean of the others is lower at once: a line down to it would draw a
        recovery that no run had.
        """
        cuts = np.flatnonzero(self.n[1:] != self.n[:-1]) + 1
        middle = (self.x[cuts - 1] + self.x[cuts]) / 2
        return SeedMean(
            np.insert(self.x, cuts, middle),
            np.insert(self.mean, cuts, np.nan),
            np.insert(self.sd, cuts, np.nan),
            np.insert(self.n, cuts, 0),
        )


def over_seeds(traces: Sequence[Trace]) -> SeedMean:
    """Mean and standard deviation over runs, step by step, of whichever runs have a value there."""
    steps = np.unique(np.concatenate([trace.x for trace in traces])) if traces else np.array([])
    values = np.full((len(traces), len(steps)), np.nan)
    for row, trace in zip(values, traces, strict=True):
        row[np.searchsorted(steps, trace.x)] = trace.y
    present = np.isfinite(values)
    n = present.sum(axis=0)
    filled = np.where(present, values, 0.0)
    mean = filled.sum(axis=0) / np.maximum(n, 1)
    squares = np.where(present, (values - mean) ** 2, 0.0).sum(axis=0)
    sd = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)
    return SeedMean(steps, mean, sd, n)
