"""Loss along a line through a run's weights (a question of ours).

Along random directions: the mean over them with a band of one standard deviation. Several steps of a run, or several
runs, share a panel where they were measured alike. It needs ``landscape analyze slice1d``.
"""

import sys
from collections.abc import Sequence

from landscape.errors import StoreError
from landscape.figures import main
from landscape.plots import CurveSet, RunData, line_figures


def build(runs: Sequence[RunData]) -> list[CurveSet]:
    figures = line_figures(runs)
    if not figures:
        raise StoreError("figure slice1d needs slices along lines: landscape analyze slice1d STORE")
    return figures


if __name__ == "__main__":
    sys.exit(main("slice1d"))
