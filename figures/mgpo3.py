"""Training loss of LoRA, LoRA-MGPO and full fine-tuning, one panel a learning rate (LoRA-MGPO, Figure 3).

In the paper: LLaMA-2-7B on MetaMathQA, learning rates {2e-4, 3e-4, 4e-4, 6e-4}, r = α = 128. Here: the highest rank in
the store, and the loss at the unperturbed weights.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import Choice, CurveSet, RunData, loss_curves
from landscape.reproduction.marks import with_rebounds


def build(runs: Sequence[RunData]) -> CurveSet:
    choice = Choice.of("mgpo3", runs, methods=["full", "lora", "mgpo"], required=["lora", "mgpo"])
    choice = choice.highest("rank").alpha_rule(1).require("learning_rate", [2e-4, 3e-4, 4e-4, 6e-4])
    title = "Training loss of LoRA, LoRA-MGPO and full fine-tuning by learning rate"
    result = loss_curves(choice.runs, facet="learning_rate", title=title)
    return choice.dress(with_rebounds(result, choice.runs, "learning_rate"))


if __name__ == "__main__":
    sys.exit(main("mgpo3"))
