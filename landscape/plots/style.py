"""One look for every figure: a fixed color and dash per method, shades within a method, and the dark variant.

Colors are Okabe and Ito's (2008) where they suffice, which stay apart under the common color-vision deficiencies;
further methods take other hues and, so that nothing rests on color alone, another dash.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

INK = "#1b1f24"
MUTED = "#5d6673"
GRID = "#e3e6ea"
FRAME = "#b9c0c9"
PAPER = "#ffffff"

_DARK_NEUTRALS = {INK: "#e8eaed", MUTED: "#9aa4b2", GRID: "#2a3038", FRAME: "#4a5360", PAPER: "#14171c"}

DASHES: dict[str, tuple[float, ...]] = {
    "solid": (),
    "dash": (5.0, 2.0),
    "dot": (1.2, 1.6),
    "dashdot": (6.0, 1.8, 1.2, 1.8),
    "longdash": (9.0, 2.5),
}
"""Name as Plotly spells it → on and off lengths in line widths, as Matplotlib takes them."""


@dataclass(frozen=True)
class MethodStyle:
    """How one method is named and drawn wherever it appears."""

    label: str
    color: str
    dash: str = "solid"


METHOD_STYLES: dict[str, MethodStyle] = {
    "full": MethodStyle("Full FT", "#505a68", "dash"),
    "lora": MethodStyle("LoRA", "#d55e00"),
    "mgpo": MethodStyle("LoRA-MGPO", "#0072b2"),
    "mgpo-released": MethodStyle("LoRA-MGPO (released code)", "#0072b2", "dot"),
    "ggpo": MethodStyle("LoRA-GGPO", "#009e73"),
    "ggpo-released": MethodStyle("LoRA-GGPO (released code)", "#009e73", "dot"),
    "flat-lora": MethodStyle("Flat-LoRA", "#009e73", "dashdot"),
    "dora": MethodStyle("DoRA", "#cc79a7"),
    "adalora": MethodStyle("AdaLoRA", "#e69f00"),
    "rslora": MethodStyle("rsLoRA", "#56b4e9"),
    "lora+": MethodStyle("LoRA+", "#8c7a00", "dash"),
    "loraplus": MethodStyle("LoRA+", "#8c7a00", "dash"),
    "pissa": MethodStyle("PiSSA", "#882255", "dashdot"),
    "lora-ga": MethodStyle("LoRA-GA", "#e69f00", "longdash"),
    "lora-pro": MethodStyle("LoRA-Pro", "#4b2f9b", "dash"),
    "sam": MethodStyle("LoRA + SAM", "#4b2f9b", "dot"),
    "random": MethodStyle("LoRA + random noise", "#882255", "dot"),
}

_SPARE = ("#4b2f9b", "#882255", "#8c7a00", "#56b4e9", "#cc79a7")


def method_style(method: str) -> MethodStyle:
    """The style of a method; a name not in the table gets one that depends on the name alone."""
    known = METHOD_STYLES.get(method)
    if known is not None:
        return known
    number = zlib.crc32(method.encode("utf-8", "replace"))
    dashes = ("dashdot", "longdash", "dot")
    return MethodStyle(method, _SPARE[number % len(_SPARE)], dashes[number // len(_SPARE) % len(dashes)])


def method_order(method: str) -> tuple[int, str]:
    """A sort key: the order of `METHOD_STYLES`, then others by name."""
    names = list(METHOD_STYLES)
    return (names.index(method) if method in METHOD_STYLES else len(names), method)


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
    return _mix(color, "#ffffff", 0.22)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _hex(channels: list[int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _mix(color: str, other: str, share: float) -> str:
    return _hex([round((1 - share) * a + share * b) for a, b in zip(_rgb(color), _rgb(other), strict=True)])
