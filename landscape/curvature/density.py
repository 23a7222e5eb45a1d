"""Spectral density of the Hessian of a model's loss, by stochastic Lanczos quadrature.

For a unit vector v, m Lanczos steps give the nodes θ_j (Ritz values) and weights w_j (squared first components of T's
eigenvectors) of the Gauss quadrature of v's spectral measure: Σ_j w_j·f(θ_j) = vᵀf(H)v for polynomials f up to degree
2m - 1. Its mean over random v is tr f(H) ÷ n (Ubaru, Chen and Saad, Fast Estimation of tr(f(A)) via Stochastic Lanczos
Quadrature, 2017). With f a Gaussian around t it is the density of eigenvalues at t, broadened by that Gaussian
(Ghorbani, Krishnan and Xiao, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, 2019).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn
from tqdm import tqdm

from landscape.curvature.krylov import BREAKDOWN, Basis, SymmetricOperator, check_symmetry, finite_product
from landscape.curvature.operators import CurvatureOperator
from landscape.curvature.trace import Estimate, random_signs
from landscape.errors import UsageError
from landscape.measurement import Batch, differentiating

TAIL = 6.0
"""Standard deviations of the kernel beyond the outermost nodes that a default grid covers; 2e-9 of it lies outside."""
_MOST_POINTS = 1_000_000
_MIN_RELATIVE_WIDTH = 1e-3
"""The spectrum's width, as a share of its largest magnitude, below which a multiple of the identity is drawn wider."""


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Nodes and weights of every probe: a discrete estimate of the distribution of the eigenvalues.

    ``nodes`` and ``weights`` are (num_probes, m) float64, nodes ascending, the weights of a row adding up to 1. A row
    that met an invariant subspace needs fewer than m nodes; its last node is then repeated with weight 0.
    """

    nodes: np.ndarray
    weights: np.ndarray
    num_matvecs: int

    @property
    def largest(self) -> float:
        """The largest node: a lower bound on the largest eigenvalue, usually tight."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """The smallest node: an upper bound on the smallest eigenvalue, usually tight."""
        return float(self.nodes.min())

    def moment(self, order: int) -> Estimate:
        """tr Hᵏ ÷ n: the mean eigenvalue at k = 1, ‖H‖_F² ÷ n at k = 2. No broadening; unbiased.

        The standard error is NaN with one probe.

        Raises:
            UsageError: an order that m nodes do not integrate exactly.
        """
        highest = 2 * self.nodes.shape[1] - 1
        if not 0 <= order <= highest:
            raise UsageError(f"order: {order}; allowed: 0 to 2·num_steps - 1 = {highest}")
        samples = (self.weights * self.nodes**order).sum(axis=1)
        return Estimate(float(samples.mean()), float(_standard_error(samples)))

    def density(self, grid: np.ndarray, bandwidth: float) -> tuple[np.ndarray, np.ndarray]:
        """Density of eigenvalues on a grid (p,), each drawn as a Gaussian, and its standard error over the probes."""
        samples = np.zeros((len(self.nodes), len(grid)))
        # One node of every probe at a time: all kernels together would be (p, m) numbers a probe.
        for nodes, weights in zip(self.nodes.T[..., None], self.weights.T[..., None], strict=True):
            samples += weights * np.exp(-0.5 * ((grid - nodes) / bandwidth) ** 2)
        samples /= bandwidth * math.sqrt(2 * math.pi)
        return samples.mean(axis=0), _standard_error(samples)


@dataclass(frozen=True, eq=False)
class DensityResult:
    """The spectral density of a Hessian with everything that says what it is."""

    grid: np.ndarray
    """(p,) float64, ascending; unless given, evenly spaced from the smallest node to the largest and 6σ beyond."""
    density: np.ndarray
    """(p,) density of eigenvalues; its integral over the grid (trapezoid) is 1 unless a given grid leaves some out."""
    standard_error: np.ndarray
    """(p,) over the probes, at the same bandwidth; NaN with one probe."""
    bandwidth: float
    """Standard deviation σ of the Gaussian that broadens every eigenvalue."""
    quadrature: Quadrature
    """Behind the density; gives moments, and the density at other bandwidths, without further products."""
    num_matvecs: int
    """Hessian-vector products spent: num_steps·num_probes, or fewer where few eigenvalues are distinct."""
    num_steps: int
    num_probes: int
    seed: int
    space: str
    loss: float
    """Σ nll ÷ Σ counted labels over the same batches, in nats."""
    num_examples: int
    num_labels: int
    num_parameters: int
    seconds: float


def spectral_density(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    num_steps: int = 60,
    num_probes: int = 4,
    *,
    space: str = "adapter",
    seed: int = 0,
    grid: np.ndarray | None = None,
    num_points: int = 1000,
    bandwidth: float | None = None,
    progress: bool = False,
    **operator_options: Any,
) -> DensityResult:
    """The density of the eigenvalues of the Hessian of the loss over all batches together.

    A few eigenvalues of a large matrix weigh little in its density: outliers show as bumps of height about 1 ÷ n.

    Args:
        model: transformers or PEFT model; measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        num_steps: m, Lanczos steps a probe; m·n numbers of memory.
        num_probes: independent random vectors; one is much for a large model, but has no standard error.
        space: coordinates, as in `CurvatureOperator`.
        seed: of the random vectors, which are the same on every device; global generators are left alone.
        grid: (p,) ascending, where to evaluate the density instead of a grid that covers the spectrum.
        num_points: of the default grid, which takes more where a narrow kernel needs them (`covering_grid`).
        bandwidth: σ of the Gaussian kernel. The default is the spectrum's width ÷ num_steps, about the narrowest that m
            steps resolve whatever the spectrum (the error is of the order of exp(-8)); below it, single nodes begin to
            show as peaks.
        progress: show a progress bar.
        operator_options: passed to `CurvatureOperator`.

    Raises:
        UsageError: an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss or a product is NaN or infinite.
        LandscapeError: the Hessian is not symmetric.
    """
    began = time.perf_counter()
    _check_quadrature(num_steps, num_probes)
    given = _check_drawing(grid, num_points, bandwidth)
    operator = CurvatureOperator(model, batches, space=space, **operator_options)
    with differentiating(operator.objective.model):
        quadrature = lanczos_quadrature(operator, num_steps, num_probes, seed, progress=progress)
    width = default_bandwidth(quadrature, num_steps) if bandwidth is None else bandwidth
    points = covering_grid(quadrature, width, num_points) if given is None else given
    density, standard_error = quadrature.density(points, width)
    return DensityResult(
        grid=points,
        density=density,
        standard_error=standard_error,
        bandwidth=width,
        quadrature=quadrature,
        num_matvecs=quadrature.num_matvecs,
        num_steps=num_steps,
        num_probes=num_probes,
        seed=seed,
        space=operator.space,
        loss=operator.loss,
        num_examples=operator.num_examples,
        num_labels=operator.num_labels,
        num_parameters=operator.size,
        seconds=time.perf_counter() - began,
    )


def lanczos_quadrature(
    operator: SymmetricOperator, num_steps: int = 60, num_probes: int = 4, seed: int = 0, *, progress: bool = False
) -> Quadrature:
    """Gauss quadratures of the spectral measures of ``num_probes`` vectors of random signs; m = min(num_steps, n).

    Raises:
        UsageError: fewer than one step or probe.
        NonFiniteLossError: a product is NaN or infinite.
        LandscapeError: the operator is not symmetric.
    """
    _check_quadrature(num_steps, num_probes)
    num_steps = min(num_steps, operator.size)
    generator = torch.Generator().manual_seed(seed)
    nodes, weights = np.zeros((num_probes, num_steps)), np.zeros((num_probes, num_steps))
    num_matvecs = 0
    with tqdm(total=num_probes * num_steps, desc="density", unit="product", disable=not progress, leave=False) as bar:
        for probe in range(num_probes):
            diagonal, off_diagonal = _tridiagonal(operator, random_signs(operator, generator), num_steps, bar)
            values, vectors = eigh_tridiagonal(diagonal, off_diagonal, lapack_driver="stemr")
            nodes[probe] = np.pad(values, (0, num_steps - len(values)), mode="edge")
            weights[probe, : len(values)] = vectors[0] ** 2 / (vectors[0] ** 2).sum()
            num_matvecs += len(values)
    return Quadrature(nodes, weights, num_matvecs)


def default_bandwidth(quadrature: Quadrature, num_steps: int) -> float:
    """The spectrum's width ÷ num_steps, positive also for a multiple of the identity.

    On a spectrum scaled to [-1, 1], the k-th Chebyshev coefficient of a Gaussian of standard deviation s falls as
    exp(-(k·s)²/2) and m nodes integrate all up to k = 2m - 1; with s = 2/m the first that is missed is exp(-8).
    """
    magnitude = max(abs(quadrature.largest), abs(quadrature.smallest))
    return max(quadrature.largest - quadrature.smallest, _MIN_RELATIVE_WIDTH * magnitude or 1.0) / num_steps


def covering_grid(quadrature: Quadrature, bandwidth: float, num_points: int) -> np.ndarray:
    """Evenly spaced points, at most σ apart, over all nodes and `TAIL` times σ on either side.

    The trapezoid rule on it integrates a Gaussian to 1 within 1e-8: 2e-9 lies outside, and a spacing h adds
    2·exp(-2π²σ²/h²), which is 5e-9 where h = σ.

    Raises:
        UsageError: it would take more than a million points.
    """
    first, last = quadrature.smallest - TAIL * bandwidth, quadrature.largest + TAIL * bandwidth
    intervals = (last - first) / bandwidth
    if intervals >= _MOST_POINTS:
        raise UsageError(
            f"bandwidth: {bandwidth}; allowed on a grid of this spectrum: at least about "
            f"{(quadrature.largest - quadrature.smallest) / _MOST_POINTS:.2g}; or pass a grid of your own"
        )
    return np.linspace(first, last, max(num_points, math.ceil(intervals) + 1))


def _tridiagonal(operator: SymmetricOperator, start: Tensor, num_steps: int, bar: Any) -> tuple[np.ndarray, np.ndarray]:
    """T's diagonal (m,) and off-diagonal (m - 1,), with full reorthogonalization; m < num_steps at a breakdown."""
    eps = torch.finfo(operator.dtype).eps
    basis = Basis(start.new_zeros(0, len(start)))
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    scale, vector = 0.0, start
    while True:
        vector = vector / vector.norm()
        if off_diagonal and off_diagonal[-1] < math.sqrt(eps) * scale:
            # What two passes left of the projections was rounding then, and is not any more.
            vector = basis.orthogonalize(vector)[0]
            vector = vector / vector.norm()
        basis.append(vector)
        vector, _, coefficients = basis.orthogonalize(finite_product(operator, vector))
        bar.update()
        beta = float(vector.norm())
        diagonal.append(float(coefficients[-1]))
        scale = max(scale, abs(diagonal[-1]) + beta)
        check_symmetry(float(np.linalg.norm(coefficients[:-2])), scale)
        if len(diagonal) == num_steps or beta <= BREAKDOWN * eps * scale:
            return np.array(diagonal), np.array(off_diagonal)
        off_diagonal.append(beta)


def _standard_error(samples: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis; NaN for a single sample."""
    if len(samples) == 1:
        return np.full(samples.shape[1:], np.nan)
    return samples.std(axis=0, ddof=1) / math.sqrt(len(samples))


def _check_quadrature(num_steps: int, num_probes: int) -> None:
    for key, value in (("num_steps", num_steps), ("num_probes", num_probes)):
        if value < 1:
            raise UsageError(f"{key}: {value}; allowed: at least 1")


def _check_drawing(grid: np.ndarray | None, num_points: int, bandwidth: float | None) -> np.ndarray | None:
    """The given grid as an array of float64."""
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise UsageError(f"bandwidth: {bandwidth}; allowed: positive and finite")
    if num_points < 2:
        raise UsageError(f"num_points: {num_points}; allowed: at least 2")
    if grid is None:
        return None
    points = np.asarray(grid, dtype=np.float64)
    if points.ndim != 1 or len(points) == 0 or not (np.isfinite(points).all() and (np.diff(points) > 0).all()):
        raise UsageError(f"grid: shape {points.shape}; needed: one axis of finite, strictly ascending numbers")
    return points
