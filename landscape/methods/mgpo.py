"""MGPO: perturb the adapter along the optimizer's momentum (LoRA-MGPO, arXiv 2502.14538 v2, equations 2-6)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.base import EVERY_STRUCTURE, METHODS, Arguments, Method, global_norm, noise_generator

logger = logging.getLogger(__name__)


class MGPOArguments(Arguments):
    """Defaults are the paper's for GLUE; its settings for generation are rho=0.01, beta=0.8, beta1=0.8."""

    rho: float = Field(0.05, ge=0, description="perturbation radius ρ (eq. 3)")
    beta: float = Field(0.9, ge=0, lt=1, description="decay β of the gradient norm's average ḡ (eq. 6)")
    max_scale: float | None = Field(None, gt=0, description="upper bound on 1/ḡ; the paper has none")
    adaptive: bool = Field(True, description="divide by ḡ; false is the ablation without adaptive normalization")
    direction: Literal["momentum", "random"] = Field(
        "momentum", description="random: Gaussian direction of the same norm (ablation of Table 4)"
    )
    sign: Literal[1, -1] = Field(1, description="+1 ascends as the paper writes; -1 looks ahead as Momentum-SAM does")
    offload: bool = Field(False, description="the saved copy of the adapter in (pinned) host memory")


class MGPO:
    """ε = ±ρ · m/‖m‖ · min(1/ḡ, max_scale), with the norm of m over all trainable parameters together.

    m is Adam's ``exp_avg``: with a constant β₁ it is (1-β₁) times the heavy-ball buffer of equation 4, and only its
    direction enters. The first step, where m does not exist yet, is unperturbed, and ḡ starts at its gradient norm.

    Args:
        parameters: the trainable parameters, usually those of the adapter; a model gives all that require gradients.
        optimizer: any optimizer that keeps ``exp_avg`` or ``momentum_buffer``.
        seed: of the random direction only.
        offload: keep the saved copy of the parameters in (pinned) host memory instead of on the device.
    """

    def __init__(
        self,
        parameters: nn.Module | list[nn.Parameter],
        optimizer: Optimizer,
        *,
        rho: float = 0.05,
        beta: float = 0.9,
        max_scale: float | None = None,
        adaptive: bool = True,
        direction: Literal["momentum", "random"] = "momentum",
        sign: Literal[1, -1] = 1,
        seed: int = 0,
        offload: bool = False,
    ) -> None:
        self.arguments = MGPOArguments(
            rho=rho,
            beta=beta,
            max_scale=max_scale,
            adaptive=adaptive,
            direction=direction,
            sign=sign,
            offload=offload,
        )
        found = list(parameters.parameters()) if isinstance(parameters, nn.Module) else parameters
        self.parameters = [parameter for parameter in found if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("MGPO perturbs trainable parameters, and none of these requires a gradient")
        self.optimizer = optimizer
        self.seed = seed
        self.norm = 0.0
        self.mean_grad_norm: float | None = None
        self.step = 0
        self._saved: list[Tensor] = []
        self._perturbed = False
        self._warned = False

    @torch.no_grad()
    def perturb(self) -> None:
        """θ̃ = θ + ε (eq. 5); nothing is moved while there is no momentum."""
        if self._perturbed:
            raise RuntimeError("perturb() twice without restore() between")
        self.norm = 0.0
        direction = self._direction()
        length = float(global_norm(direction)) if direction else 0.0
        # exp_avg of A is exactly zero after the first step (B = 0), which the global norm does not mind.
        if not (length > 0 and math.isfinite(length)):
            return
        scale = self.arguments.sign * self._radius() / length
        self._save()
        torch._foreach_add_([p.data for p in self.parameters], direction, alpha=scale)
        self._perturbed = True
        self.norm = abs(scale) * length
        self._warn_if_large()

    @torch.no_grad()
    def restore(self, grad_norm: float | None = None) -> None:
        """θ ← the saved copy, bit for bit; then ḡ ← β·ḡ + (1-β)·‖g‖ (eq. 6).

        A norm that is not finite leaves ḡ alone: the loss scaler skips that step, and one NaN would stay for ever.
        """
        self._put_back()
        self.step += 1
        if grad_norm is None:
            grad_norm = float(global_norm([p.grad for p in self.parameters if p.grad is not None]))
        if not math.isfinite(grad_norm):
            return
        if self.mean_grad_norm is None:
            self.mean_grad_norm = grad_norm
        else:
            beta = self.arguments.beta
            self.mean_grad_norm = beta * self.mean_grad_norm + (1 - beta) * grad_norm

    def metrics(self) -> dict[str, float]:
        """``mgpo_mean_grad_norm`` (ḡ after this step) and ``mgpo_scale`` (the factor that ρ is multiplied by next)."""
        if self.mean_grad_norm is None:
            return {}
        return {"mgpo_mean_grad_norm": self.mean_grad_norm, "mgpo_scale": self._scale()}

    def state_dict(self) -> dict[str, Tensor]:
        """ḡ and the step counter."""
        mean = math.nan if self.mean_grad_norm is None else self.mean_grad_norm
        return {"mean_grad_norm": torch.tensor(mean, dtype=torch.float64), "step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        mean = float(state["mean_grad_norm"])
        self.mean_grad_norm = None if math.isnan(mean) else mean
        self.step = int(state["step"])

    def close(self) -> None:
        """Put the parameters back where they are still perturbed."""
        self._put_back()
        self._saved = []

    def _scale(self) -> float:
        if not self.arguments.adaptive:
            return 1.0
        if self.mean_grad_norm is None:
            return 0.0
        scale = 1 / self.mean_grad_norm if self.mean_grad_norm > 0 else math.inf
        limit = self.arguments.max_scale
        scale = scale if limit is None else min(scale, limit)
        return scale if math.isfinite(scale) else 0.0

    def _radius(self) -> float:
        return self.arguments.rho * self._scale()

    def _direction(self) -> list[Tensor]:
        momenta = [momentum(self.optimizer, parameter) for parameter in self.parameters]
        if any(m is None for m in momenta):
            return []
        found = [m for m in momenta if m is not None]
        if self.arguments.direction == "momentum":
            return found
        return [
            torch.randn(m.shape, generator=noise_generator(m.device, self.seed, self.step, i), device=m.device).to(m)
            for i, m in enumerate(found)
        ]

    def _save(self) -> None:
        if not self._saved:
            self._saved = [self._saved_like(p.data) for p in self.parameters]
        torch._foreach_copy_(self._saved, [p.data for p in self.parameters])

    def _saved_like(self, tensor: Tensor) -> Tensor:
        if not self.arguments.offload:
            return torch.empty_like(tensor)
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)

    def _put_back(self) -> None:
        if self._perturbed:
            torch._foreach_copy_([p.data for p in self.parameters], self._saved)
            self._perturbed = False

    def _warn_if_large(self) -> None:
        if self._warned:
            return
        own = float(global_norm(self._saved))
        if self.norm > own:
            self._warned = True
            logger.warning(
                "MGPO: the perturbation's norm %.3g exceeds the adapter's own norm %.3g at step %d, because the mean "
                "gradient norm fell to %.3g; max_scale bounds it (the released code uses 10)",
                self.norm, own, self.step, self.mean_grad_norm or math.nan,
            )  # fmt: skip


def momentum(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """The optimizer's first moment of this parameter, or None before its first step."""
    state = optimizer.state.get(parameter, {})
    return state.get("exp_avg", state.get("momentum_buffer"))


def build(model: nn.Module, optimizer: Optimizer, arguments: MGPOArguments, seed: int) -> MGPO:
    """The perturbation of a run."""
    return MGPO(model, optimizer, seed=seed, **arguments.model_dump())


METHODS.add(
    Method(
        name="mgpo",
        summary="LoRA, perturbed along Adam's momentum with adaptive normalization",
        source="LoRA-MGPO, arXiv 2502.14538 v2, eq. 2-6",
        adapter="lora",
        arguments=MGPOArguments,
        perturbation=build,
        over=EVERY_STRUCTURE,
        not_over={"lora-pro": "its optimizer keeps the momentum of the m x n gradient, not of A and B"},
        perturbs="trained parameters",
        extra_memory="one copy of the adapter (or pinned host)",
        execution_arguments=frozenset({"offload"}),
    )
)
