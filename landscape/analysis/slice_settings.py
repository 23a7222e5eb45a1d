"""What is asked of a slice: checked before anything is loaded, and the slice's identity."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from landscape.analysis.checks import check_counts
from landscape.analysis.series import SPLIT
from landscape.errors import UsageError, unknown

DIRECTIONS = ("random", "update", "gradient", "top", "pca", "line")
"""``random``; ``update``: the step from the snapshot before; ``gradient``: of the loss, of length 1; ``top``: unit
eigenvectors of the largest eigenvalues; ``pca``: principal components of the run's snapshots up to this one; ``line``:
through two snapshots, or the plane through three. A second axis beside ``update`` and ``gradient`` is random, of the
first one's length."""

THROUGH_SNAPSHOTS = ("pca", "line")
"""Planes that snapshots lie on: drawn as they are, over the extent of the snapshots."""

EVALUATION_SPLITS = ("probe", "eval")
"""``probe``: a fixed subset of the training examples; ``eval``: held-out ones."""

PRECISIONS = ("bfloat16", "float16")
"""Of autocast, instead of the model's own."""

DEFAULT_RADIUS = 1.0
DEFAULT_TRAJECTORY = 32
_TOLERANCE_RANGE = "greater than 0 and less than 1"


@dataclass(frozen=True)
class SliceSettings:
    """What decides the values of a slice at a snapshot.

    Attributes:
        dims: 1 or 2.
        points: an axis.
        radius: the axes go from -radius to radius; default: 1 for random ones and the update, with ``gradient`` and
            ``top`` (as they are) where a linear or quadratic loss would change by 1 nat, with ``pca`` and ``line`` as
            far as the snapshots.
        normalization: one of `landscape.slices.NORMALIZATIONS`; default: ``filter`` for random directions, ``none`` for
            others.
        space: one of `landscape.slices.SPACES`.
        directions: one of `DIRECTIONS`; default: ``random``, or ``pca`` where a trajectory is asked for.
        draws: how many pairs (1D: single ones) of random directions.
        seed: of what is random.
        split: one of `EVALUATION_SPLITS`, on which everything is measured.
        num_examples: only the first so many of the split; default: all.
        precision: one of `PRECISIONS`, of forward passes on the slice; default: the model's own.
        tolerance: fill the grid adaptively: largest error of what is interpolated, as a share of the range of the
            losses; default: measure every point.
        trajectory: project so many of the run's snapshots, evenly spaced up to this one, on the plane of the first
            draw; default: 32 with ``pca``, none with others.
        delta: rise of the loss, in nats, at which widths are measured.
        common: drawn and normalized, or found, at this step, the same directions and axes serve for the slices at all
            steps; ``pca`` is of the snapshots up to this one. Default: every slice has its own.
    """

    dims: int = 2
    points: int = 21
    radius: float | None = None
    normalization: str | None = None
    space: str = "adapter"
    directions: str | None = None
    draws: int = 1
    seed: int = 0
    num_examples: int | None = None
    tolerance: float | None = None
    trajectory: int | None = None
    delta: float = 0.1
    common: int | None = None
    split: str = SPLIT
    precision: str | None = None

    def checked(self, *, joint: bool = False) -> SliceSettings:
        """With every default in place but a radius that depends on what is measured.

        Args:
            joint: for one slice of several runs (`landscape.analysis.slice_joint`), by default in their ``pca``.

        Raises:
            UsageError: a value out of range or a name that is not known (nearest match), or two that exclude each
                other.
        """
        from landscape.slices import NORMALIZATIONS, SPACES

        directions = self.directions or ("pca" if self.trajectory or joint else "random")
        normalization = self.normalization or ("filter" if directions == "random" else "none")
        trajectory = self.trajectory
        if trajectory is None:
            trajectory = DEFAULT_TRAJECTORY if directions == "pca" else 0
        radius = self.radius
        if radius is None and (directions in ("random", "update") or normalization != "none"):
            radius = DEFAULT_RADIUS
        full = replace(
            self,
            directions=directions,
            normalization=normalization,
            radius=None if radius is None else float(radius),
            trajectory=trajectory,
            delta=float(self.delta),
        )
        names = {
            "directions": DIRECTIONS, "normalization": NORMALIZATIONS, "space": SPACES, "split": EVALUATION_SPLITS,
        }  # fmt: skip
        for key, allowed in names.items():
            if getattr(full, key) not in allowed:
                raise unknown(key, getattr(full, key), allowed)
        if full.precision is not None and full.precision not in PRECISIONS:
            raise unknown("precision", full.precision, PRECISIONS)
        full._check_numbers()
        full._check_combinations()
        if joint:
            full._check_joint()
        return full

    def _check_numbers(self) -> None:
        if self.dims not in (1, 2):
            raise UsageError(f"dims: {self.dims}; allowed: 1, 2")
        check_counts(draws=self.draws, num_examples=self.num_examples)
        least = 3 if self.directions == "line" else 2
        for name, value, low in (
            ("points", self.points, least),
            ("seed", self.seed, 0),
            ("trajectory", self.trajectory or 0, 0),
            ("common", self.common or 0, 0),
        ):
            if value < low:
                raise UsageError(f"{name}: {value}; allowed: at least {low}")
        for name, value in (("radius", self.radius), ("delta", self.delta)):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name}: {value}; allowed: numbers greater than 0")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance: {self.tolerance}; allowed: {_TOLERANCE_RANGE}")

    def _check_combinations(self) -> None:
        if self.space != "adapter" and (self.directions != "random" or self.trajectory):
            what = "trajectory" if self.directions == "random" else "directions"
            raise UsageError(f"{what}: vectors of the adapter; space {self.space!r} has random directions only")
        if self.common is not None and self.directions == "line":
            raise UsageError(f"common: {self.common} with directions='line'; allowed: slices through one snapshot each")
        if self.common is not None and self.space != "adapter":
            raise UsageError(f"common: {self.common} with space={self.space!r}; allowed: adapter")
        if self.draws > 1 and self.directions != "random":
            raise UsageError(f"draws: {self.draws} with directions={self.directions!r}; allowed: 1")
        if self.directions in THROUGH_SNAPSHOTS and self.normalization != "none":
            raise UsageError(
                f"normalization: {self.normalization!r} with directions={self.directions!r}; allowed: none, since the "
                "snapshots would no longer lie where they are drawn"
            )
        if self.directions == "pca" and self.trajectory is not None and self.trajectory <= self.dims:
            raise UsageError(f"trajectory: {self.trajectory}; allowed with directions='pca': at least {self.dims + 1}")

    def _check_joint(self) -> None:
        if self.directions not in THROUGH_SNAPSHOTS:
            raise UsageError(f"directions: {self.directions!r} of several runs jointly; allowed: line, pca")
        if self.common is not None:
            raise UsageError(f"common: {self.common} of several runs jointly; allowed: none, they have one plane")

    @property
    def num_anchors(self) -> int:
        """Snapshots that one slice goes through: several with ``line``."""
        return self.dims + 1 if self.directions == "line" else 1

    @property
    def num_points(self) -> tuple[int, int]:
        """(fewest, most) points that one slice is measured at."""
        grid = self.points**self.dims
        # Adaptive filling ends at the earliest after a first grid, a round, and a test.
        fewest = grid if self.tolerance is None else min(grid, 7**self.dims + 32 + min(100, grid // 6))
        return self.draws * fewest, self.draws * grid

    def identity(self, **places: Any) -> str:
        """Short hash of these settings and of where they are applied."""
        # Left out where they are not used: slices from before there were such settings keep their names.
        later = ("common", "precision")
        own = {key: value for key, value in asdict(self).items() if key not in later or value is not None}
        described = json.dumps({**own, **places}, sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]
