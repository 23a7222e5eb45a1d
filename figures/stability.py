"""Loss, sharpness and distance from Adam's edge of stability along training (a question of ours).

Whether a rebound of the loss is one of stability: the training loss, and on the same steps the largest Hessian
eigenvalue and the preconditioned sharpness with its threshold, one column a learning rate. It needs ``landscape analyze
sharpness``, with ``--space preconditioned`` for the last row.
"""

import sys
from collections.abc import Sequence

from landscape.errors import StoreError
from landscape.figures import main
from landscape.plots import Choice, CurveSet, RunData, sharpness_curves


def build(runs: Sequence[RunData]) -> CurveSet:
    measured = [run for run in runs if run.sharpness is not None]
    if not measured:
        raise StoreError("figure stability needs eigenvalues along the runs: landscape analyze sharpness STORE")
    choice = Choice.of("stability", measured, methods=["lora"], required=["lora"]).highest("rank")
    title = "Loss, sharpness and distance from the edge of stability"
    return choice.dress(sharpness_curves(choice.runs, facet="learning_rate", log_y=True, title=title))


if __name__ == "__main__":
    sys.exit(main("stability"))
