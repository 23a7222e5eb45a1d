"""Evaluating the loss at many points of a slice, by the fastest of several ways."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import UsageError, unknown
from landscape.loss import MeanLoss, forward_losses, loss_kind, ratio_mean
from landscape.measurement import Batch, count_batches, free_bytes, measuring
from landscape.slices.coordinates import unwrap_parallel
from landscape.slices.examples import Examples, Metric, loss, prepare
from landscape.slices.memory import out_of_memory_explained
from landscape.slices.spaces import EVALUATIONS, Space, Way

MAX_STACK = 16
STACKED_TOKENS = {"cpu": 2048}
"""Beyond so many tokens a forward pass, a CPU gains nothing from stacking more points."""
STACKED_TOKENS_ELSEWHERE = 32768

FEW_POINTS = 64
"""With fewer points than this, ways are not compared: the first is taken."""

_ROUNDS = 2


@contextmanager
def evaluating(model: nn.Module, autocast: torch.dtype | None = None) -> Iterator[None]:
    """As `measuring` forward passes alone, under autocast if asked to."""
    device = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.enter_context(out_of_memory_explained())
        stack.enter_context(measuring(model, differentiable=False))
        stack.enter_context(_dora_uncached())
        if autocast is not None:
            stack.enter_context(torch.autocast(device, autocast))
        yield


def _dora_uncached():
    """DoRA can cache row norms of W', which displaced parameters would not change."""
    try:
        from peft.helpers import DoraCaching
    except ImportError:
        return nullcontext()
    return DoraCaching(enabled=False)


@dataclass(frozen=True)
class EvaluationSet:
    """What a slice is measured on, prepared once.

    Raises:
        UsageError: batches that cannot be measured, or a precision that autocast does not know.
    """

    model: nn.Module
    batches: list[dict[str, Any]]
    examples: list[Examples]
    num_examples: int
    num_labels: int
    metric: Metric
    autocast: torch.dtype | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Batch | Iterable[Batch],
        metric: Metric = loss,
        autocast: torch.dtype | None = None,
    ) -> EvaluationSet:
        """Check and count the batches; the model is unwrapped from DistributedDataParallel."""
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise UsageError(f"autocast: {autocast}; allowed: None, torch.bfloat16, torch.float16")
        model = unwrap_parallel(model)
        kind = loss_kind(model)
        counted = count_batches(batches, kind, next(model.parameters()).device)
        examples = [prepare(model, batch, kind) for batch in counted.batches]
        return cls(model, counted.batches, examples, counted.num_examples, counted.num_labels, metric, autocast)

    @property
    def precision(self) -> str:
        """What the forward passes compute in."""
        own = str(next(p.dtype for p in self.model.parameters() if p.is_floating_point())).removeprefix("torch.")
        return own if self.autocast is None else f"{str(self.autocast).removeprefix('torch.')} autocast over {own}"

    def sums(self, points: int = 1, metric: Metric | None = None) -> Tensor:
        """Σ metric of each example with the model as it is shown, (points, examples); inside `evaluating`."""
        return torch.cat([batch.sums(self.model, points, metric or self.metric) for batch in self.examples], dim=1)

    def means(self, sums: Tensor) -> list[MeanLoss]:
        """Mean over labels with its standard error over examples, one a row of (points, examples)."""
        counts = torch.cat([batch.counts for batch in self.examples]).cpu()
        return [ratio_mean(row, counts) for row in sums.cpu()]


