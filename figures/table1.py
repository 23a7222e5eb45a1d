"""Scores of every method on GLUE tasks (LoRA-GGPO, Table 1; LoRA-MGPO, Table 1).

In the paper: T5-base on MNLI, SST-2, CoLA, QNLI and MRPC, r = 8, learning rate 1e-4, three seeds. CoLA's metric is
accuracy here, as the papers' numbers are, though they name Matthews' correlation.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import CurveSet, RunData
from landscape.reproduction.tables import score_table


def build(runs: Sequence[RunData]) -> CurveSet:
    return score_table("table1", runs, ["ggpo-table1", "mgpo-table1"], "Methods on classification tasks")


if __name__ == "__main__":
    sys.exit(main("table1"))
