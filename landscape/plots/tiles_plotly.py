"""`Tiles` in Plotly axes."""

from __future__ import annotations

from landscape.plots.plotly_page import Plain, escape
from landscape.plots.style import INK
from landscape.plots.tiles import Tiles


def add_tiles(figure: Plain, tiles: Tiles, suffix: str) -> None:
    """Tiles of one unit on the axes with this suffix, which are there already."""
    axes = {"xref": f"x{suffix}", "yref": f"y{suffix}"}
    for tile in tiles.tiles:
        size = 0.47 if tile.marked else 0.485
        box = {"x0": tile.column - size, "x1": tile.column + size, "y0": tile.row - size, "y1": tile.row + size}
        line = {"color": INK, "width": 2.5 if tile.marked else 0}
        shape = {"type": "rect", **axes, **box, "fillcolor": _fixed(tile.color), "line": line, "layer": "below"}
        figure["layout"]["shapes"].append(shape)
    figure["data"].append(
        {
            "type": "scatter",
            "mode": "text",
            "x": [tile.column for tile in tiles.tiles],
            "y": [tile.row for tile in tiles.tiles],
            "text": [_text(tile.lines) for tile in tiles.tiles],
            "textfont": {"color": [_fixed(tile.ink) for tile in tiles.tiles], "size": 11},
            "hovertext": [escape(tile.hover) for tile in tiles.tiles],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "showlegend": False,
            "name": "tiles",
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
        }
    )
    for axis, names in (("xaxis", tiles.columns), ("yaxis", tiles.rows)):
        figure["layout"][f"{axis}{suffix}"] |= {
            "tickvals": list(range(len(names))),
            "ticktext": [escape(name) for name in names],
            "range": [-0.5, len(names) - 0.5],
            "showgrid": False,
            "showline": False,
            "ticks": "",
        }


def _fixed(color: str) -> str:
    """In a form that the dark theme does not know: tiles are the same on both grounds, and so is what is readable."""
    return f"rgb({int(color[1:3], 16)},{int(color[3:5], 16)},{int(color[5:7], 16)})"


def _text(lines: tuple[str, ...]) -> str:
    first, *others = (escape(line) for line in lines)
    return "<br>".join([f"<b>{first}</b>", *(f'<span style="font-size:10px">{line}</span>' for line in others)])
