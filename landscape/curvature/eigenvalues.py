"""Sharpness: the largest eigenvalues of the Hessian of a model's loss."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from landscape.curvature.lanczos import lanczos
from landscape.curvature.operators import HessianOperator
from landscape.measurement import Batch


@dataclass(frozen=True, eq=False)
class EigenResult:
    """The largest eigenvalues of a Hessian with everything that says what they are."""

    values: np.ndarray
    """(k,) float64, largest algebraic first."""
    residuals: np.ndarray
    """(k,) float64, ‖H·x - θ·x‖ ÷ |θ|: some eigenvalue lies within that share of each value."""
    num_matvecs: int
    """Hessian-vector products spent."""
    converged: bool
    """Every residual is at most ``tol``, and the search for missed eigenvalues ended within ``max_matvecs``."""
    tol: float
    seed: int
    space: str
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
    start: Tensor | None = None,
    return_vectors: bool = False,
    reuse_graph: bool | Literal["auto"] = "auto",
    graph_bytes: int | None = None,
) -> EigenResult:
    """The k largest (algebraic) eigenvalues of the Hessian of the loss over all batches together.

    The largest in magnitude is often negative in the middle of training; that is not sharpness. The method is Lanczos
    with full reorthogonalization and a Ritz residual as stopping rule (`landscape.curvature.lanczos`), on exact
    Hessian-vector products (`HessianOperator`).

    Args:
        model: transformers or PEFT model; measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        k: how many.
        space: ``adapter``: every parameter that requires a gradient.
        tol: relative residual at which each eigenvalue counts as found.
        max_matvecs: most Hessian-vector products; (max_matvecs + k)·n numbers of memory at most.
        seed: of the random vectors; global generators are neither used nor changed.
        start: (n,) the ``next_start`` of an earlier result on nearby parameters.
        return_vectors: also return the eigenvectors.
        reuse_graph: as in `HessianOperator`.
        graph_bytes: as in `HessianOperator`.

    Raises:
        UsageError: an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss or a product is NaN or infinite.
    """
    began = time.perf_counter()
    operator = HessianOperator(model, batches, space=space, reuse_graph=reuse_graph, graph_bytes=graph_bytes)
    pairs = lanczos(operator, k, tol=tol, max_matvecs=max_matvecs, seed=seed, start=start)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(pairs.residuals == 0, 0.0, pairs.residuals / np.abs(pairs.values))
    return EigenResult(
        values=pairs.values,
        residuals=relative,
        num_matvecs=pairs.num_matvecs,
        converged=pairs.converged,
        tol=tol,
        seed=seed,
        space=space,
        loss=operator.loss,
        num_examples=operator.num_examples,
        num_labels=operator.num_labels,
        num_parameters=operator.size,
        seconds=time.perf_counter() - began,
        next_start=pairs.next_start,
        vectors=pairs.vectors if return_vectors else None,
    )
