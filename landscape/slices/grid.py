"""Slices of the loss on a grid."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.errors import UsageError
from landscape.measurement import Batch
from landscape.slices.adapter_space import AdapterSpace
from landscape.slices.coordinates import Coordinates, Vector
from landscape.slices.directions import check_normalization, drawn, normalized
from landscape.slices.evaluation import EvaluationSet, Evaluator, evaluating
from landscape.slices.examples import Metric, loss
from landscape.slices.memory import require_memory
from landscape.slices.merged_space import MergedSpace
from landscape.slices.result import SliceResult
from landscape.slices.spaces import Space, check_space
from landscape.slices.tangent_space import TangentSpace


class SliceOptions(TypedDict, total=False):
    """What every kind of slice can be told; explained at `loss_slice`."""

    draw: int
    directions: Sequence[Vector] | Tensor | None
    origin: Vector | None
    axes: Sequence[Any] | None
    metric: Metric
    autocast: torch.dtype | None
    evaluation: str


@dataclass(frozen=True)
class Row:
    """One line of a grid: the loss and its standard error, (points,) each."""

    loss: np.ndarray
    standard_error: np.ndarray


def loss_slice(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    dims: int = 2,
    points: int | tuple[int, int] = 21,
    radius: float | tuple[float, float] = 1.0,
    normalization: str | None = None,
    space: str = "adapter",
    seed: int = 0,
    *,
    finished: Mapping[int, Row] | None = None,
    on_row: Callable[[int, Row], None] | None = None,
    **options: Unpack[SliceOptions],
) -> SliceResult:
    """The loss on a grid in the plane (or on the line) that one or two directions span.

    Args:
        model: transformers or PEFT model; measured in evaluation mode and left exactly as found, also after an
            exception: parameters are never written, layers or parameters only look elsewhere for a moment.
        batches: dicts of right-padded tensors with ``labels``, or one such dict; the loss is that of `landscape.loss`
            over all of them together.
        dims: 1 or 2.
        points: an axis, or of each axis; an odd number has the origin among them.
        radius: the axes go from -radius to radius.
        normalization: one of `landscape.slices.NORMALIZATIONS`; default: ``filter`` for random directions, ``none`` for
            given ones.
        space: one of `landscape.slices.SPACES`.
        seed: of the random directions.
        finished: rows of an earlier, interrupted call with the same arguments, by index: they are not measured again.
        on_row: called with the index and the row when one is measured; a 1D slice is one row.
        draw: which of the seed's pairs of random directions.
        directions: instead of random ones, in space ``adapter``; used as they are unless ``normalization`` is given,
            and not made orthogonal.
        origin: where coordinate 0 is, in space ``adapter``; default: where the parameters are.
        axes: coordinates of each axis, instead of ``points`` and ``radius``.
        metric: instead of the loss: from (labels, classes) logits and (labels,) labels to (labels,) values, which are
            averaged over counted labels.
        autocast: run the forward passes under autocast to this precision; default: the model's own precision.
        evaluation: one of `landscape.slices.EVALUATIONS`; with ``auto`` results are equal to rounding only.

    Raises:
        UsageError: an argument out of range, vectors of another adapter, a model or batches that cannot be measured, or
            directions that do not change the loss.
        LandscapeError: too little memory.
    """
    began = time.perf_counter()
    prepared = prepare_slice(model, batches, dims, points, radius, normalization, space, seed, **options)
    columns = prepared.axes[-1]
    lines: list[tuple[float, ...]] = [()] if dims == 1 else [(value,) for value in prepared.axes[0]]
    rows = dict(finished or {})
    _check_rows(rows, len(lines), len(columns))
    for index, line in enumerate(lines):
        if index not in rows:
            rows[index] = prepared.evaluate(np.array([(*line, value) for value in columns]))
            if on_row is not None:
                on_row(index, rows[index])
    values = np.stack([rows[index].loss for index in range(len(lines))])
    errors = np.stack([rows[index].standard_error for index in range(len(lines))])
    return prepared.result(values, errors, time.perf_counter() - began)


def loss_slices(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    dims: int = 2,
    points: int | tuple[int, int] = 21,
    radius: float | tuple[float, float] = 1.0,
    normalization: str | None = None,
    space: str = "adapter",
    seed: int = 0,
    *,
    draws: int = 5,
    **options: Unpack[SliceOptions],
) -> SliceEnsemble:
    """`loss_slice` along several independent draws of random directions, so that a picture is never one draw.

    Raises:
        UsageError: as `loss_slice`; fewer than 2 draws, or given directions.
    """
    if draws < 2:
        raise UsageError(f"draws: {draws}; allowed: at least 2")
    if options.get("directions") is not None:
        raise UsageError("directions: given ones cannot be drawn again; use loss_slice")
    # An iterator can be read once.
    listed = batches if isinstance(batches, Mapping) else list(batches)
    first = options.get("draw", 0)
    slices = []
    for index in range(draws):
        drawn_options: SliceOptions = {**options, "draw": first + index}
        slices.append(loss_slice(model, listed, dims, points, radius, normalization, space, seed, **drawn_options))
    return SliceEnsemble(slices)


@dataclass(frozen=True, eq=False)
class SliceEnsemble:
    """Slices of one model that differ in their random directions alone."""

    slices: list[SliceResult]

    @property
    def mean(self) -> np.ndarray:
        """Over draws, in the shape of a slice's ``loss``; NaN or infinite where any draw is."""
        return np.mean([item.loss for item in self.slices], axis=0)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation over draws."""
        with np.errstate(invalid="ignore"):
            return np.std([item.loss for item in self.slices], axis=0, ddof=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of ``mean``, over draws."""
        return self.spread / math.sqrt(len(self.slices))


