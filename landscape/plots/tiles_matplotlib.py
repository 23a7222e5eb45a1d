"""`Tiles` in Matplotlib axes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from landscape.plots.matplotlib_page import plain
from landscape.plots.style import INK
from landscape.plots.tiles import Tiles

_LINE = 0.24
"""Of a tile's height, between two lines of text."""


def draw_tiles(ax: Axes, tiles: Tiles) -> None:
    """Tiles of one unit on either axis, names at the ticks, a dark frame around those that are marked."""
    for tile in tiles.tiles:
        size = 0.47 if tile.marked else 0.485
        corner, width = (tile.column - size, tile.row - size), 1.6 if tile.marked else 0
        ax.add_patch(Rectangle(corner, 2 * size, 2 * size, facecolor=tile.color, edgecolor=INK, linewidth=width))
        for number, line in enumerate(tile.lines):
            height = tile.row + _LINE * ((len(tile.lines) - 1) / 2 - number)
            ax.text(
                tile.column, height, plain(line), ha="center", va="center", color=tile.ink, zorder=4,
                fontsize=6.4 if number else 8.0, fontweight="normal" if number else "bold",
            )  # fmt: skip
    ax.set_xlim(-0.5, len(tiles.columns) - 0.5)
    ax.set_ylim(-0.5, len(tiles.rows) - 0.5)
    ax.set_xticks(range(len(tiles.columns)), [plain(name) for name in tiles.columns])
    ax.set_yticks(range(len(tiles.rows)), [plain(name) for name in tiles.rows])
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
