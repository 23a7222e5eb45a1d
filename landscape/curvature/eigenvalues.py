"""Sharpness: the largest eigenvalues of the Hessian of a model's loss, once and along changing parameters."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from landscape.curvature.krylov import SymmetricOperator
from landscape.curvature.lanczos import NOISE, lanczos
from landscape.curvature.memory import Product
from landscape.curvature.operators import CurvatureOperator, Matrix
from landscape.curvature.stability import PreconditionedOperator
from landscape.errors import UsageError, unknown
from landscape.measurement import Batch, differentiating, free_bytes

Which = Literal["largest", "smallest"]
_WHICH = ("largest", "smallest")


class OperatorOptions(TypedDict, total=False):
    """How products are made; see `CurvatureOperator`."""

    matrix: Matrix
    balance: bool
    product: Product
    memory_bytes: int | None


@dataclass(frozen=True, eq=False)
class EigenResult:
    """Extreme eigenvalues of a curvature matrix with everything that says what they are."""

    values: np.ndarray
    """(k,) float64, largest algebraic first (smallest first where those were asked for)."""
    residuals: np.ndarray
    """(k,) float64, ‖H·x - θ·x‖ ÷ |θ|: some eigenvalue lies within that share of each value."""
    num_matvecs: int
    """Products with vectors spent."""
    converged: bool
    """Every residual is at most ``tol``, and the search for missed eigenvalues ended within ``max_matvecs``."""
    tol: float
    seed: int
    which: str
    """``largest`` or ``smallest``; ``magnitude`` where PyHessian measured."""
    matrix: str
    """``hessian``, or ``ggn`` for its generalized Gauss-Newton part."""
    space: str
    """``adapter``, ``merged``, ``balanced``, or ``preconditioned``."""
    product: str
    """How products were made: ``reuse``, ``rebuild`` or ``finite_difference``."""
    cold: bool
    """The search began from a random vector, not from an earlier result."""
    loss: float
    """Σ nll ÷ Σ counted labels over the same batches, in nats."""
    num_examples: int
    num_labels: int
    num_parameters: int
    seconds: float
    next_start: Tensor
    """(n,) the ``start`` for the same model a few steps on."""
    vectors: Tensor | None
    """(k, n) unit eigenvectors as rows, in the order of ``named_parameters()``; None unless asked for."""


def top_eigenvalues(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    k: int = 1,
    space: str = "adapter",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    seed: int = 0,
    *,
    which: Which = "largest",
    start: Tensor | None = None,
    preconditioner: Tensor | None = None,
    return_vectors: bool = False,
    max_basis: int | None = None,
    **options: Unpack[OperatorOptions],
) -> EigenResult:
    """The k largest (algebraic) eigenvalues of the Hessian of the loss over all batches together.

    The largest in magnitude is often negative in the middle of training; that is not sharpness. The method is Lanczos
    with full reorthogonalization and a Ritz residual as stopping rule (`landscape.curvature.lanczos`), on exact
    Hessian-vector products (`CurvatureOperator`).

    Args:
        model: transformers or PEFT model; measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        k: how many.
        space: ``adapter``: every parameter that requires a gradient; ``merged``: the weights W' = W + sBA of the
            adapted layers; ``balanced``: as ``adapter`` in the balanced gauge, which ``balance=True`` means too.
        tol: relative residual at which each eigenvalue counts as found.
        max_matvecs: most products.
        seed: of the random vectors; global generators are neither used nor changed.
        which: ``largest``, or ``smallest``: the most negative curvature.
        start: (n,) the ``next_start`` of an earlier result on nearby parameters.
        preconditioner: D (n,), see `landscape.curvature.stability`: eigenvalues of D^½HD^½ in the space ``adapter``.
        return_vectors: also return the eigenvectors.
        max_basis: most vectors of size n in memory, beyond which the search restarts; default: as many as fit half of
            what is free.
        options: ``matrix``, ``balance``, ``product`` and ``memory_bytes`` as in `CurvatureOperator`.

    Raises:
        UsageError: an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss or a product is NaN or infinite.
    """
    began = time.perf_counter()
    _check_which(which)
    operator = CurvatureOperator(model, batches, space=space, **options)
    return _search(
        operator, k, tol=tol, max_matvecs=max_matvecs, seed=seed, which=which, start=start, noise=NOISE,
        preconditioner=preconditioner, return_vectors=return_vectors, max_basis=max_basis, began=began,
    )  # fmt: skip


class SharpnessTracker:
    """`top_eigenvalues` of a model whose parameters change in place between measurements, as along a training run.

    What the measurements share is done once (checks, the plan for products), and each search starts from the leading
    eigenvectors of the one before. Such a start cannot see what grew up elsewhere, so every ``verify_every``-th search
    starts from a random vector instead; results say in ``cold`` which did.

    Args:
        model: as in `top_eigenvalues`; its parameters are read anew at every measurement.
        batches: as in `top_eigenvalues`.
        k: how many eigenvalues.
        space: coordinates.
        tol: relative residual at which each eigenvalue counts as found.
        max_matvecs: most products a measurement.
        seed: of the random vectors.
        which: ``largest`` or ``smallest``.
        verify_every: 1 for random starts always.
        max_basis: as in `top_eigenvalues`.
        options: as in `top_eigenvalues`.

    Raises:
        UsageError: as `top_eigenvalues`.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batch | Iterable[Batch],
        *,
        k: int = 1,
        space: str = "adapter",
        tol: float = 1e-3,
        max_matvecs: int = 200,
        seed: int = 0,
        which: Which = "largest",
        verify_every: int = 10,
        max_basis: int | None = None,
        **options: Unpack[OperatorOptions],
    ) -> None:
        _check_which(which)
        if verify_every < 1:
            raise UsageError(f"verify_every: {verify_every}; allowed: at least 1")
        self._model, self._batches = model, batches if isinstance(batches, Mapping) else list(batches)
        self._k, self._space, self._options = k, space, options
        self._tol, self._max_matvecs, self._seed, self._which = tol, max_matvecs, seed, which
        self._verify_every, self._max_basis = verify_every, max_basis
        self._operator: CurvatureOperator | None = None
        self._next_start: Tensor | None = None
        self._since_cold = 0

    def measure(self, *, preconditioner: Tensor | None = None, return_vectors: bool = False) -> EigenResult:
        """The eigenvalues at the parameters as they are now.

        Args:
            preconditioner: D (n,) at these parameters.
            return_vectors: also return the eigenvectors.

        Raises:
            UsageError: as `top_eigenvalues`.
            NonFiniteLossError: the parameters have diverged; later measurements are not affected.
        """
        began = time.perf_counter()
        if self._operator is None:
            self._operator = CurvatureOperator(self._model, self._batches, space=self._space, **self._options)
        else:
            self._operator.refresh()
        cold = self._next_start is None or self._since_cold + 1 >= self._verify_every
        result = _search(
            self._operator, self._k, tol=self._tol, max_matvecs=self._max_matvecs, seed=self._seed, which=self._which,
            start=None if cold else self._next_start, noise=0.0, preconditioner=preconditioner,
            return_vectors=return_vectors, max_basis=self._max_basis, began=began,
        )  # fmt: skip
        self._next_start, self._since_cold = result.next_start, 0 if cold else self._since_cold + 1
        return result


