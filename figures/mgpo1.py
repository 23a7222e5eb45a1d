"""Training loss of full fine-tuning and of LoRA at several ranks, at one learning rate (LoRA-MGPO, Figure 1).

In the paper: LLaMA-2-7B on MetaMathQA, LoRA with r = α in {32, 64, 128}, learning rate 5e-4. The paper gives no number
of seeds and does not say whether its curves are smoothed.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import Choice, CurveSet, RunData, loss_curves
from landscape.reproduction.marks import with_rebounds


def build(runs: Sequence[RunData]) -> CurveSet:
    choice = Choice.of("mgpo1", runs, methods=["full", "lora"], required=["lora"])
    choice = choice.fix("learning_rate", prefer=5e-4).alpha_rule(1).require("rank", [32, 64, 128])
    result = loss_curves(choice.runs, title="Training loss of full fine-tuning and LoRA by rank")
    return choice.dress(with_rebounds(result, choice.runs))


if __name__ == "__main__":
    sys.exit(main("mgpo1"))
