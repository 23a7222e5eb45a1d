"""Held-out loss, score and λmax of every method by learning rate (a question of ours).

Do methods tie once each has its best learning rate, and does λmax at the start go with that rate (arXiv 2602.04998)?
It needs runs of several methods at several rates; λmax needs ``landscape analyze sharpness``.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import CurveSet, RunData
from landscape.reproduction.rates import by_rate


def build(runs: Sequence[RunData]) -> CurveSet:
    wanted = ["held-out loss", "score", "λmax at the start"]
    return by_rate("lr-tuning", runs, wanted, "After tuning the learning rate, do methods tie?")


if __name__ == "__main__":
    sys.exit(main("lr-tuning"))