class Evaluator:
    """The metric at points of a space, by the way that a short measurement found fastest.

    Every way first shows the origin, and is used only if its per-example losses there are those of the model's own
    forward pass. The points on which ways are compared are points of the slice, so little is computed
    twice. Ways agree to rounding; fixing one makes results equal bit for bit.

    Args:
        data: what is averaged over.
        space: what is moved.
        evaluation: one of `landscape.slices.spaces.EVALUATIONS`.
        num_points: how many are going to be asked for; comparing ways pays from `FEW_POINTS` on.

    Attributes:
        origin: the metric at the origin by the model's own forward pass.

    Raises:
        UsageError: an unknown evaluation, or one that this model or space does not allow.
    """

    def __init__(self, data: EvaluationSet, space: Space, evaluation: str = "auto", num_points: int = 0) -> None:
        self._data, self._space = data, space
        self._ways = _allowed(space.ways(_stacks(data, space)), evaluation)
        self._to_try = _ROUNDS * self._ways if num_points >= FEW_POINTS and len(self._ways) > 1 else []
        self._seconds: dict[Way, float] = {}
        with evaluating(data.model, data.autocast), space.at_origin():
            self._reference = torch.cat([forward_losses(data.model, batch).nll for batch in data.batches]).double()
            self.origin = data.means(self._reference[None] if data.metric is loss else data.sums())[0]

    @property
    def way(self) -> str:
        """The way in use, e.g. ``stacked x16``."""
        return _name(self._current())

    @property
    def seconds(self) -> dict[str, float]:
        """Best time a point of every way that was tried, by name."""
        return {_name(way): seconds for way, seconds in self._seconds.items()}

    def __call__(self, coefficients: Tensor) -> list[MeanLoss]:
        """The metric at points (points, dims); NaN and infinities as they come.

        Raises:
            UsageError: no way agrees with the model's own forward pass, or the directions do not change the loss.
            LandscapeError: out of memory.
        """
        parts: list[Tensor] = []
        done = 0
        with evaluating(self._data.model, self._data.autocast):
            while done < len(coefficients):
                part = self._next(coefficients[done:])
                if part is not None:
                    parts.append(part)
                    done += len(part)
        return self._data.means(torch.cat(parts))

    def _next(self, left: Tensor) -> Tensor | None:
        """Sums at the first of the points left, as many as the way takes; None where the way turned out unusable."""
        way = self._current()
        try:
            if way not in self._seconds:
                self._check(way, left[:1])
            # Passes of equal size: the last is not left with a few points.
            sums = self._run(way, left[: math.ceil(len(left) / math.ceil(len(left) / way.stack))])
        except (RuntimeError, _Disagreement) as error:
            if len(self._ways) > 1 and way.kind != "in_place":
                self._ways = [other for other in self._ways if other is not way]
                self._to_try = [other for other in self._to_try if other is not way]
                return None
            if isinstance(error, _Disagreement):
                raise UsageError(str(error)) from None
            raise
        if self._to_try:
            self._to_try.pop(0)
        return sums

    def _run(self, way: Way, points: Tensor) -> Tensor:
        _synchronize(points.device)
        began = time.perf_counter()
        with way.at(points):
            sums = self._data.sums(len(points))
        _synchronize(points.device)
        seconds = (time.perf_counter() - began) / len(points)
        self._seconds[way] = min(seconds, self._seconds.get(way, seconds))
        return sums

    def _current(self) -> Way:
        if self._to_try:
            return self._to_try[0]
        return min(self._ways, key=lambda way: self._seconds.get(way, math.inf))

    def _check(self, way: Way, point: Tensor) -> None:
        """The origin beside another point must look as it does alone, and the other point must not."""
        together = torch.cat([torch.zeros_like(point), point])
        shown = []
        for points in together.split(min(way.stack, 2)):
            with way.at(points):
                shown.append(self._data.sums(len(points), loss))
        origin, other = torch.cat(shown)
        tolerance = _tolerance(self._data)
        if not torch.allclose(origin, self._reference, rtol=tolerance, atol=tolerance, equal_nan=True):
            difference = float((origin - self._reference).abs().max())
            raise _Disagreement(
                f"evaluation: two evaluations of the same point ({_name(way)}) differ by {difference:.3g} in one "
                "example; remove what draws random numbers in evaluation mode, or use evaluation='in_place'"
            )
        eps = 8 * torch.finfo(_loss_dtype(self._data)).eps
        if bool(point.any()) and torch.allclose(other, origin, rtol=eps, atol=eps):
            raise UsageError(
                "directions: they do not change the loss; the adapter is switched off or merged, or every B is zero "
                "(its rows then have no norm to copy: use space='merged' or normalization='none')"
            )


class _Disagreement(Exception):
    """A way does not compute what the model computes."""


def _allowed(ways: list[Way], evaluation: str) -> list[Way]:
    if evaluation not in EVALUATIONS:
        raise unknown("evaluation", evaluation, EVALUATIONS)
    if evaluation == "auto":
        return ways
    chosen = [way for way in ways if way.kind == evaluation]
    if not chosen:
        there = ", ".join(sorted({repr(way.kind) for way in ways}))
        raise UsageError(f"evaluation: {evaluation!r} is not possible here; this model and space allow 'auto', {there}")
    return chosen[:1]


def _stacks(data: EvaluationSet, space: Space) -> list[int]:
    """Numbers of points worth stacking, largest first."""
    device = next(data.model.parameters()).device
    tokens = max(batch.num_tokens for batch in data.examples)
    limit = min(MAX_STACK, STACKED_TOKENS.get(device.type, STACKED_TOKENS_ELSEWHERE) // tokens)
    if space.point_bytes:
        # Displaced values, and once more where they are cast.
        limit = min(limit, free_bytes(device) // 4 // (2 * space.point_bytes))
    largest = 1 << max(0, limit.bit_length() - 1)
    return [size for size in (largest, largest // 4) if size > 1] or [1]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _loss_dtype(data: EvaluationSet) -> torch.dtype:
    dtypes = {p.dtype for p in data.model.parameters()}
    return torch.float64 if dtypes == {torch.float64} and data.autocast is None else torch.float32


def _tolerance(data: EvaluationSet) -> float:
    """Generous: norms may run in float32 whatever the model's precision, and low precision rounds by shape."""
    coarsest = max(torch.finfo(p.dtype).eps for p in data.model.parameters() if p.is_floating_point())
    if data.autocast is not None:
        coarsest = torch.finfo(data.autocast).eps
    return min(max(100 * coarsest, 1e-5), 0.1)


def _name(way: Way) -> str:
    return way.kind if way.stack == 1 else f"{way.kind} x{way.stack}"
