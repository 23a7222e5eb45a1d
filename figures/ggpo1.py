"""Test loss of one LoRA run against optimizer steps (LoRA-GGPO, Figure 1).

In the paper: LLaMA-3.2-3B on WikiQA, r = 8, one run; no learning rate, number of steps or batch size is given. Added
here: the standard error over examples, and the other seeds of the same settings.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import Choice, CurveSet, RunData, group, single_evaluation


def build(runs: Sequence[RunData]) -> CurveSet:
    choice = Choice.of("ggpo1", runs, methods=["lora"], required=["lora"], measured="eval")
    choice = choice.fix("rank", prefer=8).fix("learning_rate").alpha_rule(2)
    [seeds] = group(choice.runs).values()
    shown = max(seeds, key=lambda run: (len(run.evaluations), -(run.seed or 0)))
    others = [run for run in seeds if run is not shown]
    return choice.dress(single_evaluation(shown, others, title=f"Test loss of one LoRA run (seed {shown.seed})"))


if __name__ == "__main__":
    sys.exit(main("ggpo1"))
