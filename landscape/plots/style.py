"""One look for every figure: a fixed color and dash per method, shades within a method, and the dark variant.

Colors are Okabe and Ito's (2008) where they suffice, which stay apart under the common color-vision deficiencies;
further methods take other hues and, so that nothing rests on color alone, another dash and another marker: every two
methods differ clearly in color, or in both.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

INK = "#1b1f24"
MUTED = "#5d6673"
GRID = "#e3e6ea"
FRAME = "#b9c0c9"
PAPER = "#ffffff"

_DIMMEST = 45.0
"""CIE lightness on the dark ground: 3.4 to 1."""

_DARK_NEUTRALS = {INK: "#e8eaed", MUTED: "#9aa4b2", GRID: "#2a3038", FRAME: "#4a5360", PAPER: "#14171c"}

DASHES: dict[str, tuple[float, ...]] = {
    "solid": (),
    "dash": (5.0, 2.0),
    "dot": (1.2, 1.6),
    "dashdot": (6.0, 1.8, 1.2, 1.8),
    "longdash": (9.0, 2.5),
    "longdashdot": (9.0, 1.8, 1.2, 1.8),
}
"""Name as Plotly spells it → on and off lengths in line widths, as Matplotlib takes them."""

MARKERS: dict[str, str] = {
    "circle": "o", "square": "s", "diamond": "D", "diamond-tall": "d", "cross": "P", "x": "X", "star": "*",
    "triangle-up": "^", "triangle-down": "v", "triangle-left": "<", "triangle-right": ">", "pentagon": "p",
    "hexagon": "h",
}  # fmt: skip
"""Name as Plotly spells it → Matplotlib's; all are filled, so that an open one can say something else."""

COMPOSED_DASH = "longdashdot"
"""Of every method over an adapter of its own, and of nothing else."""


@dataclass(frozen=True)
class MethodStyle:
    """How one method is named and drawn wherever it appears."""

    label: str
    color: str
    dash: str = "solid"
    marker: str = "circle"


METHOD_STYLES: dict[str, MethodStyle] = {
    "full": MethodStyle("Full FT", "#505a68", "dash", "x"),
    "lora": MethodStyle("LoRA", "#d55e00"),
    "dora": MethodStyle("DoRA", "#cc79a7", "solid", "diamond"),
    "adalora": MethodStyle("AdaLoRA", "#e69f00", "solid", "triangle-down"),
    "pissa": MethodStyle("PiSSA", "#882255", "dashdot", "pentagon"),
    "rslora": MethodStyle("rsLoRA", "#56b4e9", "solid", "star"),
    "lora-plus": MethodStyle("LoRA+", "#8c7a00", "dash", "cross"),
    "lora+": MethodStyle("LoRA+", "#8c7a00", "dash", "cross"),
    "loraplus": MethodStyle("LoRA+", "#8c7a00", "dash", "cross"),
    "lora-ga": MethodStyle("LoRA-GA", "#7a5230", "longdash", "triangle-left"),
    "lora-pro": MethodStyle("LoRA-Pro", "#4b2f9b", "dash", "triangle-right"),
    "nlora": MethodStyle("NLoRA", "#c05078", "longdash", "diamond-tall"),
    "mgpo": MethodStyle("LoRA-MGPO", "#0072b2", "solid", "square"),
    "mgpo-released": MethodStyle("LoRA-MGPO (released code)", "#0072b2", "dot", "diamond-tall"),
    "ggpo": MethodStyle("LoRA-GGPO", "#009e73", "solid", "triangle-up"),
    "ggpo-released": MethodStyle("LoRA-GGPO (released code)", "#009e73", "dot", "hexagon"),
    "flat-lora": MethodStyle("Flat-LoRA", "#009e73", "dashdot", "pentagon"),
    "sam": MethodStyle("LoRA + SAM", "#4b2f9b", "dot", "star"),
    "msam": MethodStyle("LoRA + Momentum-SAM", "#4b2f9b", "longdash", "cross"),
    "rwp": MethodStyle("LoRA + RWP", "#8c7a00", "dot", "square"),
    "lpf-sgd": MethodStyle("LoRA + LPF-SGD", "#8c7a00", "dashdot", "star"),
    "ema": MethodStyle("LoRA + EMA", "#d55e00", "longdash", "hexagon"),
    "entropy-sgd": MethodStyle("LoRA + Entropy-SGD", "#cc79a7", "dashdot", "triangle-up"),
    "ba-lora": MethodStyle("BA-LoRA", "#56b4e9", "dash", "diamond"),
    "random": MethodStyle("LoRA + random noise", "#882255", "dot", "triangle-right"),
}

