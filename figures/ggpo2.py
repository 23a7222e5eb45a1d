"""Training and evaluation loss of LoRA (left) and LoRA-GGPO (right), with the first steps inset (LoRA-GGPO, Figure 2).

In the paper: T5-base on SST-2, r = 8, learning rate 1e-4, batch size 32; the insets show the first 300 steps. Here the
training loss is that at the unperturbed weights, and in a run of fewer than 2000 steps the insets show its first 15 %.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import Choice, CurveSet, RunData, train_and_eval_curves
from landscape.reproduction.marks import with_rebounds

INSET_STEPS = 300


def build(runs: Sequence[RunData]) -> CurveSet:
    choice = Choice.of("ggpo2", runs, methods=["lora", "ggpo"], required=["lora", "ggpo"])
    choice = choice.fix("rank", prefer=8).fix("learning_rate", prefer=1e-4).alpha_rule(2)
    longest = max(run.step for run in choice.runs)
    inset = min(INSET_STEPS, max(2, round(0.15 * longest)))
    title = "Training and evaluation loss of LoRA and LoRA-GGPO"
    result = train_and_eval_curves(choice.runs, inset_steps=inset, title=title)
    return choice.dress(with_rebounds(result, choice.runs, "method"))


if __name__ == "__main__":
    sys.exit(main("ggpo2"))
