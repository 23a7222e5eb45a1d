"""Flatness, sharpness and gap of the same snapshots: the rows of the report's table, and how they rank together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.plots import RunData
from landscape.plots.data import format_rate
from landscape.plots.style import dark_variant, method_style
from landscape.plots.summary import Estimate
from landscape.report.tables import plus_minus

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Store


@dataclass(frozen=True)
class FlatnessTable:
    """Flatness beside λmax and the gap, for the runs of one chapter.

    Attributes:
        kind: of which slices the numbers are.
        rows: one a snapshot, numbers as text.
        balanced: some have a λmax of balanced factors.
        correlations: sentences.
    """

    kind: str
    rows: list[dict[str, Any]]
    balanced: bool
    correlations: list[str]


def flatness_by_run(store: Store, runs: Iterable[RunData]) -> tuple[pd.DataFrame, list[str]]:
    """`landscape.analysis.flatness.flatness_table` of these runs, and what is wrong with those that it leaves out."""
    from landscape.analysis.flatness import flatness_table

    stored = [store.get(run.run_id) for run in runs]
    try:
        return flatness_table(stored), []
    except StoreError:
        whole, problems = [], []
        for run in stored:
            try:
                flatness_table([run])
                whole.append(run)
            except StoreError as error:
                problems.append(str(error))
        return flatness_table(whole), problems


def flatness_chapter(table: pd.DataFrame | None, runs: Iterable[RunData]) -> FlatnessTable | None:
    """What the table says of these runs; None where no snapshot has a slice and, beside it, λmax or a gap."""
    from landscape.analysis.flatness import flatness_correlations, kind_of_slices
    from landscape.analysis.rank_correlation import correlation_sentence

    members = {run.run_id: run for run in runs}
    if table is None:
        return None
    own: Any = table[table["run"].isin(list(members))]
    related = own["width"].notna() & own[["lambda_max", "gap"]].notna().any(axis=1)
    if not related.any():
        return None
    rows = [_row(row, members[row["run"]]) for row in own[related].to_dict("records")]
    sentences = [correlation_sentence(row) for row in flatness_correlations(own).to_dict("records")]
    return FlatnessTable(kind_of_slices(own), rows, bool(own["lambda_max_balanced"].notna().any()), sentences)


def _row(row: dict[str, Any], run: RunData) -> dict[str, Any]:
    style = method_style(run.method)
    return {
        "id": row["run"],
        "method": style.label,
        "color": style.color,
        "dark": dark_variant(style.color),
        "rank": "–" if row["rank"] is None else row["rank"],
        "rate": format_rate(row["learning_rate"]),
        "seed": row["seed"],
        "step": row["step"],
        "loss": _number(row["loss"]),
        **{name: _number(row[name], row[f"{name}_error"]) for name in ("width", "anisotropy", "nonconvexity", "gap")},
        **{name: _number(row[name]) for name in ("lambda_max", "lambda_max_balanced")},
    }


def _number(value: float, error: float = math.nan) -> str:
    return "∞" if value == math.inf else plus_minus(Estimate(value, error))
