"""The generalization gap of a run, from the evaluations made while it trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landscape.analysis.tables import write_table
from landscape.errors import StoreError
from landscape.generalization import generalization_gap

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Run

GAP_FILE = "gap.parquet"


def analyze_gap(run: Run) -> pd.DataFrame:
    """The generalization gap at every evaluation, also written to ``analysis/gap.parquet``.

    Only the run's metrics are read; nothing is evaluated anew.

    Returns:
        As `landscape.generalization.generalization_gap`.

    Raises:
        StoreError: the run has no evaluation of both splits yet, its metrics are damaged, or the disk refuses.
    """
    table = generalization_gap(run.evaluations())
    if table.empty:
        raise StoreError(f"run {run.id}: no step at which both the eval and the probe split were evaluated yet")
    write_table(run.analysis_dir / GAP_FILE, table)
    return table
