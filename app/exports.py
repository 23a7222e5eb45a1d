"""Figures, tables and reports as the bytes of files."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from landscape.figures import write_figure
from landscape.figures.rendering import PNG_DPI
from landscape.plots import Drawing, RunData, SurfaceSet, surface_3d
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


def surface_bytes(figure: SurfaceSet, index: int, kind: str) -> bytes:
    """One surface in three dimensions as a file of one of the formats in `MIME`."""
    # Matplotlib takes half a second to load: when a file is asked for, not when a page is.
    import matplotlib as mpl

    from landscape.plots.matplotlib_page import RC
    from landscape.plots.surface_3d_matplotlib import only_surface, surface_3d_to_matplotlib

    if kind == "csv":
        return figure_bytes(only_surface(figure, index), kind)
    if kind == "html":
        return surface_3d(figure, index).to_html(include_plotlyjs=True).encode("utf-8")
    buffer = io.BytesIO()
    with mpl.rc_context(RC):
        surface_3d_to_matplotlib(figure, index).savefig(buffer, format=kind, dpi=PNG_DPI)
    return buffer.getvalue()


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
