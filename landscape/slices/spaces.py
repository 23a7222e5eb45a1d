"""What a slice moves: its points as weights, and the ways of showing several points to the model.

A space holds the directions of a slice. A *way* shows displaced weights for the time of one forward pass, in which the
batch is repeated, point after point: rows that belong to different points meet different weights. What the points share
(base matrix products, norms, attention) is launched once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from landscape.errors import unknown

SPACES = ("adapter", "merged", "tangent")
"""``adapter``: the trainable parameters. ``merged``: W' = W + s·BA of the adapted layers, in every direction.
``tangent``: W' in the directions in which training A and B can move it."""

EVALUATIONS = ("auto", "in_place", "merged", "stacked")
"""``in_place``: the parameters read from a displaced copy; works for every model. ``merged``: one point, its adapter
added into W. ``stacked``: several points a forward pass. ``auto``: the fastest in a short measurement."""


class Way(Protocol):
    """One way of evaluating up to ``stack`` points in one forward pass."""

    @property
    def kind(self) -> str:
        """One of `EVALUATIONS`."""
        ...

    @property
    def stack(self) -> int:
        """How many points."""
        ...

    def at(self, coefficients: Tensor) -> AbstractContextManager[None]:
        """Inside, the model computes at these points (points, dims); afterwards it is as it was, bit for bit."""
        ...


class Space(Protocol):
    """The directions of a slice, and how the model gets there."""

    dims: int
    num_parameters: int
    point_bytes: int
    """Memory that every further point of a stack takes, activations not counted."""

    def at_origin(self) -> AbstractContextManager[None]:
        """Inside, the model itself is at the origin."""
        ...

    def ways(self, stacks: Sequence[int]) -> list[Way]:
        """What this model allows, the best guess first; ``stacks`` are sizes worth trying, largest first."""
        ...


def check_space(space: str) -> None:
    """Refuse a space that is not in `SPACES`.

    Raises:
        UsageError: lists what is allowed and the nearest match.
    """
    if space not in SPACES:
        raise unknown("space", space, SPACES)


def point_rows(x: Tensor, points: int) -> Tensor:
    """A layer's input as (points, rows, in)."""
    return x.reshape(points, -1, x.shape[-1])


def as_output(y: Tensor, x: Tensor) -> Tensor:
    """(points, rows, out) in the leading shape of the layer's input ``x``."""
    return y.reshape(*x.shape[:-1], y.shape[-1])
