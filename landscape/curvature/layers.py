"""Sharpness of every layer: the largest eigenvalue of its diagonal block of the Hessian.

The loss's curvature when one layer moves and all others stand still. By Cauchy's interlacing theorem (Horn and Johnson,
Matrix Analysis, 4.3.28) no block's largest eigenvalue exceeds that of the whole Hessian; how far the whole exceeds the
largest of them is due to layers moving together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor, nn
from tqdm import tqdm

from landscape.curvature.krylov import SymmetricOperator
from landscape.curvature.lanczos import lanczos
from landscape.curvature.operators import CurvatureOperator
from landscape.errors import UsageError, unknown
from landscape.measurement import Batch, differentiating

GROUPS = ("module", "block")
"""``module``: the tensors of one adapted module together, such as A and B; ``block``: a transformer block's."""


@dataclass(frozen=True, eq=False)
class LayerResult:
    """Largest eigenvalue of every layer's diagonal block; arrays are (number of layers,), in the order of ``names``."""

    names: tuple[str, ...]
    values: np.ndarray
    residuals: np.ndarray
    """float64, ‖H·x - θ·x‖ ÷ |θ| within the block."""
    converged: np.ndarray
    """bool, each as in `EigenResult`."""
    num_matvecs: np.ndarray
    """Hessian-vector products spent on each layer; every one costs as much as a product with the whole Hessian."""
    layer_parameters: np.ndarray
    group: str
    tol: float
    seed: int
    space: str
    loss: float
    """Σ nll ÷ Σ counted labels over the same batches, in nats."""
    num_examples: int
    num_labels: int
    num_parameters: int
    seconds: float


def layer_eigenvalues(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    space: str = "adapter",
    tol: float = 1e-2,
    max_matvecs: int = 100,
    seed: int = 0,
    *,
    group: str = "module",
    progress: bool = False,
    **operator_options: Any,
) -> LayerResult:
    """The largest (algebraic) eigenvalue of the diagonal block of every layer.

    Args:
        model: transformers or PEFT model; measured in evaluation mode and left exactly as found.
        batches: dicts of right-padded tensors with ``labels``, or one such dict.
        space: coordinates, as in `CurvatureOperator`.
        tol: relative residual at which an eigenvalue counts as found.
        max_matvecs: most Hessian-vector products a layer.
        seed: of the random vectors; global generators are neither used nor changed.
        group: what a layer is, one of `GROUPS`.
        progress: show a progress bar over layers.
        operator_options: passed to `CurvatureOperator`.

    Raises:
        UsageError: an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss or a product is NaN or infinite.
    """
    began = time.perf_counter()
    check_group(group)
    operator = CurvatureOperator(model, batches, space=space, **operator_options)
    layers = group_coordinates(operator.names, operator.sizes, group)
    blocks = [BlockOperator(operator, slices) for slices in layers.values()]
    bar = tqdm(blocks, desc="layers", unit="layer", disable=not progress, leave=False)
    with differentiating(operator.objective.model):
        pairs = [lanczos(block, tol=tol, max_matvecs=max_matvecs, seed=seed) for block in bar]
    return LayerResult(
        names=tuple(layers),
        values=np.concatenate([pair.values for pair in pairs]),
        residuals=np.concatenate([pair.relative_residuals for pair in pairs]),
        converged=np.array([pair.converged for pair in pairs]),
        num_matvecs=np.array([pair.num_matvecs for pair in pairs]),
        layer_parameters=np.array([block.size for block in blocks]),
        group=group,
        tol=tol,
        seed=seed,
        space=operator.space,
        loss=operator.loss,
        num_examples=operator.num_examples,
        num_labels=operator.num_labels,
        num_parameters=operator.size,
        seconds=time.perf_counter() - began,
    )


class BlockOperator:
    """The diagonal block of a symmetric operator at some of its coordinates.

    Args:
        operator: the whole, (n, n).
        slices: disjoint parts of 0..n; a vector of the block is their parts one after the other.

    Raises:
        UsageError: no coordinate, one twice, or one outside the operator.
    """

    def __init__(self, operator: SymmetricOperator, slices: Sequence[slice]) -> None:
        bounds = sorted((part.start, part.stop) for part in slices)
        stops = [0, *(stop for _, stop in bounds)]
        disjoint = all(before <= first < stop for before, (first, stop) in zip(stops, bounds, strict=False))
        if not (bounds and disjoint and stops[-1] <= operator.size):
            raise UsageError(f"slices: {list(slices)}; needed: not empty, disjoint and within 0 to {operator.size}")
        self._operator, self._slices = operator, list(slices)
        self._sizes = [part.stop - part.start for part in slices]
        self.size, self.dtype, self.device = sum(self._sizes), operator.dtype, operator.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The block times a vector (size,)."""
        padded = vector.new_zeros(self._operator.size)
        for part, values in zip(self._slices, vector.split(self._sizes), strict=True):
            padded[part] = values
        product = self._operator @ padded
        return torch.cat([product[part] for part in self._slices])


def check_group(group: str) -> None:
    """Refuse a group that is not in `GROUPS`.

    Raises:
        UsageError: lists what is allowed and the nearest match.
    """
    if group not in GROUPS:
        raise unknown("group", group, GROUPS)


def group_coordinates(names: Sequence[str], sizes: Sequence[int], group: str = "module") -> dict[str, list[slice]]:
    """The coordinates of every layer, in the order in which layers first appear; together they are all coordinates.

    Args:
        names: of the tensors behind a flat vector, as ``named_parameters()`` spells them.
        sizes: of the tensors, in elements.
        group: ``module``: by `module_of`; ``block``: by `block_of`.
    """
    check_group(group)
    layer_of = module_of if group == "module" else block_of
    layers: dict[str, list[slice]] = {}
    first = 0
    for name, size in zip(names, sizes, strict=True):
        parts = layers.setdefault(layer_of(name), [])
        if parts and parts[-1].stop == first:
            parts[-1] = slice(parts[-1].start, first + size)
        else:
            parts.append(slice(first, first + size))
        first += size
    return layers


_ADAPTER_PREFIXES = tuple(PEFT_TYPE_TO_PREFIX_MAPPING.values())


def module_of(name: str) -> str:
    """The path of the module that a parameter belongs to.

    Tensors that an adapter adds belong to the module it adapts, and so does the module's own weight:
    ``h.0.q.lora_A.default.weight``, ``h.0.q.base_layer.weight`` and ``h.0.q.weight`` all belong to ``h.0.q``.
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part == "modules_to_save" or part.startswith(_ADAPTER_PREFIXES):
            return ".".join(parts[:position]) or name
    parts = parts[:-1]
    return ".".join(parts[:-1] if parts[-1:] == ["base_layer"] else parts) or name


def block_of(name: str) -> str:
    """The path of the transformer block that a parameter belongs to; outside of all blocks, that of its module.

    A block is what the first number of a path counts: ``model.layers.3``, ``encoder.block.3``.
    """
    parts = module_of(name).split(".")
    number = next((position for position, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])
