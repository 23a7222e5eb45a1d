"""Methods compared at one learning rate and each at its best (Table 1 of both papers, on the store's model and data).

Final eval loss and the task's metrics, mean and standard deviation over seeds, with the best learning rate and the time
a step: one table a model and task. The papers have T5-base on five GLUE tasks, at one learning rate.
"""

import sys
from collections.abc import Sequence

from landscape.errors import StoreError
from landscape.figures import main
from landscape.plots import CurveSet, RunData, method_comparison
from landscape.plots.comparison import scores


def build(runs: Sequence[RunData]) -> list[CurveSet]:
    places = dict.fromkeys((run.cell.model, run.cell.task) for run in runs)
    together = [[run for run in runs if (run.cell.model, run.cell.task) == place] for place in places]
    figures = [method_comparison(own) for own in together if len({score.cell.method for score in scores(own)}) > 1]
    if not figures:
        raise StoreError("figure methods needs finished, evaluated runs of two methods on one model and task")
    return figures


if __name__ == "__main__":
    sys.exit(main("methods"))
