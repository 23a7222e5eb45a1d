"""Curves with their tested rebounds shaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from landscape.plots.build import join_notes, with_ranges
from landscape.plots.curves import Curve, CurveSet, End, FloatArray, Panel, Span, Trace
from landscape.plots.smoothing import local_linear
from landscape.plots.style import METHOD_STYLES, MUTED

_LINE = METHOD_STYLES["mgpo"].color
_FOUND = METHOD_STYLES["lora"].color
_POINTS = 2000
"""Longer curves are averaged to this many points before the line is smoothed."""


class Rebound(Protocol):
    """What of an episode is drawn; `landscape.episodes.Episode` is one."""

    @property
    def kind(self) -> str:
        """Episode, partial, divergence, rebound_only or spike."""
        ...

    @property
    def onset(self) -> float:
        """First step of the rise."""
        ...

    @property
    def peak(self) -> float:
        """Step of the largest loss."""
        ...

    @property
    def recovery(self) -> float:
        """Step at which it is over."""
        ...

    @property
    def p_value(self) -> float:
        """At most alpha where it counts."""
        ...

    @property
    def flags(self) -> tuple[str, ...]:
        """What else explains it."""
        ...


@dataclass(frozen=True, eq=False)
class MarkedCurve:
    """A curve (n,), NaN where it is not finite, and what was found in it."""

    name: str
    steps: FloatArray
    values: FloatArray
    rebounds: Sequence[Rebound] = ()
    verdict: str = ""


def episode_curves(
    tested: Sequence[MarkedCurve],
    *,
    alpha: float = 0.05,
    y_label: str = "loss",
    smoothing: float = 0.006,
    title: str = "Rebounds",
) -> CurveSet:
    """One panel a curve: raw trace, smoothed line, and each rebound shaded from onset to recovery, dotted at its peak.

    Rebounds with a p-value of at most ``alpha`` are in color; what a mark explains (p = 1, flagged) is gray; the
    candidates that noise explains, and single bad batches, are counted in the notes.

    Args:
        smoothing: standard deviation of the Gaussian kernel as a share of the steps; 0 for none.
    """
    panels = []
    for one in tested:
        spans = tuple(_span(e, alpha) for e in sorted(one.rebounds, key=lambda e: e.onset) if _shown(e, alpha))
        curve = _curve(one, y_label, smoothing)
        heading = ": ".join(part for part in (one.name, one.verdict) if part)
        panels.append(Panel(heading, (curve,) if curve else (), y_label, x_label="step", spans=spans))
    panels, cut = with_ranges(panels, list(range(len(panels))))
    left_out = sum(not _shown(e, alpha) for one in tested for e in one.rebounds)
    return CurveSet(
        title=title,
        panels=panels,
        share_y="none",
        notes=join_notes(
            "Shaded from onset to recovery, dotted at the peak. The line is smoothed for display, without bad batches.",
            f"Not shaded: {left_out} with p > {alpha:g}, or a bad batch." if left_out else "",
            *cut,
        ),
    )


def _shown(rebound: Rebound, alpha: float) -> bool:
    return rebound.p_value <= alpha or (rebound.p_value >= 1 and rebound.kind != "spike" and bool(rebound.flags))


def _span(rebound: Rebound, alpha: float) -> Span:
    counts = rebound.p_value <= alpha
    text = f"{rebound.kind}, p = {rebound.p_value:.2g}" if counts else f"not counted: {', '.join(rebound.flags)}"
    return Span(rebound.onset, rebound.peak, rebound.recovery, text, _FOUND if counts else MUTED)


def _curve(one: MarkedCurve, label: str, smoothing: float) -> Curve | None:
    finite = np.isfinite(one.values)
    x, y = one.steps[finite], one.values[finite]
    if not len(x):
        return None
    spikes = [e.peak for e in one.rebounds if e.kind == "spike"]
    line_x, line_y = _averaged(x[~np.isin(x, spikes)], y[~np.isin(x, spikes)])
    span = float(x[-1] - x[0])
    beyond = one.steps[np.flatnonzero(finite)[-1] + 1 :][:1]
    return Curve(
        label=label,
        color=_LINE,
        x=line_x,
        y=local_linear(line_x, line_y, smoothing * span),
        raw=(Trace(x, y),),
        ends=tuple(End(float(x[-1]), float(y[-1]), "diverged", f"not finite from step {step:g}") for step in beyond),
    )


def _averaged(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means over neighbors, at most `_POINTS` of them."""
    if len(x) <= _POINTS:
        return x, y
    edges = np.linspace(0, len(x), _POINTS + 1).astype(np.int64)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes
