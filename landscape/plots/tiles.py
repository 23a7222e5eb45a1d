"""A heat map as plain data: a grid of tiles with the numbers in them, drawn in one of a figure's panels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from landscape.plots.slice_levels import ramp
from landscape.plots.style import contrast

DARK_INK, LIGHT_INK = "#050608", "#fffffe"
"""Not `INK` and `PAPER`, which change places in the dark theme, as tiles do not. One of the two is readable on any."""


@dataclass(frozen=True)
class Tile:
    """One tile at a column and a row (from below).

    Attributes:
        share: 0 to 1, its place on the color scale.
        lines: what is written in it, the first in bold.
        marked: whether it has a frame.
        hover: what else is said of it.
        numbers: columns of the figure's table.
    """

    column: int
    row: int
    share: float
    lines: tuple[str, ...]
    marked: bool = False
    hover: str = ""
    numbers: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def color(self) -> str:
        """Of its ground: one hue, dark is more, so that the order survives every color-vision deficiency and print."""
        return ramp(min(max(self.share, 0.0), 1.0))

    @property
    def ink(self) -> str:
        """Of its text, the better readable of two."""
        return max(DARK_INK, LIGHT_INK, key=lambda ink: contrast(ink, self.color))


@dataclass(frozen=True)
class Tiles:
    """A heat map: names of its columns and rows (from below), and the tiles that there are."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    tiles: tuple[Tile, ...]
