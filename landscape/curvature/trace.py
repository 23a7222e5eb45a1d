"""Trace of the Hessian of a model's loss, with its standard error.

Hutchinson (1990): for a vector g of independent random signs, E[gᵀHg] = tr H, and the variance of one sample is
2·Σ_{i≠j} H_ij². Hutch++ (Meyer, Musco, Musco and Woodruff, 2021, Algorithm 1) takes the trace on an orthonormal basis Q
of a random sketch of H's range exactly and applies Hutchinson to what is left, (I - QQᵀ)·H·(I - QQᵀ): better where a
few eigenvalues carry most of ‖H‖_F, no better than Hutchinson on a flat spectrum.

Both stop at a number of products set beforehand. A rule on the running mean ends where the mean happens to pass for
settled; the estimate it leaves is biased and its error unknown.

Where one eigenvalue dominates, Hutchinson's samples follow its χ² distribution, and few of them (under about 100) tend
to show too small a value together with too small a standard error; Hutch++ takes that eigenvalue out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from landscape.curvature.krylov import SymmetricOperator, finite_product
from landscape.curvature.layers import check_group, group_coordinates
from landscape.curvature.operators import CurvatureOperator
from landscape.errors import UsageError, unknown
from landscape.measurement import Batch, differentiating

METHODS = ("hutchinson", "hutch++")

Groups = Mapping[str, Sequence[slice]]
"""Coordinates of the operator by the name of what they belong to."""


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes with the standard error of that mean."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class TraceEstimate:
    """The trace of an operator; ``layers`` are the traces of diagonal blocks from the same products."""

    value: float
    standard_error: float
    num_matvecs: int
    layers: dict[str, Estimate]


@dataclass(frozen=True)
class TraceResult:
    """The trace of a Hessian with everything that says what it is."""

    value: float
    standard_error: float
    """From the sample variance of the random probes; 0 where Hutch++ saw the whole range of a small Hessian."""
    num_matvecs: int
    """Hessian-vector products spent; below ``num_probes`` only where Hutch++ needed no more."""
    num_probes: int
    method: str
    seed: int
    space: str
    loss: float
    """Σ nll ÷ Σ counted labels over the same batches, in nats."""
    num_examples: int
    num_labels: int
    num_parameters: int
    seconds: float
    layers: dict[str, Estimate]
    """Trace of the diagonal block of every layer; they add up to ``value``. Empty unless ``group`` was given."""


def trace(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    num_probes: int = 100,
    space: str = "adapter",
    seed: int = 0,
    *,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    group: str | None = None,
    progress: bool = False,
    **operator_options: Any,
) -> TraceResult:
    """The trace of the Hessian of the loss over all batches together: the sum of its eigenvalues.

    Divided by ``num_parameters`` it is the average curvature over random directions.

    Args:
        model: transformers or PEFT model; measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        num_probes: Hessian-vector products to spend, whichever the method. Hutchinson takes one a probe; Hutch++ a
            third for its sketch, a third for the trace on it and the rest for probes of the remainder. At least 2 and
            4, or there would be no standard error.
        space: coordinates, as in `CurvatureOperator`.
        seed: of the random signs, which are the same on every device; global generators are left alone.
        method: ``hutchinson`` or ``hutch++``; the latter keeps two sets of num_probes/3 vectors of all parameters.
        group: also give the trace of every ``module`` or ``block``, at no further product.
        progress: show a progress bar.
        operator_options: passed to `CurvatureOperator`.

    Raises:
        UsageError: an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss or a product is NaN or infinite.
    """
    began = time.perf_counter()
    _check_arguments(num_probes, method)
    if group is not None:
        check_group(group)
    operator = CurvatureOperator(model, batches, space=space, **operator_options)
    groups = None if group is None else group_coordinates(operator.names, operator.sizes, group)
    estimator = hutchinson_trace if method == "hutchinson" else hutchpp_trace
    with differentiating(operator.objective.model):
        estimate = estimator(operator, num_probes, seed, groups=groups, progress=progress)
    return TraceResult(
        value=estimate.value,
        standard_error=estimate.standard_error,
        num_matvecs=estimate.num_matvecs,
        num_probes=num_probes,
        method=method,
        seed=seed,
        space=operator.space,
        loss=operator.loss,
        num_examples=operator.num_examples,
        num_labels=operator.num_labels,
        num_parameters=operator.size,
        seconds=time.perf_counter() - began,
        layers=estimate.layers,
    )


def hutchinson_trace(
    operator: SymmetricOperator,
    num_probes: int = 100,
    seed: int = 0,
    *,
    groups: Groups | None = None,
    progress: bool = False,
) -> TraceEstimate:
    """Hutchinson's estimate of tr H from ``num_probes`` ≥ 2 products with vectors of random signs.

    ``groups`` asks for Σ H_ii over sets of coordinates as well; each is as unbiased as the whole.

    Raises:
        UsageError: too few probes.
        NonFiniteLossError: a product is NaN or infinite.
    """
    _check_arguments(num_probes, "hutchinson")
    with _bar(num_probes, progress) as bar:
        samples = _samples(operator, num_probes, torch.Generator().manual_seed(seed), groups or {}, bar)
    return _estimate(np.zeros(samples.shape[1]), samples, groups or {}, num_probes)


def hutchpp_trace(
    operator: SymmetricOperator,
    num_probes: int = 100,
    seed: int = 0,
    *,
    groups: Groups | None = None,
    progress: bool = False,
) -> TraceEstimate:
    """Hutch++'s estimate of tr H from ``num_probes`` ≥ 4 products; exact up to rounding for rank ≤ num_probes/3.

    The standard error is that of the Hutchinson part; the part on the sketch has none.

    Raises:
        UsageError: too few probes.
        NonFiniteLossError: a product is NaN or infinite.
    """
    _check_arguments(num_probes, "hutch++")
    groups = groups or {}
    generator = torch.Generator().manual_seed(seed)
    width = min(num_probes // 3, operator.size)
    with _bar(num_probes, progress) as bar:
        sketch = [finite_product(operator, random_signs(operator, generator)) for _ in _ticking(width, bar)]
        basis = torch.linalg.qr(torch.stack(sketch, dim=1)).Q.T.contiguous()
        del sketch
        exact = np.zeros(1 + len(groups))
        for row in _ticking(width, bar):
            product = finite_product(operator, basis[row])
            # diag H = diag QQᵀH + diag (I - QQᵀ)HQQᵀ + diag (I - QQᵀ)H(I - QQᵀ); the second adds up to 0 over all
            # coordinates, not over some.
            exact += _sums(basis[row] * (product + _project_out(basis, product)), groups)
        if width == operator.size:
            return _estimate(exact, np.zeros((2, 1 + len(groups))), groups, 2 * width)
        deflated = _Deflated(operator, basis)
        samples = _samples(deflated, num_probes - 2 * width, generator, groups, bar)
    return _estimate(exact, samples, groups, num_probes)


def random_signs(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Independent entries ±1 (n,), drawn on the CPU so that every device gets the same."""
    signs = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return signs.to(operator.device, operator.dtype).mul_(2).sub_(1)


