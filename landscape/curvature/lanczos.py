"""Lanczos iteration for the largest eigenvalues of a symmetric operator.

A Krylov sequence with full reorthogonalization (Gram-Schmidt twice, which is enough: Giraud, Langou, Rozložník and van
den Eshof 2005) keeps V (n x m) with H·V = V·T + β·v·eᵀ, T tridiagonal. An eigenpair (θ, s) of T gives the Ritz vector
x = V·s with ‖H·x - θ·x‖ = |β·s_m| (Parlett, The Symmetric Eigenvalue Problem, 13.2), so the error bound that stops the
iteration costs nothing. Where V grows too large for memory, the leading Ritz vectors take its place (thick restart: Wu
and Simon, Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems, 2000).

The bound says that an eigenvalue is near θ, not that no larger one exists. Three guards against stopping on a lower
one: the criterion has to hold for some steps in a row without the values moving; a start that was handed in gets noise
added that leaves it a head start only; and wherever a single Krylov sequence cannot see everything (it met an invariant
subspace, or more than one eigenvalue is wanted and one of them may be repeated) a fresh random sequence searches the
complement of what was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.krylov import BREAKDOWN, Basis, SymmetricOperator, check_symmetry, finite_product
from landscape.errors import UsageError

PATIENCE = 2
"""Steps in a row at which the stopping criterion must hold."""

NOISE = 0.1
"""Standard deviation of the Gaussian numbers added to a start of norm 1: it leaves the start some ten times the weight
that a random vector has along any direction. Less noise saves no more products along training runs and misses more:
in 60 searches from the second of 5,000 eigenvectors, 3.7 % below the first, 0.03 missed 12 times, 0.1 three times."""
_EXTRA_VECTORS, _EXTRA_SHARE = 2, 0.3
"""Ritz vectors beyond the wanted ones in `RitzPairs.next_start`, and their weight: where two eigenvalues cross between
one operator and the next, a start without the second would be a start from the second eigenvector."""
_BELOW_TOL = 0.03
"""Relative residual at which a search for missed eigenvalues accepts that there is none above its own largest."""


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs, largest algebraic eigenvalue first.

    ``residuals`` (k,) are ‖H·x - θ·x‖, absolute; ``vectors`` (k, n) are orthonormal rows. ``next_start`` (n,) is a
    weighted sum of the leading k + 2 Ritz vectors: started from it, a search on a nearby operator holds on to all of
    them, so that eigenvalues which cross from one operator to the next do not leave it on the lower one.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: Tensor
    next_start: Tensor
    num_matvecs: int
    converged: bool

    @property
    def relative_residuals(self) -> np.ndarray:
        """(k,) ‖H·x - θ·x‖ ÷ |θ|."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.residuals == 0, 0.0, self.residuals / np.abs(self.values))


def lanczos(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    seed: int = 0,
    start: Tensor | None = None,
    noise: float = NOISE,
    max_basis: int | None = None,
) -> RitzPairs:
    """The k largest (algebraic) eigenvalues of a symmetric operator of size n.

    Args:
        operator: products with it are all that is used; negative eigenvalues may dominate in magnitude.
        k: how many, 1 ≤ k ≤ n. Beyond k = 1 a second sequence looks for further copies of repeated eigenvalues.
        tol: stop when each wanted ‖H·x - θ·x‖ ≤ tol·|θ| (or is at the rounding level of the operator's norm). Above
            1e-2 it certifies little: the Ritz value may then sit at the second eigenvalue.
        max_matvecs: most products.
        seed: of the private generator that draws random vectors, on the CPU, so that every device starts alike.
        start: (n,) best the `RitzPairs.next_start` of a nearby operator; along training runs it saves about a tenth of
            the products. A start close to a lower eigenvector can still leave the search there unseen (3 of 60 searches
            where the two were 4 % apart); the default, a random start, missed 2 of 160 at 0.6 %.
        noise: standard deviation of the numbers added to a start of norm 1; with 0, the search begins from the start
            as it is, and what has no share in it may stay unseen.
        max_basis: most vectors of a sequence kept in memory, at least 2k + 8; memory is (max_basis + 2k + 4)·n numbers.
            Default: ``max_matvecs``, so nothing is ever restarted.

    Raises:
        UsageError: k, tol, max_matvecs or start out of range.
        NonFiniteLossError: a product is NaN or infinite.
        LandscapeError: the operator is not symmetric.
    """
    _check_arguments(operator, k, tol, max_matvecs, start, max_basis)
    search = _Search(operator, tol, max_matvecs, seed, max_basis or max_matvecs)
    best = search.sequence(search.random() if start is None else search.noisy(start, noise), k)
    complete = best.exhaustive or (k == 1 and best.settled and not best.invariant)
    while not complete and search.left > 0:
        known = len(best.values)
        bound = float(best.values[-1]) if known == k else -math.inf
        more = search.sequence(search.random(), max(1, k - known), locked=best.vectors, bound=bound)
        complete = more.exhaustive or (known == k and more.settled and more.values[0] <= bound + tol * abs(bound))
        best = best.merged(more, k)
    accurate = search.converged(best.values, best.residuals)
    residuals = np.maximum(best.residuals, search.rounding)
    return RitzPairs(
        best.values, residuals, best.vectors, best.next_start, search.num_matvecs, converged=complete and accurate
    )


