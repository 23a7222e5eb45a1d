"""How far Adam is from the edge of stability: the Hessian in the coordinates in which Adam takes its steps.

Adam moves the parameters by -D·m, with m the exponential average of the gradients and D diagonal: the learning rate
over Adam's preconditioner. On a quadratic loss with Hessian H, full batches and D held fixed, that iteration is stable
while λmax(D^½ H D^½) < (2 + 2β₁) / (1 - β₁), and diverges above (Cohen et al., Adaptive Gradient Methods at the Edge
of Stability, arXiv:2207.14484). Both sides are without unit, so runs with different learning rates compare.

It is a heuristic of full-batch training. Left out are the noise of mini-batches (which lowers the threshold), weight
decay (a relative change of about learning rate x decay), and how D changes: v follows the gradient within about
1/(1 - β₂) steps, and the bias correction of m decays within about 1/(1 - β₁).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.curvature.krylov import SymmetricOperator
from landscape.errors import UsageError
from landscape.measurement import NonFiniteLossError


@dataclass(frozen=True, eq=False)
class AdamPreconditioner:
    """The diagonal D of one Adam step: the parameters moved by -D·m.

    ``scale`` (n,) float64. It is 0 for the ``num_unmoved`` coordinates whose second moment is 0: their gradient has
    always been 0 (LoRA's A while B is 0, the embedding of a token not seen yet), so Adam has not moved them, and the
    curvature that is measured leaves them out instead of dividing it by ε.
    """

    scale: Tensor
    num_unmoved: int


def adam_preconditioner(
    second_moments: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    step: int,
    learning_rate: float | Mapping[str, float],
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> AdamPreconditioner:
    """D = learning rate ÷ ((1 - β₁ᵗ)·(√(v / (1 - β₂ᵗ)) + ε)) after t steps, as `torch.optim.AdamW` applies it to m.

    The factor 1 - β₁ᵗ is the bias correction of m, which the threshold counts to the preconditioner as Cohen et al. do;
    it is within 1 % of 1 from t = 44 on at β₁ = 0.9.

    Args:
        second_moments: Adam's ``exp_avg_sq`` by parameter name, not bias-corrected.
        names: of the parameters, in the order of the operator that D is meant for.
        step: t, the optimizer steps taken.
        learning_rate: of that step; by parameter name where groups differ.
        beta1: of Adam.
        beta2: of Adam.
        eps: of Adam.

    Raises:
        UsageError: no step was taken yet (Adam has no moments then), a name without second moment or learning rate, a
            negative second moment, or a number out of range.
        NonFiniteLossError: a second moment is NaN or infinite.
    """
    if step < 1:
        raise UsageError(f"step: {step}; Adam has no second moments before its first step")
    for key, value in (("beta1", beta1), ("beta2", beta2)):
        _check_beta(key, value)
    if not eps >= 0:
        raise UsageError(f"eps: {eps}; allowed: at least 0")
    parts, num_unmoved = [], 0
    for name in names:
        rate = learning_rate.get(name) if isinstance(learning_rate, Mapping) else learning_rate
        if rate is None or name not in second_moments:
            missing = "learning rate" if rate is None else "second moment"
            raise UsageError(f"{name}: no {missing} is given for this parameter")
        if not 0 <= rate < float("inf"):
            raise UsageError(f"learning_rate: {rate} for {name}; allowed: finite and at least 0")
        moment = second_moments[name].detach().reshape(-1).double()
        if not bool(torch.isfinite(moment).all()):
            raise NonFiniteLossError(f"{name}: a second moment is NaN or infinite; the parameters have diverged")
        if bool((moment < 0).any()):
            raise UsageError(f"{name}: a second moment is negative")
        denominator = (1 - beta1**step) * ((moment / (1 - beta2**step)).sqrt() + eps)
        parts.append(torch.where(moment > 0, rate / denominator, 0.0))
        num_unmoved += int((moment == 0).sum())
    return AdamPreconditioner(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64), num_unmoved)


def stability_threshold(beta1: float = 0.9) -> float:
    """(2 + 2β₁) / (1 - β₁): 38 at β₁ = 0.9, and 2 without momentum.

    Raises:
        UsageError: β₁ outside [0, 1).
    """
    _check_beta("beta1", beta1)
    return (2 + 2 * beta1) / (1 - beta1)


class PreconditionedOperator:
    """D^½ H D^½ of an operator H and a diagonal D ≥ 0: symmetric, with the eigenvalues of D·H.

    Args:
        operator: H.
        scale: D (n,), in the order of the operator's vectors.

    Raises:
        UsageError: a scale of another size, or with a negative or non-finite entry.
    """

    def __init__(self, operator: SymmetricOperator, scale: Tensor) -> None:
        if scale.shape != (operator.size,):
            raise UsageError(f"preconditioner: shape {tuple(scale.shape)}; needed: ({operator.size},)")
        if not bool(((scale >= 0) & torch.isfinite(scale)).all()):
            raise UsageError("preconditioner: every entry must be finite and at least 0")
        self.operator = operator
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self._root = scale.double().sqrt().to(operator.device, operator.dtype)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """D^½ H D^½ v for v of shape (n,)."""
        return self._root * (self.operator @ (self._root * vector))


def _check_beta(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{key}: {value}; allowed: at least 0 and less than 1")
