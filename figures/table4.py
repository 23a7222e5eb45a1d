"""The momentum's direction against a random one (LoRA-MGPO, Table 4).

In the paper: LLaMA-3.1-8B, r = 8, on MT-Bench, GSM8K and HumanEval; how large its random noise is, it does not say.
Here the random direction has MGPO's own norm at every step.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import CurveSet, RunData
from landscape.reproduction.tables import score_table


def build(runs: Sequence[RunData]) -> CurveSet:
    title = "The momentum's direction against a random one"
    return score_table("table4", runs, ["mgpo-table4"], title, ["LoRA + Random Noise"])


if __name__ == "__main__":
    sys.exit(main("table4"))
