"""The scores of a run's evaluations: one table in its ``analysis`` folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.analysis.tables import Row, read_rows, write_rows
from landscape.evaluation.base import Score

if TYPE_CHECKING:
    from landscape.store import Run

FILE = "evaluation.parquet"
TYPES = {
    "metric": "string", "name": "string", "step": "int64", "split": "string", "value": "float64",
    "standard_error": "float64", "num_examples": "int64", "truncated": "int64", "seconds": "float64",
    "details": "string", "settings": "string", "id": "string",
}  # fmt: skip
"""``standard_error`` is over problems; ``truncated`` counts replies cut at ``max_new_tokens``; ``details`` and
``settings`` are JSON; ``id`` ends the name of the file with the replies."""


def stored_scores(run: Run) -> list[Row]:
    """Every score of a run, ``details`` and ``settings`` as mappings; empty where none was measured.

    Raises:
        StoreError: a damaged table.
    """
    return [
        {**row, "details": json.loads(row["details"]), "settings": json.loads(row["settings"])}
        for row in read_rows(_path(run), TYPES)
    ]


def store_scores(run: Run, shared: Mapping[str, Any], scores: Sequence[Score]) -> list[Row]:
    """Write scores, in the place of those with the same id and of the same metric and step; returns their rows.

    Args:
        shared: the columns that all of them have: metric, step, split, truncated, seconds, settings and id.

    Raises:
        StoreError: a damaged table, or the disk refuses.
    """
    rows = [{**shared, **vars(score)} for score in scores]
    texts = [
        {**row, "details": json.dumps(dict(row["details"])), "settings": json.dumps(row["settings"])} for row in rows
    ]
    same = tuple(shared[key] for key in ("metric", "step", "id"))
    kept = [row for row in read_rows(_path(run), TYPES) if tuple(row[key] for key in ("metric", "step", "id")) != same]
    order = sorted([*kept, *texts], key=lambda row: (row["metric"], row["step"], row["id"]))
    write_rows(_path(run), order, TYPES)
    return rows


def _path(run: Run) -> Path:
    return run.analysis_dir / FILE
