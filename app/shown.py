"""What a page shows, kept while it is drawn, so that it can be saved as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass, field

import streamlit as st

from landscape.report import Part, Words, render_sheet

_KEY = "shown on this page"


@dataclass
class Shown:
    """The parts of a page by key, in the order in which they first came."""

    title: str
    about: str
    parts: dict[str, Part] = field(default_factory=dict)

    def html(self, store: str, where: str) -> bytes:
        """The page as a file."""
        parts = list(self.parts.values())
        return render_sheet(self.title, self.about, parts, store=store, where=where or None).encode("utf-8")


def begin(title: str, about: str) -> Shown:
    """A page that shows nothing yet."""
    shown = st.session_state[_KEY] = Shown(title, about)
    return shown


def keep(key: str, part: Part) -> None:
    """Add something, or put it in the place of what had its key: parts of pages are drawn again by themselves."""
    shown: Shown | None = st.session_state.get(_KEY)
    if shown is not None:
        shown.parts[key] = part


def keep_words(text: str, *, heading: bool = False) -> None:
    """Add a heading or a sentence."""
    keep(f"words {text}", Words(text, heading))