def _check_arguments(
    operator: SymmetricOperator, k: int, tol: float, max_matvecs: int, start: Tensor | None, max_basis: int | None
) -> None:
    if not 1 <= k <= operator.size:
        raise UsageError(f"k: {k}; allowed: 1 to the number of parameters, {operator.size}")
    if not 0 < tol < 1:
        raise UsageError(f"tol: {tol}; allowed: greater than 0 and less than 1")
    if max_matvecs < k:
        raise UsageError(f"max_matvecs: {max_matvecs}; allowed: at least k = {k}")
    if max_basis is not None and max_basis < 2 * k + 8:
        raise UsageError(f"max_basis: {max_basis}; allowed: at least 2k + 8 = {2 * k + 8}")
    if start is None:
        return
    if start.shape != (operator.size,):
        raise UsageError(f"start: shape {tuple(start.shape)}; needed: ({operator.size},)")
    if not (bool(torch.isfinite(start).all()) and bool(start.any())):
        raise UsageError("start: must be finite and not zero")


@dataclass(frozen=True, eq=False)
class _Found:
    """The leading Ritz pairs of one Krylov sequence, or of several merged, and why the sequence ended."""

    values: np.ndarray
    residuals: np.ndarray
    vectors: Tensor
    next_start: Tensor
    settled: bool  # the stopping criterion was met, not the budget
    invariant: bool  # met an invariant subspace: its pairs are exact, eigenvalues outside it are unseen
    exhaustive: bool  # together with what was locked it spans the whole space

    def merged(self, other: _Found, k: int) -> _Found:
        """The k leading pairs of both."""
        values = np.concatenate([self.values, other.values])
        order = np.argsort(-values, kind="stable")[:k]
        vectors = torch.cat([self.vectors, other.vectors])[order.tolist()]
        residuals = np.concatenate([self.residuals, other.residuals])[order]
        next_start = self.next_start + other.vectors.sum(dim=0)
        return _Found(values[order], residuals, vectors, next_start, other.settled, other.invariant, other.exhaustive)


