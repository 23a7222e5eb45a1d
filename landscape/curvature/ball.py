"""Sharpness as a rise of the loss: the largest within a ball around the parameters, and the average under noise.

Both need only losses and first derivatives, and both ask of a finite neighborhood what eigenvalues ask of an
infinitesimal one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from landscape.curvature.ascent import LossFunction, gaussian, maximize_in_ball
from landscape.curvature.objective import Objective
from landscape.errors import UsageError
from landscape.measurement import Batch, NonFiniteLossError, differentiating


@dataclass(frozen=True, eq=False)
class BallSharpness:
    """How far the loss rises within a ball of radius ρ, with everything that says what that is."""

    lower_bound: float
    """Largest L(θ+ε) - L(θ) found over ‖ε‖ ≤ ρ, in nats: the maximum is at least this, and nothing proves it is not
    more. Not below 0, since ε = 0 is in the ball."""
    one_step: float
    """L(θ+ε) - L(θ) at SAM's ε = ρ·∇L/‖∇L‖ (ASAM's if adaptive); may be negative. NaN where ∇L is 0."""
    increases: np.ndarray
    """(num_starts,) float64, the largest increase that each start reached; agreement speaks for the maximum."""
    gradient_norm: float
    """‖∇L(θ)‖, if adaptive ‖T∇L(θ)‖; times ρ it is what a linear loss would rise."""
    residual: float
    """At the best ε: norm of the gradient along which the loss still rises within the ball, relative to the whole; at 0
    it is stationary, which every maximum is."""
    converged: bool
    """``residual`` is at most ``tol``; about other stationary points it says nothing."""
    rho: float
    adaptive: bool
    eta: float
    tol: float
    num_steps: int
    num_gradients: int
    """Gradients spent, each with its loss."""
    seed: int
    space: str
    loss: float
    """L(θ) = Σ nll ÷ Σ counted labels over the same batches, in nats."""
    num_examples: int
    num_labels: int
    num_parameters: int
    seconds: float
    perturbation: Tensor | None
    """(n,) the best ε, in the order of the space's coordinates; None unless asked for."""


@dataclass(frozen=True)
class AverageSharpness:
    """How far the loss rises on average under Gaussian noise on the parameters."""

    value: float
    """Mean of ½(L(θ+ε) + L(θ-ε)) - L(θ) over the drawn ε, in nats: unbiased for E[L(θ+ε)] - L(θ)."""
    standard_error: float
    """Of ``value``, over directions."""
    sigma: float
    relative: bool
    num_directions: int
    seed: int
    space: str
    loss: float
    """L(θ), in nats."""
    num_examples: int
    num_labels: int
    num_parameters: int
    seconds: float


def sam_sharpness(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    rho: float = 0.05,
    *,
    adaptive: bool = False,
    eta: float = 0.01,
    num_steps: int = 20,
    num_starts: int = 3,
    tol: float = 1e-2,
    space: str = "adapter",
    balance: bool = False,
    seed: int = 0,
    return_perturbation: bool = False,
) -> BallSharpness:
    """Worst-case sharpness: max over ‖ε‖ ≤ ρ of L(θ+ε) - L(θ) (Foret et al., SAM, ICLR 2021).

    SAM itself takes one step, ε = ρ·∇L/‖∇L‖; here it is the first of several starts, the others random, of a projected
    gradient ascent (`maximize_in_ball`). One step is close where the gradient decides, and far off where curvature
    does, near minima above all; ``one_step`` and ``lower_bound`` show which it is.

    With ``adaptive`` the ball is ‖T⁻¹ε‖ ≤ ρ with T = |θ| + η elementwise (Kwon et al., ASAM, ICML 2021), so ρ is a
    relative size. At η = 0 it is invariant to scaling one parameter up and another down, such as a row of A and the
    column of B that it meets, but not to every gauge.

    Args:
        model: transformers or PEFT model; measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        rho: radius ρ, in the units of the coordinates, or relative to them if adaptive.
        adaptive: use T.
        eta: η of T, at least 0; without ``adaptive`` it is not used. ASAM's released code has 0.01, and a ρ of 0.5.
        num_steps: gradients that each start may spend after its first; all together cost at most
            1 + num_starts·(1 + num_steps).
        num_starts: how many.
        tol: ``residual`` at which a start stops.
        space: as in `top_eigenvalues`; adaptive needs coordinates with a size, so not ``merged``.
        balance: as in `top_eigenvalues`.
        seed: of the random starts; global generators are neither used nor changed.
        return_perturbation: also return the best ε.

    Raises:
        UsageError: an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss is NaN or infinite at θ or somewhere in the ball.
    """
    began = time.perf_counter()
    _check_positive("rho", rho)
    if not 0 <= eta < math.inf:
        raise UsageError(f"eta: {eta}; allowed: finite and at least 0")
    if not 0 < tol < 1:
        raise UsageError(f"tol: {tol}; allowed: greater than 0 and less than 1")
    _check_count("num_steps", num_steps, 0)
    _check_count("num_starts", num_starts, 1)
    _check_sized("adaptive", adaptive, space)
    objective = _objective(model, batches, space, balance)
    with differentiating(objective.model):
        found = maximize_in_ball(
            objective,
            rho,
            scale=objective.theta.abs() + eta if adaptive else None,
            num_steps=num_steps,
            num_starts=num_starts,
            tol=tol,
            seed=seed,
        )
    if found.gradient_norm == 0 and not found.increases.any():
        raise UsageError(
            f"model: the loss depends on none of its {len(objective.names)} trainable tensors; "
            "is the adapter off or merged?"
        )
    return BallSharpness(
        lower_bound=found.lower_bound,
        one_step=found.one_step,
        increases=found.increases,
        gradient_norm=found.gradient_norm,
        residual=found.residual,
        converged=found.residual <= tol,
        rho=rho,
        adaptive=adaptive,
        eta=eta,
        tol=tol,
        num_steps=num_steps,
        num_gradients=found.num_gradients,
        seed=seed,
        space=objective.space,
        loss=found.loss,
        num_examples=objective.num_examples,
        num_labels=objective.num_labels,
        num_parameters=objective.size,
        seconds=time.perf_counter() - began,
        perturbation=found.perturbation if return_perturbation else None,
    )


