"""Scores of every method on generation tasks (LoRA-GGPO, Table 2; LoRA-MGPO, Table 2).

In the paper: LLaMA-2-7B, r = 8 and for three methods 32 and 128, learning rate 2e-5, scored on MT-Bench, GSM8K and
HumanEval. Here a run's own evaluation: how many held-out answers the model would give word for word.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import CurveSet, RunData
from landscape.reproduction.tables import score_table


def build(runs: Sequence[RunData]) -> CurveSet:
    return score_table("table2", runs, ["ggpo-table2", "mgpo-table2"], "Methods on generation tasks")


if __name__ == "__main__":
    sys.exit(main("table2"))
