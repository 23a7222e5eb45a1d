"""Fine-tuning methods, one file each; adding one takes that file and one import line here.

Other packages add theirs by an entry point of the group ``landscape.methods`` (`landscape.methods.external`).
"""

from landscape.methods import (
    adalora,
    ba_lora,
    dora,
    ema,
    entropy_sgd,
    flat_lora,
    ggpo,
    lora_ga,
    lora_plus,
    lora_pro,
    lpf_sgd,
    mgpo,
    mgpo_released,
    msam,
    nlora,
    pissa,
    plain,
    rslora,
    rwp,
    sam,
)
from landscape.methods.attach import attach, check_adapter
from landscape.methods.base import METHODS, Arguments, Method, Perturbation, StepRule
from landscape.methods.callbacks import GGPOCallback, MGPOCallback, PerturbationCallback
from landscape.methods.composition import Recipe, adapters, compositions, recipe
from landscape.methods.external import load_entry_points
from landscape.methods.ggpo import GGPO
from landscape.methods.mgpo import MGPO
from landscape.methods.mgpo_released import ReleasedMGPO

__all__ = [
    "GGPO",
    "METHODS",
    "MGPO",
    "Arguments",
    "GGPOCallback",
    "MGPOCallback",
    "Method",
    "Perturbation",
    "PerturbationCallback",
    "Recipe",
    "ReleasedMGPO",
    "StepRule",
    "adalora",
    "adapters",
    "attach",
    "ba_lora",
    "check_adapter",
    "compositions",
    "dora",
    "ema",
    "entropy_sgd",
    "flat_lora",
    "ggpo",
    "load_entry_points",
    "lora_ga",
    "lora_plus",
    "lora_pro",
    "lpf_sgd",
    "mgpo",
    "mgpo_released",
    "msam",
    "nlora",
    "pissa",
    "plain",
    "recipe",
    "rslora",
    "rwp",
    "sam",
]

load_entry_points()
