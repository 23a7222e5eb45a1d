"""What is measured: ways to train, and what each is held against."""

from __future__ import annotations

from typing import Any

from landscape.methods import METHODS

TOOLKIT: dict[str, dict[str, Any]] = {
    "bare loop": {"loop": True},
    "lora": {},
    "lora, capture every step": {"capture": {"every": 1}},
    "mgpo": {"method": "mgpo"},
    "mgpo, host copy": {"method": "mgpo", "method_args": {"offload": True}},
    "mgpo, clean loss each step": {"method": "mgpo", "clean_loss_every": 1},
    "mgpo-released": {"method": "mgpo-released"},
    "ggpo, swap": {"method": "ggpo", "method_args": {"apply": "swap"}},
    "ggpo, regenerate": {"method": "ggpo", "method_args": {"apply": "regenerate"}},
    "ggpo, swap, clean loss each step": {
        "method": "ggpo", "method_args": {"apply": "swap"}, "clean_loss_every": 1,
    },
    "full": {"method": "full", "rank": None, "alpha": None},
}  # fmt: skip
"""The toolkit around LoRA, and the papers' two methods in every way that they can be run."""

METHOD_ARGS: dict[str, dict[str, Any]] = {
    # A step's cost is proportional to L, by default 20.
    "entropy-sgd": {"inner_steps": 2},
    # Pruning from the first step on: before, it costs next to nothing.
    "adalora": {"warmup": 0.0},
}


def method_variant(name: str) -> dict[str, Any]:
    """A method at its defaults, which `METHOD_ARGS` change where the default says little about a step."""
    values: dict[str, Any] = {"method": name, "method_args": METHOD_ARGS.get(name, {})}
    return values | ({"rank": None, "alpha": None} if name == "full" else {})


EVERY_METHOD = {name: method_variant(name) for name in METHODS if name != "lora"}
VARIANTS = EVERY_METHOD | TOOLKIT

GOALS: dict[tuple[str, str], float | None] = {
    ("lora", "bare loop"): 1.05,
    ("lora, capture every step", "lora"): 1.02,
    ("mgpo", "lora"): 1.03,
    ("mgpo, clean loss each step", "lora"): None,
    ("mgpo, host copy", "lora"): None,
    ("ggpo, swap", "lora"): None,
    ("ggpo, regenerate", "lora"): None,
    ("ggpo, swap, clean loss each step", "lora"): None,
    **{(name, "lora"): None for name in EVERY_METHOD if name != "mgpo"},
}
"""(variant, over which other) → the ratio of step times that was aimed at, if any."""
