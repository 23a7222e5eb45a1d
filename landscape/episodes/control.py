"""Difficulty-adjusted curves: take out what the batches' difficulty adds, and nothing else.

Most of a step loss's noise is the difficulty of its batch, which other curves on the same batches show too: the
untouched base model's loss, or other runs that share the data order. The adjusted curve is

    y - β·(x - trend of x),    β = Cov(Δy, Δx) / Var(Δx)

with the control's own non-increasing trend kept out: a faster descent of the control must not become a rise of the
curve. That trend is a smooth one, because a free monotone fit would follow the difficulty that it is to leave in. β
comes from differences of neighboring points, where difficulty is nearly all there is (control variates; as CUPED, Deng
et al. 2013). Several runs are averaged, after each has lost its trend. What remains is an assumption: that the control
has no episode of its own, because its mirror image would be left in the adjusted curve; see
`docs/episodes.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from landscape.episodes.curve import Array, Curve, numbers
from landscape.episodes.noise import nonnegative_least_squares
from landscape.episodes.repair import repair
from landscape.errors import UsageError


@dataclass(frozen=True, eq=False)
class Control:
    """A curve on the same batches: (n,) or, for several runs, (runs, n)."""

    values: ArrayLike
    kind: Literal["base", "sibling"] = "base"
    """"base": the untouched model, which has no trend to take away. "sibling": other runs on the same data order."""


_DELAYS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
_RATES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def smooth_descent(values: Array) -> Array:
    """A smooth non-increasing fit, (n,) → (n,): nonnegative shares of exponential descents that begin late or early."""
    u = np.linspace(0, 1, len(values))
    basis = np.stack([np.ones_like(u), *(np.exp(-rate * np.maximum(u - k, 0)) for k in _DELAYS for rate in _RATES)])
    lowest = float(values.min())
    return lowest + nonnegative_least_squares(basis.T, values - lowest, 3000) @ basis


def adjust(curve: Curve, control: Control | ArrayLike | None) -> tuple[Array, str]:
    """The curve to test and its name: "raw", or "adjusted by base" / "adjusted by sibling".

    Raises:
        UsageError: a control of another length, or one that is not finite where the curve is.
    """
    if control is None:
        return curve.values, "raw"
    given = control if isinstance(control, Control) else Control(control)
    try:
        rows = np.atleast_2d(np.asarray(given.values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise UsageError(f"control: expected numbers ({error}).") from None
    if given.kind not in ("base", "sibling"):
        raise UsageError(f"control: kind {given.kind!r} is not known; allowed: base, sibling.")
    finite = np.isin(curve.all_steps, curve.steps)
    residuals = []
    for row in rows:
        x = numbers("control", row, len(curve.all_steps))[finite]
        if not np.isfinite(x).all():
            raise UsageError("control: NaN or infinite where the curve is finite; leave those steps out.")
        clean = x - smooth_descent(repair(x).values) if given.kind == "sibling" else x - x.mean()
        residuals.append(clean)
    difficulty = np.mean(residuals, axis=0)
    return curve.values - coefficient(curve.values, difficulty) * difficulty, f"adjusted by {given.kind}"


def coefficient(values: Array, difficulty: Array) -> float:
    """β from first differences, without the tenth that is largest on either side; 0 for a constant control."""
    dy, dx = np.diff(values), np.diff(difficulty)
    inside = (np.abs(dx) <= np.quantile(np.abs(dx), 0.95)) & (np.abs(dy) <= np.quantile(np.abs(dy), 0.95))
    power = float((dx[inside] ** 2).sum())
    return float((dx[inside] * dy[inside]).sum()) / power if power > 0 else 0.0
