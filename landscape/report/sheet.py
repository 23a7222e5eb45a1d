"""Some figures, tables and sentences as one HTML file: what a page of the dashboard shows, to send to somebody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from landscape import __version__
from landscape.plots import Drawing
from landscape.report.figure import ReportFigure
from landscape.report.page import TEMPLATES

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Words:
    """A heading or a sentence."""

    text: str
    heading: bool = False


@dataclass(frozen=True, eq=False)
class Sheet:
    """A table; its index is not shown."""

    title: str
    frame: pd.DataFrame


Part = Words | Sheet | Drawing


def render_sheet(title: str, about: str, parts: Sequence[Part], *, store: str, where: str | None = None) -> str:
    """The HTML: opens without a network, in light and dark. Every string of the store is escaped.

    Args:
        about: what the page is, in a sentence.
        parts: in the order in which they are shown; a heading over nothing is left out.
        store: its name.
        where: the filter.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    shown = [part for part, after in zip(parts, [*parts[1:], None], strict=True) if not _is_over_nothing(part, after)]
    figures = any(not isinstance(part, Words | Sheet) for part in shown)
    return templates.get_template("sheet.html.j2").render(
        title=title,
        about=about,
        store=store,
        where=where,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        parts=[_part(part, number) for number, part in enumerate(shown)],
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()) if figures else "",
    )


def _is_over_nothing(part: Part, after: Part | None) -> bool:
    is_heading = isinstance(part, Words) and part.heading
    return is_heading and (after is None or (isinstance(after, Words) and after.heading))


def _part(part: Part, number: int) -> dict[str, Any]:
    if isinstance(part, Words):
        return {"kind": "heading" if part.heading else "words", "text": part.text}
    if isinstance(part, Sheet):
        columns: Any = part.frame
        numeric = [_is_numeric(columns[name]) for name in columns]
        rows = [[spelled(value) for value in row] for row in part.frame.itertuples(index=False)]
        return {"kind": "table", "title": part.title, "head": list(zip(part.frame, numeric, strict=True)), "rows": rows}
    return {"kind": "figure", "figure": ReportFigure.of(f"figure-{number + 1}", part)}


def _is_numeric(column: pd.Series) -> bool:
    import pandas as pd

    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def spelled(value: Any) -> str:
    """A cell as text: numbers to five digits, and a dash where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
