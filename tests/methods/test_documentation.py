"""docs/methods.md has a section for every method, which names each of its arguments and their defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from landscape.methods import METHODS

TEXT = (Path(__file__).parents[2] / "docs/methods.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_its_section(name):
    body = SECTIONS[name]
    values = METHODS[name].arguments().model_dump()
    for argument in values:
        assert re.search(rf"`{argument}(`|:| )", body), f"{argument} is not explained"
    numbers = [value for value in values.values() if isinstance(value, float) and value]
    for value in numbers:
        spelled = {f"{value:g}", f"{value:.0e}".replace("e-0", "e-")}
        assert any(re.search(rf"(?<![\d.]){re.escape(text)}(?![\d])", body) for text in spelled), value


def test_links_to_sections_lead_somewhere():
    anchors = {title.lower().replace(" ", "-").replace(",", "").replace("'", "") for title in SECTIONS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors
