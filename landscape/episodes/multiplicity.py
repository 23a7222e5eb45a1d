"""Many tests at once: q-values that control the false-discovery rate."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from landscape.episodes.curve import Array, numbers
from landscape.errors import UsageError, unknown

Procedure = Literal["bh", "by"]
PROCEDURES: tuple[Procedure, ...] = ("bh", "by")


def q_values(p_values: ArrayLike, procedure: Procedure = "bh") -> Array:
    """Smallest false-discovery rate at which each hypothesis would be rejected, (m,) → (m,).

    ``bh`` (Benjamini and Hochberg 1995) holds for p-values that are independent or positively dependent, as those of
    runs on shared batches are likely to be; ``by`` (Benjamini and Yekutieli 2001) holds for any dependence and is
    1 + 1/2 + ... + 1/m times as large.

    Args:
        p_values: NaN for what was not tested; it has q-value NaN and does not count.

    Raises:
        UsageError: a p-value outside [0, 1], or another procedure.
    """
    if procedure not in PROCEDURES:
        raise unknown("procedure", procedure, PROCEDURES)
    p = numbers("p_values", p_values)
    if ((p < 0) | (p > 1)).any():
        raise UsageError(f"p_values: {p[(p < 0) | (p > 1)][0]:g}; allowed: 0 to 1, NaN for what was not tested.")
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    ranks = np.arange(1, len(order) + 1)
    dependence = float((1 / ranks).sum()) if procedure == "by" else 1.0
    adjusted = p[order] * len(order) * dependence / ranks
    q = np.full(len(p), np.nan)
    q[order] = np.minimum(np.minimum.accumulate(adjusted[::-1])[::-1], 1.0)
    return q
