"""Contour levels of a loss, their colors and the words on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from landscape.plots.curves import FloatArray

RAMP = ("#f6f8fa", "#dbe5ec", "#bccfdc", "#99b4c7", "#7696ae", "#567893", "#3c5b78", "#28405c")
"""From low to high. One hue, lightness falls throughout: the order survives every color-vision deficiency and print.
Dark is more (Schloss et al., IEEE TVCG 2019), and a path that descends ends where it is easiest to see."""

UNKNOWN = "#c9c5bd"
"""The ground of cells without a finite loss, under a hatch: a gray of another hue than `RAMP`."""

HATCH = "#8a8479"

MOST_BANDS = 14


@dataclass(frozen=True)
class Levels:
    """Contour levels ``edges`` (bands + 1,), evenly spaced in log10(loss), or in the loss where ``log`` is False."""

    edges: FloatArray
    log: bool

    @property
    def scale_edges(self) -> FloatArray:
        """The edges where they are evenly spaced."""
        return self.scale(self.edges)

    def scale(self, values: FloatArray) -> FloatArray:
        """Values as contours take them: cut at the outer edges, their log10 where the levels are logarithmic."""
        cut = np.clip(np.where(np.isfinite(values), values, np.nan), self.edges[0], self.edges[-1])
        return np.log10(cut) if self.log else cut

    @property
    def colors(self) -> list[str]:
        """One a band, low to high."""
        bands = len(self.edges) - 1
        return [ramp(index / (bands - 1) if bands > 1 else 0.3) for index in range(bands)]

    @property
    def labels(self) -> list[str]:
        """One an edge, with as many digits as keep them apart."""
        for digits in range(2, 15):
            texts = [spell_number(value, digits) for value in self.edges.tolist()]
            values = np.array([float(text) for text in texts])
            # A label may be off by a tenth of a band.
            if len(set(texts)) == len(texts) and np.all(np.abs(values - self.edges)[:-1] <= 0.1 * np.diff(self.edges)):
                break
        return texts

    @property
    def label_width(self) -> int:
        """Of the longest label, in characters."""
        return max(map(len, self.labels))

    def shown(self, most: int = 8) -> list[int]:
        """Indices of the edges to print: every k-th, so that there are at most ``most``."""
        every = -(-len(self.edges) // most)
        return list(range(0, len(self.edges), every))


def loss_levels(values: FloatArray, highest: float | None = None) -> Levels:
    """Levels that hold all finite values, at most `MOST_BANDS` bands.

    They are preferred numbers (ISO 3: 10 to whole multiples of 1/5, 1/10, 1/20 ..., such as 1, 1.26, 1.58, 2), so
    they are evenly spaced in log(loss), and two figures with the same spacing share them. With values at or below 0
    they are even in the value itself.

    Args:
        highest: everything above takes the highest color; None is the largest value.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (1.0, 1.0)
    if highest is not None:
        high = max(min(high, highest), low)
    log = low > 0
    if high - low <= 1e-12 * abs(high):
        low, high = low - 0.01 * abs(low or 1), high + 0.01 * abs(high or 1)
    start, stop = (math.log10(low), math.log10(high)) if log else (low, high)
    spacing = _spacing(start, stop, log)
    first, last = math.floor(start / spacing + 1e-9), math.ceil(stop / spacing - 1e-9)
    even = spacing * np.arange(first, max(last, first + 1) + 1, dtype=np.float64)
    return Levels(np.power(10.0, even) if log else even, log)


def _spacing(start: float, stop: float, log: bool) -> float:
    """The finest of a ladder of spacings with at most `MOST_BANDS` bands."""
    exponent = math.floor(math.log10((stop - start) / MOST_BANDS)) - 1
    steps = [base * 10.0**power for power in range(exponent, exponent + 4) for base in (1, 2, 5)]
    if log:
        # 1/5, 1/10, 1/20, ... decades below one, whole decades above.
        steps = sorted([0.1 * 2.0**power for power in range(-40, 2)] + [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
    fitting = [step for step in steps if math.ceil(stop / step - 1e-9) - math.floor(start / step + 1e-9) <= MOST_BANDS]
    return fitting[0]


def spell_number(value: float, digits: int) -> str:
    """A number with so many significant digits, ``1.26``, ``15800`` or ``1.58e7``."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return np.format_float_positional(value, precision=digits, fractional=False, trim="-")


def ramp(position: float) -> str:
    """The color at a position in [0, 1] of `RAMP`."""
    place = min(max(position, 0.0), 1.0) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    ends = [np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) for color in RAMP[index : index + 2]]
    mixed = ends[0] + (place - index) * (ends[1] - ends[0])
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed.tolist())