def average_sharpness(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    sigma: float = 0.01,
    num_directions: int = 20,
    *,
    relative: bool = False,
    space: str = "adapter",
    balance: bool = False,
    seed: int = 0,
) -> AverageSharpness:
    """Average-case sharpness: E[L(θ+ε)] - L(θ) for Gaussian ε, from antithetic pairs ±ε.

    In a pair the odd orders of the Taylor series cancel, the gradient's above all. What is left is ½εᵀHε and higher
    even orders, so for small σ the value is σ²/2·tr H (relative: σ²/2·Σ θᵢ²Hᵢᵢ), whatever its sign.

    Args:
        model: as in `sam_sharpness`.
        batches: as in `sam_sharpness`.
        sigma: standard deviation of each εᵢ; if relative, of εᵢ/|θᵢ|. In float32 a loss is known to about 1e-7 of
            itself, so σ must be large enough for the rise to stand out from that.
        num_directions: pairs, at least 2; each costs two forward passes.
        relative: scale by |θᵢ|; not in the space ``merged``.
        space: as in `top_eigenvalues`.
        balance: as in `top_eigenvalues`.
        seed: of the draws; global generators are neither used nor changed.

    Raises:
        UsageError: an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss is NaN or infinite at θ or at some θ±ε.
    """
    began = time.perf_counter()
    _check_positive("sigma", sigma)
    _check_count("num_directions", num_directions, 2)
    _check_sized("relative", relative, space)
    objective = _objective(model, batches, space, balance)
    with differentiating(objective.model):
        loss = objective.loss_at(None)
        scale = objective.theta.abs() if relative else None
        rises = antithetic_increases(objective, loss, sigma, num_directions, scale=scale, seed=seed)
    if not rises.any():
        raise UsageError(
            f"sigma: {sigma}: the loss does not change at all; sigma is too small for its precision, or the adapter is "
            "off or merged"
        )
    return AverageSharpness(
        value=float(rises.mean()),
        standard_error=float(rises.std(ddof=1) / math.sqrt(num_directions)),
        sigma=sigma,
        relative=relative,
        num_directions=num_directions,
        seed=seed,
        space=objective.space,
        loss=loss,
        num_examples=objective.num_examples,
        num_labels=objective.num_labels,
        num_parameters=objective.size,
        seconds=time.perf_counter() - began,
    )


def antithetic_increases(
    function: LossFunction,
    loss: float,
    sigma: float,
    num_directions: int,
    *,
    scale: Tensor | None = None,
    seed: int = 0,
) -> np.ndarray:
    """½(L(θ+ε) + L(θ-ε)) - L(θ) for ε = σ·scale·z with z Gaussian (size,): (num_directions,) float64; ``loss`` is L(θ).

    Raises:
        NonFiniteLossError: the loss is NaN or infinite at some θ±ε.
    """
    generator = torch.Generator().manual_seed(seed)
    rises = np.empty(num_directions)
    try:
        for number in range(num_directions):
            offset = sigma * gaussian(function, generator)
            offset = offset if scale is None else offset * scale
            rises[number] = (function.loss_at(offset) - loss) / 2 + (function.loss_at(-offset) - loss) / 2
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"sigma: {sigma:g}: under noise of this size {error}") from error
    return rises


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"{name}: {value}; allowed: finite and greater than 0")


def _check_count(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name}: {value}; allowed: at least {least}")


def _check_sized(name: str, wanted: bool, space: str) -> None:
    """Merged weights are measured as displacements from W', which have no size to be relative to."""
    if wanted and space == "merged":
        raise UsageError(f"{name}: True with space='merged', whose coordinates are 0; allowed: space='adapter'")


def _objective(model: nn.Module, batches: Batch | Iterable[Batch], space: str, balance: bool) -> Objective:
    """The objective, refused where differences of its values would say nothing."""
    objective = Objective(model, batches, space=space, balance=balance)
    for name, tensor in zip(objective.names, objective.tensors, strict=True):
        if torch.finfo(tensor.dtype).eps > torch.finfo(torch.float32).eps:
            raise UsageError(
                f"model: {name} is {str(tensor.dtype).removeprefix('torch.')}, which would round the perturbation "
                "away; needed: float32 or float64 (PEFT's autocast_adapter_dtype)"
            )
    eps = max(torch.finfo(p.dtype).eps for p in objective.model.parameters() if p.is_floating_point())
    # In one context: entering it anew would replay the random numbers.
    with objective.installed(), torch.no_grad():
        first, second = (
            sum(float(objective.losses(batch).nll.double().sum()) for batch in objective.batches) / objective.num_labels
            for _ in range(2)
        )
    if abs(first - second) > min(64 * eps, 1e-3) * max(1.0, abs(first)):
        raise UsageError(
            f"model: two evaluations differ by {abs(first - second):.3g} nats; "
            "remove what draws random numbers in evaluation mode"
        )
    return objective
