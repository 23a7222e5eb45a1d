"""Time and memory of LoRA, LoRA-MGPO and full fine-tuning (LoRA-MGPO, Table 3).

In the paper: LLaMA-2-7B on WizardLM for one epoch, 81.73 GB and 5h 48min for LoRA, 90.56 GB and 6h 52min for
LoRA-MGPO; 320M parameters, which is r = 128, beside the scores of r = 8.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import CurveSet, RunData
from landscape.reproduction.tables import cost_table


def build(runs: Sequence[RunData]) -> CurveSet:
    return cost_table("table3", runs, ["mgpo-table3"], "Time and memory")


if __name__ == "__main__":
    sys.exit(main("table3"))
