"""The largest value of a loss within a ball, by projected gradient ascent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from landscape.measurement import NonFiniteLossError


class LossFunction(Protocol):
    """L at points near θ; offsets from θ are (size,), of its dtype and on its device.

    Where L is not finite it raises `NonFiniteLossError`.
    """

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def loss_at(self, offset: Tensor | None) -> float: ...  # noqa: D102
    def value_and_gradient_at(self, offset: Tensor | None) -> tuple[float, Tensor]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class BallMaximum:
    """What `maximize_in_ball` found; fields as in `landscape.curvature.ball.BallSharpness`."""

    loss: float
    lower_bound: float
    one_step: float
    increases: np.ndarray
    gradient_norm: float
    residual: float
    num_gradients: int
    perturbation: Tensor


def maximize_in_ball(
    function: LossFunction,
    rho: float,
    *,
    scale: Tensor | None = None,
    num_steps: int = 20,
    num_starts: int = 3,
    tol: float = 1e-2,
    seed: int = 0,
) -> BallMaximum:
    """The largest L(θ+ε) - L(θ) over ‖ε ÷ scale‖ ≤ ρ that projected gradient ascent finds from several starts.

    In u = ε ÷ scale the ball is round. The first start is ρ·∇L/‖∇L‖ in u; the others are random on the sphere, each on
    the side to which the gradient points. Steps follow Barzilai and Borwein (1988), long and short in turn, on the
    gradient's part along the sphere; a step that does not rise is cut to a quarter. To 99 % of the maximum of 80
    quadratics in 2,000 dimensions it took 8 gradients on average and at most 23; with a step that doubles after every
    success, 14 and 57.

    Args:
        function: losses and gradients of it are all that is used.
        rho: radius.
        scale: (size,) at least 0; None is 1.
        num_steps: gradients that each start may spend after its first.
        num_starts: how many.
        tol: residual at which a start stops.
        seed: of the random starts.

    Raises:
        NonFiniteLossError: the loss or its gradient is NaN or infinite at θ or at some point of the ball.
    """
    ball = _Ball(function, rho, scale)
    generator = torch.Generator().manual_seed(seed)
    one_step, reached = math.nan, []
    try:
        for number in range(num_starts):
            if number == 0 and ball.gradient_norm > 0:
                start = ball.at(ball.gradient * (rho / ball.gradient_norm))
                one_step = start.value - ball.center.value
            else:
                start = ball.at(ball.random(generator))
            reached.append(ball.climb(start, num_steps, tol))
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"rho: {rho:g}: within the ball {error}") from error
    best = max([ball.center, *reached], key=lambda point: point.value)
    return BallMaximum(
        loss=ball.center.value,
        lower_bound=best.value - ball.center.value,
        one_step=one_step,
        increases=np.array([point.value - ball.center.value for point in reached]),
        gradient_norm=ball.gradient_norm,
        residual=ball.residual(best),
        num_gradients=ball.num_gradients,
        perturbation=ball.stretched(best.u),
    )


@dataclass(frozen=True, eq=False)
class _Point:
    """A point u of the ball, the loss there, its gradient by u, and the part of that along which it can go on."""

    u: Tensor
    value: float
    gradient: Tensor
    ascent: Tensor


class _Ball:
    """The function in the coordinates u = ε ÷ scale, in which the ball is ‖u‖ ≤ ρ."""

    def __init__(self, function: LossFunction, rho: float, scale: Tensor | None) -> None:
        self._function, self._rho, self._scale = function, rho, scale
        self.num_gradients = 0
        self.center = self.at(torch.zeros(function.size, dtype=function.dtype, device=function.device))
        self.gradient = self.center.gradient
        self.gradient_norm = float(self.gradient.norm())

    def stretched(self, u: Tensor) -> Tensor:
        return u if self._scale is None else u * self._scale

    def random(self, generator: torch.Generator) -> Tensor:
        vector = gaussian(self._function, generator)
        vector *= self._rho / vector.norm()
        return -vector if float(vector @ self.gradient) < 0 else vector

    def at(self, u: Tensor) -> _Point:
        self.num_gradients += 1
        value, gradient = self._function.value_and_gradient_at(self.stretched(u))
        gradient = self.stretched(gradient)
        if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
            raise NonFiniteLossError("the loss or its gradient is not finite")
        return _Point(u, value, gradient, self._ascent(u, gradient))

    def _ascent(self, u: Tensor, gradient: Tensor) -> Tensor:
        """The gradient, on the sphere and pointing outwards without its radial part."""
        squared, outwards = float(u @ u), float(gradient @ u)
        if outwards <= 0 or squared < self._rho**2 * (1 - 1e-5):
            return gradient
        return gradient - (outwards / squared) * u

    def residual(self, point: _Point) -> float:
        whole = max(float(point.gradient.norm()), self.gradient_norm)
        return float(point.ascent.norm()) / whole if whole > 0 else 0.0

    def climb(self, point: _Point, num_steps: int, tol: float) -> _Point:
        """Where ascent from the point ends; the loss is never lower than at the point."""
        outwards = float(point.gradient @ point.u)
        # The first step is that of the power iteration on the sphere: u along the gradient.
        step = self._rho**2 / outwards if outwards > 0 else self._rho / max(float(point.gradient.norm()), 1e-30)
        for number in range(num_steps):
            if self.residual(point) <= tol:
                break
            u = point.u + step * point.ascent
            norm = float(u.norm())
            trial = self.at(u * (self._rho / norm) if norm > self._rho else u)
            if trial.value <= point.value:
                step /= 4
                continue
            step = _next_step(point, trial, step, long=number % 2 == 0)
            point = trial
        return point


def _next_step(before: _Point, after: _Point, step: float, long: bool) -> float:
    """Barzilai and Borwein's step lengths, in magnitude: s·s ÷ s·y or s·y ÷ y·y."""
    moved, change = after.u - before.u, after.ascent - before.ascent
    product = abs(float(moved @ change))
    if product == 0:
        return 2 * step
    return float(moved @ moved) / product if long else product / float(change @ change)


def gaussian(function: LossFunction, generator: torch.Generator) -> Tensor:
    """A vector (size,) drawn on the CPU so that every device draws alike."""
    return torch.randn(function.size, generator=generator, dtype=function.dtype).to(function.device)