class _Negated:
    """-H, whose largest eigenvalues are the smallest of H."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        return -(self._operator @ vector)


def _search(
    operator: CurvatureOperator,
    k: int,
    *,
    tol: float,
    max_matvecs: int,
    seed: int,
    which: str,
    start: Tensor | None,
    noise: float,
    preconditioner: Tensor | None,
    return_vectors: bool,
    max_basis: int | None,
    began: float,
) -> EigenResult:
    matrix: SymmetricOperator = operator
    if preconditioner is not None:
        if operator.space != "adapter":
            raise UsageError(
                f"preconditioner: given with space {operator.space!r}; allowed: adapter, where D was taken"
            )
        matrix = PreconditionedOperator(operator, preconditioner)
    sign = 1.0 if which == "largest" else -1.0
    with differentiating(operator.objective.model):
        pairs = lanczos(
            matrix if sign > 0 else _Negated(matrix), k, tol=tol, max_matvecs=max_matvecs, seed=seed, start=start,
            noise=noise, max_basis=max_basis or _fitting_basis(operator, k, max_matvecs),
        )  # fmt: skip
    return EigenResult(
        values=sign * pairs.values,
        residuals=pairs.relative_residuals,
        num_matvecs=pairs.num_matvecs,
        converged=pairs.converged,
        tol=tol,
        seed=seed,
        which=which,
        matrix=operator.matrix,
        space=operator.space if preconditioner is None else "preconditioned",
        product=operator.plan.product,
        cold=start is None,
        loss=operator.loss,
        num_examples=operator.num_examples,
        num_labels=operator.num_labels,
        num_parameters=operator.size,
        seconds=time.perf_counter() - began,
        next_start=pairs.next_start,
        vectors=pairs.vectors if return_vectors else None,
    )


def _fitting_basis(operator: CurvatureOperator, k: int, max_matvecs: int) -> int:
    """How many vectors a search may keep: half of the free memory, but never fewer than it needs.

    Raises:
        UsageError: not even the least that a search needs fits.
    """
    vector_bytes = operator.size * torch.finfo(operator.dtype).bits // 8
    free = free_bytes(operator.device)
    least = 2 * k + 8
    total = least + 2 * k + 4
    if total * vector_bytes > free:
        raise UsageError(
            f"memory: a search for k = {k} needs {total} vectors of {vector_bytes:,} bytes, and {free:,} are free; "
            "measure a smaller space (adapter, or fewer trainable tensors)"
        )
    return max(least, min(max(max_matvecs, least), free // 2 // vector_bytes))


def _check_which(which: str) -> None:
    if which not in _WHICH:
        raise unknown("which", which, _WHICH)
