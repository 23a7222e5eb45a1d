"""Fine-tuning methods, one file each; adding one takes that file and one import line here."""

from landscape.methods import ggpo, mgpo, mgpo_released, plain
from landscape.methods.attach import attach, check_adapter
from landscape.methods.base import METHODS, Arguments, Method, Perturbation
from landscape.methods.callbacks import GGPOCallback, MGPOCallback, PerturbationCallback
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
    "ReleasedMGPO",
    "attach",
    "check_adapter",
    "ggpo",
    "mgpo",
    "mgpo_released",
    "plain",
]