@dataclass(frozen=True, eq=False)
class PreparedSlice:
    """Everything checked and in place; only the points are left to choose."""

    axes: tuple[np.ndarray, ...]
    data: EvaluationSet
    evaluator: Evaluator
    fields: Mapping[str, Any]

    def evaluate(self, coordinates: np.ndarray) -> Row:
        """The metric at points (points, dims)."""
        device = next(self.data.model.parameters()).device
        means = self.evaluator(torch.as_tensor(coordinates, dtype=torch.float64, device=device))
        return Row(np.array([mean.value for mean in means]), np.array([mean.standard_error for mean in means]))

    def result(self, values: np.ndarray, errors: np.ndarray, seconds: float) -> SliceResult:
        """From values on the whole grid, in its order."""
        shape = tuple(map(len, self.axes))
        return SliceResult(
            axes=self.axes,
            loss=values.reshape(shape),
            standard_error=errors.reshape(shape),
            origin_loss=self.evaluator.origin.value,
            metric=getattr(self.data.metric, "__name__", type(self.data.metric).__name__),
            num_examples=self.data.num_examples,
            num_labels=self.data.num_labels,
            precision=self.data.precision,
            evaluation=self.evaluator.way,
            seconds_a_point=self.evaluator.seconds,
            seconds=seconds,
            **self.fields,
        )


def prepare_slice(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    dims: int,
    points: int | tuple[int, int],
    radius: float | tuple[float, float],
    normalization: str | None,
    space: str,
    seed: int,
    *,
    draw: int = 0,
    directions: Sequence[Vector] | Tensor | None = None,
    origin: Vector | None = None,
    axes: Sequence[Any] | None = None,
    metric: Metric = loss,
    autocast: torch.dtype | None = None,
    evaluation: str = "auto",
) -> PreparedSlice:
    """Check the arguments of `loss_slice` and build what evaluates its points."""
    check_space(space)
    normalization = normalization or ("filter" if directions is None else "none")
    check_normalization(normalization)
    if dims not in (1, 2):
        raise UsageError(f"dims: {dims}; allowed: 1, 2")
    for name, value in (("seed", seed), ("draw", draw)):
        if value < 0:
            raise UsageError(f"{name}: {value}; allowed: at least 0")
    grid = regular_axes(dims, points, radius) if axes is None else _checked_axes(axes, dims)
    if space != "adapter" and (directions is not None or origin is not None):
        name = "directions" if directions is not None else "origin"
        raise UsageError(f"{name}: vectors of the adapter; space {space!r} has random directions at the model only")
    data = EvaluationSet.of(model, batches, metric, autocast)
    fields: dict[str, Any] = {"space": space, "normalization": normalization, "directions": None, "cosine": None}
    fields |= {"seed": seed, "draw": draw} if directions is None else {"seed": None, "draw": None}
    keys = [(seed, draw, axis) for axis in range(dims)]
    moved: Space
    if space == "adapter":
        moved = _adapter_space(data.model, dims, keys, directions, origin, normalization)
        fields["directions"] = moved.directions
        fields["cosine"] = float(F.cosine_similarity(*moved.directions.double(), dim=0)) if dims == 2 else None
    else:
        with evaluating(data.model):
            moved = {"merged": MergedSpace, "tangent": TangentSpace}[space](data.model, keys, normalization)
    evaluator = Evaluator(data, moved, evaluation, math.prod(map(len, grid)))
    return PreparedSlice(grid, data, evaluator, {**fields, "num_parameters": moved.num_parameters})


