"""λmax, generalization gap and held-out loss of every method by learning rate (a question of ours).

Is a method flatter, and does flatter mean better? The largest eigenvalue of the Hessian and the width of random slices
at the end of training, the generalization gap and the loss, each against the learning rate. It needs ``landscape
analyze sharpness`` and ``slice1d``, or ``landscape reproduce flatness``.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import CurveSet, RunData
from landscape.reproduction.rates import by_rate


def build(runs: Sequence[RunData]) -> CurveSet:
    flat = ["λmax", "balanced λmax", "width"]
    wanted = ["held-out loss", "generalization gap", *flat]
    return by_rate("flatness", runs, wanted, "Is it flatter, and does flatter mean better?", flat)


if __name__ == "__main__":
    sys.exit(main("flatness"))
