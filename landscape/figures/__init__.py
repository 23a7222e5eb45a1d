"""Figures from what a store holds: ``FIGURES`` by name, and `render`, which writes one to files.

Each figure is a short script in the folder ``figures`` beside the package: it chooses runs and calls a builder of
`landscape.plots`. Here the scripts are found (`scripts`), the store is read for them (`loading`) and the files are
written (`rendering`).
"""

from landscape.figures.loading import LoadedRuns, load_runs
from landscape.figures.rendering import FORMATS, Rendered, embedded, main, render, write_figure
from landscape.figures.scripts import FIGURES, FigureScript

__all__ = [
    "FIGURES",
    "FORMATS",
    "FigureScript",
    "LoadedRuns",
    "Rendered",
    "embedded",
    "load_runs",
    "main",
    "render",
    "write_figure",
]
