"""Figures, tables and reports as the bytes of files."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from landscape.figures import write_figure
from landscape.plots import Drawing, RunData
from landscape.report import render_page
from landscape.store import Run, export_adapter

MIME = {
    "png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf", "csv": "text/csv", "html": "text/html",
}  # fmt: skip
"""Formats of a figure, and their types."""


def figure_bytes(figure: Drawing, kind: str) -> bytes:
    """A figure as a file of one of the formats in `MIME`: what ``landscape figures`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"figure.{kind}"
        write_figure(figure, path)
        return path.read_bytes()


def report_bytes(runs: Sequence[RunData], name: str, where: str | None) -> bytes:
    """The static report of some runs as one HTML file."""
    return render_page(runs, title=f"{name}: loss landscape report", name=name, where=where or None).encode("utf-8")


def adapter_bytes(run: Run, step: int) -> bytes:
    """A snapshot as a zip of the folder that ``peft`` loads; `StoreError` where there is none to export."""
    with tempfile.TemporaryDirectory() as folder:
        place = export_adapter(run, step, Path(folder) / "adapter")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(place.iterdir()):
                archive.write(path, f"{run.id}-step{step}/{path.name}")
    return buffer.getvalue()