class _Deflated:
    """(I - QQᵀ)·H·(I - QQᵀ) for orthonormal rows Qᵀ (k, n)."""

    def __init__(self, operator: SymmetricOperator, basis: Tensor) -> None:
        self._operator, self._basis = operator, basis
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        return _project_out(self._basis, self._operator @ _project_out(self._basis, vector))


def _project_out(basis: Tensor, vector: Tensor) -> Tensor:
    return torch.addmv(vector, basis.T, basis @ vector, alpha=-1)


def _samples(
    operator: SymmetricOperator, count: int, generator: torch.Generator, groups: Groups, bar: Any
) -> np.ndarray:
    """Hutchinson samples (count, 1 + groups) of the trace over all coordinates and over each group."""
    probes = (random_signs(operator, generator) for _ in _ticking(count, bar))
    return np.stack([_sums(signs * finite_product(operator, signs), groups) for signs in probes])


def _sums(values: Tensor, groups: Groups) -> np.ndarray:
    """The sum of all entries, then that of each group, in float64."""
    sets = [[slice(None)], *groups.values()]
    sums = [torch.stack([values[part].sum(dtype=torch.float64) for part in slices]).sum() for slices in sets]
    return torch.stack(sums).cpu().numpy()


def _estimate(exact: np.ndarray, samples: np.ndarray, groups: Groups, num_matvecs: int) -> TraceEstimate:
    values = exact + samples.mean(axis=0)
    errors = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    whole, *layers = [Estimate(float(value), float(error)) for value, error in zip(values, errors, strict=True)]
    return TraceEstimate(whole.value, whole.standard_error, num_matvecs, dict(zip(groups, layers, strict=True)))


def _bar(total: int, progress: bool) -> Any:
    return tqdm(total=total, desc="trace", unit="product", disable=not progress, leave=False)


def _ticking(count: int, bar: Any) -> Iterator[int]:
    for index in range(count):
        yield index
        bar.update()


def _check_arguments(num_probes: int, method: str) -> None:
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    least = 2 if method == "hutchinson" else 4
    if num_probes < least:
        raise UsageError(f"num_probes: {num_probes}; allowed with {method}: at least {least}, for a standard error")
