"""What the code released with LoRA-MGPO does, which is another algorithm than the paper's (`mgpo`).

Read in lora_mgpo/trainer.py of llm172/LoRA-MGPO at commit b45656c. It perturbs the frozen W of every adapted layer,
not A and B; downhill, not uphill; with a norm and a gradient average for each layer, not over all; and 1/ḡ is at
most 10:

    v = s(m_B·A + B·m_A),  ε = -ρ·v/‖v‖·min(1/ḡ, 10),  ḡ ← β·ḡ + (1-β)·‖s(g_B·A + B·g_A)‖

Two differences remain, both without effect at ``gradient_accumulation_steps: 1``: here the perturbation and ḡ are
updated once an optimizer step (there: a micro-batch), and W is restored from a saved copy (there: ε is subtracted,
which left 10.7 % of a float32 base's weights changed after 200 steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import UsageError
from landscape.methods.adapted import AdaptedLinear, WeightSwap, adapted_linears
from landscape.methods.base import METHODS, Arguments, Method
from landscape.methods.mgpo import momentum


class ReleasedArguments(Arguments):
    """The released defaults."""

    rho: float = Field(0.05, ge=0, description="perturbation radius ρ")
    beta: float = Field(0.9, ge=0, lt=1, description="decay of each layer's gradient norm average")
    max_scale: float | None = Field(10.0, gt=0, description="upper bound on 1/ḡ")
    offload: bool = Field(False, description="the saved copy of W in (pinned) host memory")


class ReleasedMGPO:
    """The perturbation of one model; see the module docstring."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        rho: float = 0.05,
        beta: float = 0.9,
        max_scale: float | None = 10.0,
        offload: bool = False,
    ) -> None:
        self.arguments = ReleasedArguments(rho=rho, beta=beta, max_scale=max_scale, offload=offload)
        self.layers = adapted_linears(model)
        if any(layer.weight is None for layer in self.layers):
            raise UsageError("method: 'mgpo-released' perturbs W itself and needs a dense base; use 'mgpo'")
        self.optimizer = optimizer
        self.norm = 0.0
        self.mean_grad_norms: list[float | None] = [None] * len(self.layers)
        weights = [layer.base.weight for layer in self.layers]
        self._swap = WeightSwap(weights, "host" if offload else "device")  # type: ignore[arg-type]

    @torch.no_grad()
    def perturb(self) -> None:
        """W̃ = W + ε for every layer whose momentum exists and is not zero."""
        if self._swap.active:
            raise RuntimeError("perturb() twice without restore() between")
        self.norm = 0.0
        directions = [self._first_order(layer, *self._momenta(layer)) for layer in self.layers]
        if all(direction is None for direction in directions):
            return
        total = 0.0
        targets, sources = self._swap.targets(), self._swap.sources()
        slot_of = {source.data_ptr(): slot for slot, source in enumerate(sources)}
        # The originals of layers that stay unperturbed are shown through the buffer as well.
        if self._swap.saved == "device":
            torch._foreach_copy_(targets, sources)
        for i, (layer, direction) in enumerate(zip(self.layers, directions, strict=True)):
            length = 0.0 if direction is None else float(direction.norm())
            if direction is None or not (length > 0 and math.isfinite(length)):
                continue
            radius = self.arguments.rho * self._scale(i)
            slot = slot_of[layer.base.weight.data_ptr()]  # type: ignore[operator]
            noisy = sources[slot] - (direction.T if layer.transposed else direction) * (radius / length)
            targets[slot].copy_(noisy)
            total += radius**2
        self._swap.show()
        self.norm = math.sqrt(total)

    @torch.no_grad()
    def restore(self, grad_norm: float | None = None) -> None:
        """Put W back bit for bit and update every layer's ḡ; norms that are not finite leave it alone."""
        self._swap.restore()
        for i, layer in enumerate(self.layers):
            direction = self._first_order(layer, layer.A.grad, layer.B.grad)
            length = math.nan if direction is None else float(direction.norm())
            if math.isfinite(length):
                mean, beta = self.mean_grad_norms[i], self.arguments.beta
                self.mean_grad_norms[i] = length if mean is None else beta * mean + (1 - beta) * length

    def metrics(self) -> dict[str, float]:
        """``mgpo_clamped``: share of the layers whose 1/ḡ is cut off at max_scale."""
        limit = self.arguments.max_scale
        known = [mean for mean in self.mean_grad_norms if mean is not None]
        if limit is None or not known:
            return {"mgpo_clamped": 0.0}
        return {"mgpo_clamped": sum(mean * limit < 1 for mean in known) / len(known)}

    def state_dict(self) -> dict[str, Tensor]:
        """ḡ of every layer (nan: none yet)."""
        values = [math.nan if mean is None else mean for mean in self.mean_grad_norms]
        return {"mean_grad_norms": torch.tensor(values, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.mean_grad_norms = [None if math.isnan(v) else v for v in state["mean_grad_norms"].tolist()]

    def close(self) -> None:
        """Put W back where it is still perturbed."""
        self._swap.restore()

    def _momenta(self, layer: AdaptedLinear) -> tuple[Tensor | None, Tensor | None]:
        return momentum(self.optimizer, layer.A), momentum(self.optimizer, layer.B)

    @staticmethod
    def _first_order(layer: AdaptedLinear, d_a: Tensor | None, d_b: Tensor | None) -> Tensor | None:
        """s(d_B·A + B·d_A), (out, in): what ΔW moves by, to first order, when A and B move by d_A and d_B."""
        if d_a is None or d_b is None:
            return None
        return layer.scaling * (d_b @ layer.A + layer.B @ d_a)

    def _scale(self, index: int) -> float:
        mean, limit = self.mean_grad_norms[index], self.arguments.max_scale
        if mean is None:
            return 0.0
        scale = 1 / (mean + 1e-12)
        return scale if limit is None else min(scale, limit)


def build(model: nn.Module, optimizer: Optimizer, arguments: ReleasedArguments, seed: int) -> ReleasedMGPO:
    """The perturbation of a run; it draws nothing at random."""
    return ReleasedMGPO(model, optimizer, **arguments.model_dump())


METHODS.add(
    Method(
        name="mgpo-released",
        summary="LoRA as the code released with MGPO trains it: the frozen W perturbed downhill, layer by layer",
        source="llm172/LoRA-MGPO b45656c, lora_mgpo/trainer.py",
        adapter="lora",
        arguments=ReleasedArguments,
        perturbation=build,
        not_over={"lora-pro": "its optimizer keeps the momentum of the m x n gradient, not of A and B"},
        perturbs="frozen W",
        extra_memory="one copy of W (or pinned host)",
        execution_arguments=frozenset({"offload"}),
    )
)
