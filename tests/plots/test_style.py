"""Colors are told apart under simulated color-vision deficiencies, on both grounds; nothing rests on color alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from landscape.plots.style import (
    COMPOSED_DASH,
    DASHES,
    MARKERS,
    METHOD_STYLES,
    PAPER,
    contrast,
    dark_variant,
    method_order,
    method_style,
    readable,
    shade,
    with_alpha,
)

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(color: str, vision: str) -> np.ndarray:
    """CIE L*a*b* (D65) of the color as seen."""
    xyz = TO_XYZ @ np.clip(VISION[vision] @ linear(color), 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(first: str, second: str, vision: str) -> float:
    return float(np.linalg.norm(lab(first, vision) - lab(second, vision)))


PAPERS = ["full", "lora", "mgpo", "ggpo"]


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("ground", ["light", "dark"])
def test_the_papers_methods_are_far_apart(vision: str, ground: str) -> None:
    colors = [method_style(name).color for name in PAPERS]
    colors = [dark_variant(color) for color in colors] if ground == "dark" else colors
    for first, second in itertools.combinations(colors, 2):
        assert distance(first, second, vision) > 12, (first, second)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("channel", ["dash", "marker"])
def test_every_two_methods_differ_clearly_in_color_or_else_in_dash_and_marker(vision: str, channel: str) -> None:
    for first, second in itertools.combinations(sorted(METHOD_STYLES), 2):
        a, b = METHOD_STYLES[first], METHOD_STYLES[second]
        if a.label != b.label and getattr(a, channel) == getattr(b, channel):
            assert distance(a.color, b.color, vision) > 8, (first, second)


def test_every_registered_method_has_a_style_and_a_label_of_its_own() -> None:
    from landscape.methods import METHODS

    assert not set(METHODS) - set(METHOD_STYLES)
    assert len({METHOD_STYLES[name].label for name in METHODS}) == len(METHODS)


def test_every_composition_has_its_own_name_and_look() -> None:
    from landscape.config import method_name
    from landscape.methods import METHODS, compositions

    pairs = [(name, below) for name, method in METHODS.items() if method.composes for below in compositions(method)]
    styles = {pair: method_style(method_name(*pair)) for pair in pairs if pair[1] != "lora"}
    assert len(styles) > 50
    for (name, below), style in styles.items():
        assert style.label == f"{name}-{below}"
        assert (style.dash, style.marker) == (COMPOSED_DASH, METHOD_STYLES[below].marker)
    assert len({(style.color, style.marker) for style in styles.values()}) > 0.6 * len(styles)
    assert COMPOSED_DASH not in {style.dash for style in METHOD_STYLES.values()}


@pytest.mark.parametrize(("over", "below"), [("mgpo-released", "lora-ga"), ("ema", "full"), ("mgpo", "lora-plus")])
def test_names_with_several_hyphens_are_taken_apart_rightly(over: str, below: str) -> None:
    name = f"{over}-{below}"
    assert method_style(name).marker == METHOD_STYLES[below].marker
    assert method_order(name) > method_order(over)
    later = list(METHOD_STYLES)[list(METHOD_STYLES).index(over) + 1]
    assert method_order(name) < method_order(later)


@pytest.mark.parametrize("name", sorted(METHOD_STYLES))
def test_lines_stand_out_from_both_grounds(name: str) -> None:
    color = METHOD_STYLES[name].color
    assert contrast(color, "#ffffff") > 1.9
    assert contrast(dark_variant(color), dark_variant(PAPER)) > 3
    assert contrast(readable(color), "#ffffff") >= 4.5


def test_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the usual example of a near miss


def test_shades_run_from_light_to_dark_and_hold_the_color_in_the_middle() -> None:
    for style in METHOD_STYLES.values():
        lightness = [lab(shade(style.color, position), "normal")[0] for position in (0, 0.25, 0.5, 0.75, 1)]
        assert lightness == sorted(lightness, reverse=True)
        assert shade(style.color, 0.5) == style.color
        on_dark = [lab(dark_variant(shade(style.color, position)), "normal")[0] for position in (0, 0.5, 1)]
        assert on_dark == sorted(on_dark, reverse=True)


def test_dark_variants_keep_transparency() -> None:
    assert dark_variant(with_alpha("#0072b2", 0.25)) == with_alpha(dark_variant("#0072b2"), 0.25)
    assert dark_variant(PAPER) == "#14171c"


def test_an_unknown_method_keeps_its_style() -> None:
    style = method_style("my-own")
    assert style == method_style("my-own")
    assert style.label == "my-own"
    assert style.dash in DASHES
    assert style.marker in MARKERS


def test_methods_have_one_order() -> None:
    assert sorted(["zeta", "mgpo", "alpha", "full"], key=method_order) == ["full", "mgpo", "alpha", "zeta"]