_SPARE = ("#4b2f9b", "#882255", "#8c7a00", "#56b4e9", "#cc79a7")


def method_style(method: str) -> MethodStyle:
    """The style of a method, or of one over an adapter of its own (``mgpo-dora``): a color between the two's, the
    adapter's marker, and a dash that no plain method has. Any other name gets a style that depends on the name alone.
    """
    known = METHOD_STYLES.get(method)
    if known is not None:
        return known
    if parts := _composed(method):
        over, below = (METHOD_STYLES[part] for part in parts)
        return MethodStyle(method, _mix(over.color, below.color, 0.5), COMPOSED_DASH, below.marker)
    number = zlib.crc32(method.encode("utf-8", "replace"))
    dashes, markers = ("dashdot", "longdash", "dot"), tuple(MARKERS)
    dash = dashes[number // len(_SPARE) % len(dashes)]
    return MethodStyle(method, _SPARE[number % len(_SPARE)], dash, markers[number // 64 % len(markers)])


def _composed(name: str) -> tuple[str, str] | None:
    """A known method and the known adapter below it, where the name is that of both."""
    cuts = [index for index, character in enumerate(name) if character == "-"]
    parts = [(name[:cut], name[cut + 1 :]) for cut in reversed(cuts)]
    return next(((a, b) for a, b in parts if a in METHOD_STYLES and b in METHOD_STYLES), None)


def method_order(method: str) -> tuple[int, str]:
    """A sort key: the order of `METHOD_STYLES`, a method over an adapter after its own; then others by name."""
    names = list(METHOD_STYLES)
    parts = None if method in METHOD_STYLES else _composed(method)
    own = parts[0] if parts else method
    return (names.index(own) if own in METHOD_STYLES else len(names), method)


def shade(color: str, position: float) -> str:
    """The color at a position of its own ramp: 0 is light, 0.5 the color itself, 1 dark."""
    if position < 0.5:
        return _mix(color, "#ffffff", 0.5 * (1 - 2 * position))
    return _mix(color, "#000000", 0.5 * (2 * position - 1))


def readable(color: str) -> str:
    """The color, darkened until text in it stands out from white by 4.5 to 1 (WCAG 2, level AA)."""
    while contrast(color, "#ffffff") < 4.5:
        color = _mix(color, "#000000", 0.08)
    return color


def contrast(color: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colors, from 1 to 21."""
    high, low = sorted((_luminance(color), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    channels = [channel / 255 for channel in _rgb(color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _lightness(color: str) -> float:
    """CIE L*, 0 to 100; below 1 % luminance, where its formula is another one, a little less than that."""
    return 116 * _luminance(color) ** (1 / 3) - 16


def with_alpha(color: str, alpha: float) -> str:
    """``#rrggbb`` as ``rgba(r,g,b,alpha)``, the form in which Plotly takes transparency."""
    red, green, blue = _rgb(color)
    return f"rgba({red},{green},{blue},{alpha:g})"


def dark_variant(color: str) -> str:
    """The color to use on a dark ground in place of ``#rrggbb`` or ``rgba(r,g,b,a)``; lightness order is kept."""
    if color.startswith("rgba("):
        *channels, alpha = color[5:-1].split(",")
        return with_alpha(dark_variant(_hex([int(channel) for channel in channels])), float(alpha))
    if color in _DARK_NEUTRALS:
        return _DARK_NEUTRALS[color]
    # The dark ends of shades would drown: none is darker than what a graphic needs (WCAG 2: 3 to 1). Brighter in its
    # own hue first, as white makes a color gray.
    wanted, lighter = _DIMMEST + 0.2 * _lightness(color), _mix(color, "#ffffff", 0.22)
    while _lightness(lighter) < wanted:
        brighter = [round(1.03 * channel) + 1 for channel in _rgb(color)]
        color = _hex(brighter) if max(brighter) < 256 else _mix(color, "#ffffff", 0.03)
        lighter = _mix(color, "#ffffff", 0.22)
    return lighter


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _hex(channels: list[int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _mix(color: str, other: str, share: float) -> str:
    return _hex([round((1 - share) * a + share * b) for a, b in zip(_rgb(color), _rgb(other), strict=True)])
