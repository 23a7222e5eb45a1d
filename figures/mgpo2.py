"""Training loss of LoRA, LoRA-MGPO and full fine-tuning, one panel a rank (LoRA-MGPO, Figure 2).

In the paper: LLaMA-2-7B on MetaMathQA, r = α in {16, 32, 64, 128}, learning rate 5e-4. Drawn here is the loss at the
unperturbed weights, on which methods can be compared.
"""

import sys
from collections.abc import Sequence

from landscape.figures import main
from landscape.plots import Choice, CurveSet, RunData, loss_curves
from landscape.reproduction.marks import with_rebounds


def build(runs: Sequence[RunData]) -> CurveSet:
    choice = Choice.of("mgpo2", runs, methods=["full", "lora", "mgpo"], required=["lora", "mgpo"])
    choice = choice.fix("learning_rate", prefer=5e-4).alpha_rule(1).require("rank", [16, 32, 64, 128])
    title = "Training loss of LoRA, LoRA-MGPO and full fine-tuning by rank"
    result = loss_curves(choice.runs, facet="rank", title=title)
    return choice.dress(with_rebounds(result, choice.runs, "rank"))


if __name__ == "__main__":
    sys.exit(main("mgpo2"))
