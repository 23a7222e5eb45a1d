"""Loss on a plane through the weights of a run, or of several, and where they went (a question of ours).

Contours are even in log loss. A path is a projection: under the contours stand the run's own loss and its distance from
the plane. Several runs on one common plane come first, then several steps of one run side by side. It needs ``landscape
analyze slice2d``; with ``--joint`` for several runs, with ``--common`` for steps that compare.
"""

import sys
from collections.abc import Sequence

from landscape.errors import StoreError
from landscape.figures import main
from landscape.plots import RunData, SurfaceSet, surface_figures


def build(runs: Sequence[RunData]) -> list[SurfaceSet]:
    figures = surface_figures(runs)
    if not figures:
        raise StoreError("figure slice2d needs slices on planes: landscape analyze slice2d STORE")
    return figures


if __name__ == "__main__":
    sys.exit(main("slice2d"))
