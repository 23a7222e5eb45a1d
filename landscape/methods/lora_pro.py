"""LoRA-Pro: gradients of A and B adjusted so that W' moves as nearly as it can along full fine-tuning's step.

With y = W'x, W' = W + s·BA, G = ∂L/∂W', the gradients are g_A = s·BᵀG and g_B = s·GAᵀ. The change of W' along
(d_A, d_B) is s(d_B·A + B·d_A), nearest to G in Frobenius norm for (theorem 2.1)

    d_A = (1/s²)·(BᵀB)⁺·g_A + X·A
    d_B = (1/s²)·(I - B(BᵀB)⁺Bᵀ)·g_B·(AAᵀ)⁺ - B·X

with any X; the X that also keeps (d_A, d_B) nearest to (g_A, g_B) solves BᵀB·X + X·AAᵀ = -(1/s²)·(BᵀB)⁺·g_A·Aᵀ
(theorem 2.3). Nothing here needs G itself.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.adapted import AdaptedLinear, adapted_linears
from landscape.methods.base import METHODS, AdamSettings, Arguments, Method


class LoRAProArguments(Arguments):
    """The paper's AdamW variant (algorithm 2) by default."""

    moments: Literal["equivalent", "factors"] = Field(
        "equivalent",
        description="of the m x n gradient s(d_B·A + B·d_A), projected again; or of d_A and d_B, without m x n memory",
    )


@torch.no_grad()
def projected_gradients(
    A: Tensor, B: Tensor, gradient_A: Tensor, gradient_B: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """d_A (r, in) and d_B (out, r) of theorems 2.1 and 2.3, for A (r, in) and B (out, r).

    The r x r systems are solved in float64 by two eigendecompositions. Directions in which B or A vanish, as all of B
    do in the first step, have no inverse and are left out: there d_A = 0 and d_B = (1/s²)·g_B·(AAᵀ)⁻¹.
    """
    a, b, g_a, g_b = (tensor.detach().double() for tensor in (A, B, gradient_A, gradient_B))
    lam_b, P = torch.linalg.eigh(b.T @ b)
    lam_a, Q = torch.linalg.eigh(a @ a.T)
    inverse_b, inverse_a = _inverse(lam_b), _inverse(lam_a)
    gram_b_inverse = (P * inverse_b) @ P.T
    d_a = gram_b_inverse @ g_a / scaling**2
    projected = g_b - b @ (gram_b_inverse @ (b.T @ g_b))
    d_b = projected @ ((Q * inverse_a) @ Q.T) / scaling**2
    right = -(P.T @ d_a @ a.T @ Q)
    sums = lam_b[:, None] + lam_a[None, :]
    X = P @ torch.where(sums > 0, right / sums.clamp_min(torch.finfo(sums.dtype).tiny), 0.0) @ Q.T
    return (d_a + X @ a).to(A.dtype), (d_b - b @ X).to(B.dtype)


def _inverse(eigenvalues: Tensor) -> Tensor:
    """Of the eigenvalues above a float64 product's rounding; 0 for the rest."""
    kept = eigenvalues > 1e-14 * eigenvalues.max().clamp_min(1e-300)
    return torch.where(kept, 1 / eigenvalues.where(kept, torch.ones_like(eigenvalues)), 0.0)


class LoRAProAdamW(Optimizer):
    """AdamW on projected gradients; parameters outside adapted layers (a classification head) get plain AdamW.

    With ``equivalent`` moments the m x n gradient g̃ = s(d_B·A + B·d_A) goes through Adam, and what comes out is
    projected as if it were G. Bias corrections count from the first step. The scaling is the layer's own, rank
    stabilized or not.

    Args:
        model: a PEFT model with LoRA on linear layers.
    """

    def __init__(
        self, model: nn.Module, settings: AdamSettings, moments: Literal["equivalent", "factors"] = "equivalent"
    ) -> None:
        self.layers: list[AdaptedLinear] = adapted_linears(model)
        self.moments = moments
        defaults = {
            "lr": settings.learning_rate,
            "betas": settings.betas,
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
        }
        super().__init__([p for p in model.parameters() if p.requires_grad], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step; layers and parameters without gradients stay where they are."""
        group = self.param_groups[0]
        factors = set()
        for layer in self.layers:
            factors |= {layer.A, layer.B}
            if layer.A.grad is None or layer.B.grad is None:
                continue
            d_a, d_b = projected_gradients(layer.A, layer.B, layer.A.grad, layer.B.grad, layer.scaling)
            if self.moments == "factors":
                updates = self._adam(layer.A, d_a), self._adam(layer.B, d_b)
            else:
                s = layer.scaling
                full = self._adam(layer.B, s * (d_b @ layer.A + layer.B @ d_a))
                updates = projected_gradients(layer.A, layer.B, s * layer.B.T @ full, s * full @ layer.A.T, s)
            for parameter, update in zip((layer.A, layer.B), updates, strict=True):
                self._apply(parameter, update)
        for parameter in group["params"]:
            if parameter not in factors and parameter.grad is not None:
                self._apply(parameter, self._adam(parameter, parameter.grad))

    def _apply(self, parameter: Tensor, update: Tensor) -> None:
        group = self.param_groups[0]
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _adam(self, key: Tensor, gradient: Tensor) -> Tensor:
        """Adam's bias-corrected direction of a gradient, of whatever shape, kept in the state of ``key``."""
        state, group = self.state[key], self.param_groups[0]
        first, second = group["betas"]
        # Names of their own: these are not moments of the parameter under which they are kept.
        names = ("exp_avg", "exp_avg_sq") if gradient.shape == key.shape else ("full_avg", "full_avg_sq")
        if not state:
            state.update(step=torch.zeros(()), **{name: torch.zeros_like(gradient) for name in names})
        state["step"] += 1
        average, squares = (state[name] for name in names)
        average.lerp_(gradient, 1 - first)
        squares.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        t = float(state["step"])
        return (average / (1 - first**t)) / ((squares / (1 - second**t)).sqrt() + group["eps"])


def optimizer(model: nn.Module, arguments: LoRAProArguments, settings: AdamSettings) -> LoRAProAdamW:
    """The optimizer of a run."""
    return LoRAProAdamW(model, settings, arguments.moments)


METHODS.add(
    Method(
        name="lora-pro",
        summary="LoRA whose gradients are adjusted so that W' moves as full fine-tuning's would, by least squares",
        source="LoRA-Pro, arXiv 2407.18242, theorems 2.1 and 2.3, algorithm 2",
        adapter="lora",
        arguments=LoRAProArguments,
        optimizer=optimizer,
        keeps_moments=False,
        extra_memory="two moments of every adapted W; factors: those of the adapter",
    )
)
