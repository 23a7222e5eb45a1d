"""The headers of a CSV that W&B exports from a chart: ``Step``, ``run - train/loss``, ``run - train/loss__MIN``."""

from __future__ import annotations

from collections.abc import Sequence

_SEPARATOR = " - "


def split_name(header: str) -> tuple[str, str] | None:
    """Run and metric of a header; a run's name may hold the separator itself. None for other headers."""
    run, separator, metric = header.rpartition(_SEPARATOR)
    return (run.strip(), metric.strip()) if separator and run.strip() and metric.strip() else None


def shared_column(headers: Sequence[str]) -> str | None:
    """The horizontal axis of the chart: the first header that belongs to no run."""
    return next((header for header in headers if header and split_name(header) is None), None)
