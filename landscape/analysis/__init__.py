"""From captured runs to results: the model is built as it was at a step, then measured; results join the run."""

from landscape.analysis.gap import GAP_FILE, analyze_gap
from landscape.analysis.restored import RestoredRun, open_run, restore
from landscape.analysis.sharpness import SHARPNESS_FILE, analyze_sharpness

__all__ = [
    "GAP_FILE",
    "SHARPNESS_FILE",
    "RestoredRun",
    "analyze_gap",
    "analyze_sharpness",
    "open_run",
    "restore",
]
