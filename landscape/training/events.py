"""A cheap sign, while training, that the loss is rising: what makes a sparse capture keep the steps around it."""

from __future__ import annotations

import math
from collections import deque
from statistics import median


class LossRise:
    """True on the step at which the recent loss has clearly left its lowest level.

    The median of the last ``window`` losses is compared with the lowest such median so far; the alarm is a rise of
    more than ``factor`` times the losses' own robust spread around their median. It fires once a rise and is armed
    again when the level has come back half way. It decides what is captured, not what is an episode.
    """

    def __init__(self, window: int = 9, factor: float = 4.0) -> None:
        self.factor = factor
        self._recent: deque[float] = deque(maxlen=window)
        self._lowest = math.inf
        self._spread = 0.0
        self._armed = True

    def update(self, loss: float) -> bool:
        """Take the next step's loss and say whether an event begins here."""
        self._recent.append(loss)
        if len(self._recent) < (self._recent.maxlen or 0):
            return False
        level = median(self._recent)
        if level <= self._lowest:
            self._lowest = level
            # 1.4826 · MAD estimates a normal's standard deviation; the floor is float32's resolution of a loss.
            mad = median(abs(value - level) for value in self._recent)
            self._spread = max(1.4826 * mad, 1e-6 * abs(level))
        rise = level - self._lowest
        threshold = self.factor * self._spread
        if not self._armed:
            self._armed = rise < threshold / 2
            return False
        if rise > threshold:
            self._armed = False
            return True
        return False
