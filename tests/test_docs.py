"""What the documentation generates from code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from landscape.config.reference import config_table

ROOT = Path(__file__).parent.parent


def test_config_reference_is_current():
    assert config_table() in (ROOT / "docs/config.md").read_text()


@pytest.mark.parametrize("page", sorted(["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]))
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_readme_lists_every_method():
    from landscape.methods.table import methods_table

    assert methods_table() in (ROOT / "README.md").read_text()
