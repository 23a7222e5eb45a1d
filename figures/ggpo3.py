"""What the weight norms and the gradient norms of GGPO's noise contribute (LoRA-GGPO, Figure 3).

In the paper: T5-base, r = 8, mean over five GLUE tasks; weight norms alone 86.85, gradient norms alone 87.66, both
88.70, as bars without an axis break. Added here: every task by itself and the spread over seeds.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import CurveSet, RunData
from landscape.reproduction.tables import ablation

HALVES = ("+ Weight Norm", "+ Gradient Norm")


def build(runs: Sequence[RunData]) -> CurveSet:
    return ablation("ggpo3", runs, ["ggpo3"], "What GGPO's two norms contribute", HALVES)


if __name__ == "__main__":
    sys.exit(main("ggpo3"))
