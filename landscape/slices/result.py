"""What a slice is, once it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SliceResult:
    """The loss along one or two directions, with everything that says what it is."""

    axes: tuple[np.ndarray, ...]
    """Coordinates along each direction, (points,) each, ascending."""
    loss: np.ndarray
    """(points,) or (points, points) float64: loss[i, j] at axes[0][i]·d1 + axes[1][j]·d2. Where the loss is NaN or
    infinite, so it is here."""
    standard_error: np.ndarray
    """Of ``loss``, over examples (ratio estimator); it is mostly the examples' difficulty, which all points share."""
    origin_loss: float
    """At coordinate 0, by the model's own forward pass."""
    metric: str
    """What ``loss`` holds: ``loss`` in nats a counted label, or the name of another metric."""
    space: str
    normalization: str
    seed: int | None
    """With ``draw`` the key of random directions; None for given ones."""
    draw: int | None
    directions: Tensor | None
    """(dims, n) in the order of ``named_parameters()``; None in other spaces than ``adapter``, where the key counts."""
    cosine: float | None
    """Of the two directions, where they are vectors; they are used as they are, not made orthogonal."""
    num_examples: int
    num_labels: int
    num_parameters: int
    """Dimension of the space."""
    precision: str
    evaluation: str
    """The way in use at the end, e.g. ``stacked x16``."""
    seconds_a_point: Mapping[str, float]
    """Best time of each way that was tried."""
    seconds: float

    @property
    def dims(self) -> int:
        """1 or 2."""
        return len(self.axes)

    @property
    def coordinates(self) -> np.ndarray:
        """Those of the first axis; the second has the same unless others were asked for."""
        return self.axes[0]

    @property
    def finite(self) -> np.ndarray:
        """Where the loss is a number, in the shape of ``loss``."""
        return np.isfinite(self.loss)
