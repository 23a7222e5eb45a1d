"""One row a method: with which arguments the contract tests train it. A new method is a new row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A run of the contract.

    Attributes:
        settings: what the run needs beside the common settings.
        accumulates: why accumulating micro-batches is not one large batch, where it is not.
        rewrites: the method rewrites base weights.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    accumulates: str = ""
    rewrites: bool = False

    def __str__(self) -> str:
        adapter = self.settings.get("adapter")
        return f"{self.method}-{adapter}" if adapter else self.method


OF_A_MICRO_BATCH = "its covariances and singular values are those of a micro-batch"

CONTRACT = [
    Row("full"),
    Row("lora"),
    Row("rslora"),
    Row("dora"),
    Row("pissa", rewrites=True),
    Row("lora-plus"),
    # It starts at λ = 0 between small P and Q, with gradients a hundredth of LoRA's, and is given higher rates.
    Row("adalora", {"learning_rate": 3e-2}),
    Row("lora-ga", rewrites=True),
    Row("lora-pro"),
    Row("nlora", {"learning_rate": 1e-3}, rewrites=True),
    Row("ggpo"),
    Row("mgpo"),
    Row("mgpo-released"),
    Row("sam"),
    # The authors' ρ = 3 is half the norm of this adapter.
    Row("msam", {"method_args": {"rho": 0.1}}),
    Row("flat-lora"),
    Row("rwp"),
    Row("lpf-sgd", {"method_args": {"draws": 2}}),
    Row("ema"),
    Row("entropy-sgd", {"method_args": {"inner_steps": 3}}),
    Row("ba-lora", accumulates=OF_A_MICRO_BATCH),
    # A perturbation over another adapter, a rule over one with a rule, and one over no adapter at all
    Row("mgpo", {"adapter": "dora"}),
    Row("ggpo", {"adapter": "pissa"}, rewrites=True),
    Row("ba-lora", {"adapter": "pissa"}, accumulates=OF_A_MICRO_BATCH, rewrites=True),
    Row("sam", {"adapter": "adalora", "learning_rate": 3e-2}),
    Row("ema", {"adapter": "full"}),
]
