"""Other people's training logs as curves: `read_log` tells the format by the content."""

from landscape.importers.curves import Column, Log, LogCurve, LogCurves
from landscape.importers.reading import read_log

__all__ = ["Column", "Log", "LogCurve", "LogCurves", "read_log"]