class _Search:
    """The budget, the norm estimate and the random vectors that all sequences of one call share."""

    def __init__(self, operator: SymmetricOperator, tol: float, max_matvecs: int, seed: int, max_basis: int) -> None:
        self._operator, self._tol, self._max_matvecs, self._max_basis = operator, tol, max_matvecs, max_basis
        self._generator = torch.Generator().manual_seed(seed)
        self._eps = torch.finfo(operator.dtype).eps
        self._scale = 0.0
        self.num_matvecs = 0

    @property
    def left(self) -> int:
        """Products that the budget still allows."""
        return self._max_matvecs - self.num_matvecs

    @property
    def rounding(self) -> float:
        """What a product can be off by: the least that a residual can certify."""
        return self._eps * self._scale

    def random(self) -> Tensor:
        """A Gaussian vector (n,)."""
        vector = torch.randn(self._operator.size, generator=self._generator, dtype=self._operator.dtype)
        return vector.to(self._operator.device)

    def noisy(self, start: Tensor, noise: float) -> Tensor:
        """The start, scaled to norm 1, with noise."""
        start = start.to(self._operator.device, self._operator.dtype)
        start = start / start.norm()
        return start + noise * self.random() if noise else start

    def converged(self, values: np.ndarray, residuals: np.ndarray) -> bool:
        """Every residual is within the tolerance, or is rounding."""
        return bool((residuals <= np.maximum(self._tol * np.abs(values), 10 * self._eps * self._scale)).all())

    def sequence(
        self,
        start: Tensor,
        wanted: int,
        *,
        locked: Tensor | None = None,
        bound: float = -math.inf,
    ) -> _Found:
        """Run one Krylov sequence in the complement of ``locked`` (l, n) until its ``wanted`` leading pairs settle.

        With ``bound`` it also ends when its largest Ritz pair, roughly converged, lies below that.
        """
        basis = Basis(start.new_zeros(0, len(start)) if locked is None else locked)
        capacity = len(start) - (0 if locked is None else len(locked))
        projection = _Projection()
        held, previous = 0, np.empty(0)
        vector = basis.orthogonalize(start)[0]
        while True:
            vector = vector / vector.norm()
            if projection.size and projection.beta < math.sqrt(self._eps) * self._scale:
                # What two passes left of the projections was rounding then, and is not any more.
                vector = basis.orthogonalize(vector)[0]
                vector = vector / vector.norm()
            basis.append(vector)
            vector, coupling, coefficients = basis.orthogonalize(self._multiplied(vector))
            asymmetry = projection.add(coefficients, coupling, float(vector.norm()))
            self._scale = max(self._scale, abs(float(coefficients[-1])) + projection.beta)
            check_symmetry(asymmetry, self._scale)
            ritz = projection.ritz()
            held, previous = self._steps_held(held, previous, ritz, wanted, bound), ritz.values[:wanted]
            invariant = projection.beta <= BREAKDOWN * self._eps * self._scale
            exhaustive = projection.size == capacity
            settled = invariant or exhaustive or held >= PATIENCE
            if settled or self.left == 0:
                break
            if projection.size == self._max_basis:
                kept = wanted + max(_EXTRA_VECTORS, (self._max_basis - wanted) // 3)
                basis.restart(basis.combine(ritz.weights[:, :kept]))
                projection.restart(ritz, kept)
        leading = basis.combine(ritz.weights[:, : wanted + _EXTRA_VECTORS])
        vectors = leading[:wanted]
        next_start = vectors.sum(dim=0) + _EXTRA_SHARE * leading[wanted:].sum(dim=0)
        return _Found(
            ritz.values[:wanted], ritz.residuals[:wanted], vectors, next_start, settled, invariant, exhaustive
        )

    def _multiplied(self, vector: Tensor) -> Tensor:
        self.num_matvecs += 1
        return finite_product(self._operator, vector)

    def _steps_held(self, held: int, previous: np.ndarray, ritz: _Ritz, wanted: int, bound: float) -> int:
        """For how many steps in a row the stopping criterion has held with values that do not move."""
        values, residuals = ritz.values[:wanted], ritz.residuals[:wanted]
        if len(values) < wanted:
            return 0
        below = residuals[0] < min(_BELOW_TOL * abs(values[0]), bound - values[0])
        if not (below or self.converged(values, residuals)):
            return 0
        if len(previous) < wanted:
            return 1
        still = bool((np.abs(values - previous) <= self._tol * np.abs(values)).all())
        return held + 1 if below or still else 1


class _Projection:
    """T = VᵀHV of a sequence: tridiagonal, after a restart with a leading diagonal and the row that couples to it."""

    def __init__(self) -> None:
        self._matrix = np.zeros((16, 16))
        self._couplings: list[np.ndarray] = []
        self._border = np.empty(0)  # coupling of the next vector to each so far
        self.size = 0
        self.beta = 0.0

    def add(self, coefficients: np.ndarray, coupling: np.ndarray, beta: float) -> float:
        """One more vector: its product's coefficients on the sequence (m,) and on what is locked, and the norm left.

        Returns:
            How far the coefficients are from those that symmetry dictates.
        """
        m = self.size
        if m == len(self._matrix):
            self._matrix = np.pad(self._matrix, (0, len(self._matrix)))
        expected = self._border if m else coefficients[:-1]
        self._matrix[:m, m] = self._matrix[m, :m] = expected
        self._matrix[m, m] = coefficients[-1]
        self._couplings.append(coupling)
        self.size, self.beta = m + 1, beta
        self._border = np.r_[np.zeros(m), beta]
        return float(np.linalg.norm(coefficients[:-1] - expected))

    def ritz(self) -> _Ritz:
        """The eigenpairs, largest first."""
        values, weights = np.linalg.eigh(self._matrix[: self.size, : self.size])
        values, weights = values[::-1].copy(), weights[:, ::-1].copy()
        # What a locked vector, itself an approximation, leaves of H·x in its own direction belongs to the residual.
        leak = np.stack(self._couplings, axis=1) @ weights
        return _Ritz(values, weights, np.sqrt((self.beta * weights[-1]) ** 2 + (leak**2).sum(axis=0)))

    def restart(self, ritz: _Ritz, kept: int) -> None:
        """Go on with the leading Ritz vectors in place of the sequence."""
        self._couplings = list((np.stack(self._couplings, axis=1) @ ritz.weights[:, :kept]).T)
        self._border = self.beta * ritz.weights[-1, :kept]
        self._matrix[:] = 0
        self._matrix[range(kept), range(kept)] = ritz.values[:kept]
        self.size = kept


@dataclass(frozen=True, eq=False)
class _Ritz:
    """Eigenpairs of T (m x m), largest first: ``values`` (m,), ``weights`` (m, m) by columns, ``residuals`` (m,)."""

    values: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
