"""How products with a curvature matrix are made within a memory budget, decided before the first of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.measurement import free_bytes

Product = Literal["auto", "reuse", "rebuild", "finite_difference"]
PRODUCTS = ("auto", "reuse", "rebuild", "finite_difference")

DEFAULT_MEMORY_BYTES = 4 * 2**30
"""What graphs may take by default, or half of what is free where that is less; on CUDA it is half of what is free."""


@dataclass(frozen=True)
class Plan:
    """How products are made, and the estimate behind it.

    Args:
        product: ``reuse`` the graphs of the gradient, ``rebuild`` some or all of them for every product, or take the
            ``finite_difference`` of two gradients.
        rows: most examples a forward pass.
        retained: how many forward passes keep their graphs, from the first on.
        example_bytes: memory of the graph of one example of the longest batch; 0 where it was not measured.
        total_bytes: of the graphs of all batches together, estimated from it.
        budget_bytes: what graphs may take.
    """

    product: Literal["reuse", "rebuild", "finite_difference"]
    rows: int
    retained: int
    example_bytes: int
    total_bytes: int
    budget_bytes: int


def make_plan(product: Product, example_bytes: int, shapes: Sequence[tuple[int, int]], budget: int) -> Plan:
    """The fastest way that fits: all graphs kept, else as many as possible, else no graph of the gradient at all.

    Args:
        product: ``auto``, or what the caller insists on; the examples a forward pass are then still made to fit.
        example_bytes: memory of the graph of one example of the longest batch.
        shapes: (examples, positions) of each batch; a graph grows with their product at most.
        budget: bytes.
    """
    longest = max(length for _, length in shapes)
    sizes = [math.ceil(rows * example_bytes * length / longest) for rows, length in shapes]
    fitting = budget // max(example_bytes, 1)
    rows = max(count for count, _ in shapes)
    retained = 0
    if product == "reuse" or (product == "auto" and sum(sizes) <= budget):
        product, retained = "reuse", len(shapes)
    elif product == "finite_difference" or (product == "auto" and fitting == 0):
        # A first-order graph is about a third of that of the gradient.
        product, rows = "finite_difference", min(rows, max(1, 3 * fitting))
    else:
        rows = min(rows, max(1, fitting))
        if product == "auto":
            parts = [part * example_bytes * length / longest for count, length in shapes for part in deal(count, rows)]
            room = budget - rows * example_bytes  # for the one at work
            retained = sum(used <= room for used in accumulate(parts))
        product = "rebuild"
    return Plan(product, rows, retained, example_bytes, sum(sizes), budget)


def deal(count: int, rows: int) -> list[int]:
    """``count`` examples in passes of at most ``rows``."""
    return [min(rows, count - first) for first in range(0, count, rows)]


def graph_bytes_of(outputs: Sequence[Tensor | None], excluded_storages: Collection[int] = ()) -> int:
    """Bytes of the distinct storages that the autograd graph behind ``outputs`` keeps alive.

    Read off the graph's own saved tensors, so it is what the graph holds and not an estimate from shapes (equal to
    counting with ``saved_tensors_hooks``, which would slow down every later pass through the graph).
    """
    storages: dict[int, int] = {}
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn for output in outputs if output is not None and output.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for tensor in _saved_tensors(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in excluded_storages:
                storages[storage.data_ptr()] = storage.nbytes()
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return sum(storages.values())


def _saved_tensors(node: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for name in _saved_names(type(node)):
        value = getattr(node, name)
        values = value if isinstance(value, (tuple, list)) else (value,)
        found.extend(item for item in values if isinstance(item, Tensor))
    return found


@cache
def _saved_names(node_type: type) -> list[str]:
    # `parts` is where our own functions keep what is neither an input nor an output.
    return [name for name in dir(node_type) if name in ("saved_tensors", "parts") or name.startswith("_saved_")]


def memory_budget(device: torch.device) -> int:
    """Bytes that graphs may take where the caller does not say."""
    return free_bytes(device) // 2 if device.type == "cuda" else min(DEFAULT_MEMORY_BYTES, free_bytes(device) // 2)