def _adapter_space(
    model: nn.Module,
    dims: int,
    keys: Sequence[tuple[int, int, int]],
    directions: Sequence[Vector] | Tensor | None,
    origin: Vector | None,
    normalization: str,
) -> AdapterSpace:
    if directions is not None and len(directions) != dims:
        raise UsageError(f"directions: {len(directions)} given; dims is {dims}")
    coordinates = Coordinates(model)
    size = coordinates.size * coordinates.dtype.itemsize
    require_memory((2 * dims + 2) * size, coordinates.device, f"{dims} directions of {coordinates.size} parameters")
    start = coordinates.flatten() if origin is None else coordinates.vector(origin, "origin")
    if not bool(torch.isfinite(start).all()):
        raise UsageError("origin: NaN or infinite parameters; the run had diverged")
    vectors: list[Tensor] = []
    for position, key in enumerate(keys):
        if directions is None:
            vector = drawn(coordinates, start, normalization, key)
        else:
            given = coordinates.vector(directions[position], f"directions[{position}]")
            vector = normalized(given, coordinates, start, normalization)
        if not bool(torch.isfinite(vector).all()):
            raise UsageError(f"directions[{position}]: NaN or infinite")
        if not bool(vector.any()):
            raise UsageError(f"directions[{position}]: zero")
        vectors.append(vector)
    return AdapterSpace(model, coordinates, torch.stack(vectors), start)


def regular_axes(
    dims: int, points: int | tuple[int, int], radius: float | tuple[float, float]
) -> tuple[np.ndarray, ...]:
    """Equally spaced coordinates from -radius to radius, one array an axis.

    Raises:
        UsageError: fewer than 2 points, or a radius that is not a positive number.
    """
    counts = points if isinstance(points, Sequence) else (points,) * dims
    radii = radius if isinstance(radius, Sequence) else (radius,) * dims
    for name, values in (("points", counts), ("radius", radii)):
        if len(values) != dims:
            raise UsageError(f"{name}: {len(values)} values; dims is {dims}")
    for count in counts:
        if int(count) != count or count < 2:
            raise UsageError(f"points: {count}; allowed: whole numbers from 2")
    for value in radii:
        if not 0 < value < math.inf:
            raise UsageError(f"radius: {value}; allowed: numbers greater than 0")
    return tuple(_symmetric(int(count), float(value)) for count, value in zip(counts, radii, strict=True))


def _symmetric(count: int, radius: float) -> np.ndarray:
    """Exactly symmetric, with an exact 0 in the middle of an odd number."""
    half = np.linspace(-radius, radius, count)
    return (half - half[::-1]) / 2


def _checked_axes(axes: Sequence[Any], dims: int) -> tuple[np.ndarray, ...]:
    arrays = tuple(np.asarray(axis, dtype=np.float64) for axis in axes)
    if len(arrays) != dims:
        raise UsageError(f"axes: {len(arrays)} given; dims is {dims}")
    for position, array in enumerate(arrays):
        ascending = array.ndim == 1 and len(array) > 1 and bool((np.diff(array) > 0).all())
        if not ascending or not np.isfinite(array).all():
            raise UsageError(f"axes[{position}]: allowed: at least 2 finite numbers, ascending")
    return arrays


def _check_rows(rows: Mapping[int, Row], lines: int, columns: int) -> None:
    for index, row in rows.items():
        if not 0 <= index < lines or row.loss.shape != (columns,) or row.standard_error.shape != (columns,):
            raise UsageError(f"finished: row {index} does not fit a grid of {lines} rows of {columns} points")
