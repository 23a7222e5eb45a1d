"""What slices will cost, said before they are measured: from one timed forward pass and the number of points."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from landscape.analysis.cost import GRADIENTS_PER_PRODUCT, search_work
from landscape.analysis.restored import open_run
from landscape.analysis.series import SPLIT
from landscape.analysis.slice_settings import SliceSettings

if TYPE_CHECKING:
    from landscape.store import Run

FORWARDS_PER_GRADIENT = 3


@dataclass(frozen=True)
class SliceEstimate:
    """What slices of several runs will cost.

    Attributes:
        slices: to measure; ``known``, measured already.
        forwards: (fewest, most) forward passes over the examples, of all of them.
        seconds: (fewest, most), all in all; None where it could not be timed. Points that are evaluated together cost
            less than a forward pass each.
        forward_seconds: of one, by the id of the run that it was timed on.
        problems: why a run could not be timed, by run id.
    """

    runs: int
    slices: int
    known: int
    workers: int
    forwards: tuple[int, int]
    seconds: tuple[float, float] | None
    forward_seconds: Mapping[str, float]
    problems: Mapping[str, str]

    def sentence(self) -> str:
        """The estimate, and how it was made."""
        known = f" ({self.known} known)" if self.known else ""
        slices, runs, processes = (
            f"{count} {noun}{'' if count == 1 else ending}"
            for count, noun, ending in (
                (self.slices, "slice", "s"),
                (self.runs, "run", "s"),
                (self.workers, "process", "es"),
            )
        )
        counts = f"{slices} of {runs} to measure{known}"
        if self.seconds is None:
            problems = "; ".join(f"{run_id}: {problem}" for run_id, problem in self.problems.items())
            return counts + (f"; no estimate ({problems})" if problems else "")
        made = [
            f"{_range(*self.forwards)} forward passes",
            *(
                f"one took {seconds:.2g} s on the examples of {run_id}"
                for run_id, seconds in self.forward_seconds.items()
            ),
            f"{processes} at a time",
        ]
        unit, size = ("min", 60) if self.seconds[1] >= 120 else ("s", 1)
        seconds = _range(*(f"{value / size:.2g}" for value in self.seconds))
        return f"{counts}: about {seconds} {unit} ({'; '.join(made)})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def forwards(settings: SliceSettings, num_projected: int) -> tuple[int, int]:
    """(fewest, most) forward passes over the examples for a slice, with checked settings; a gradient counts as 3.

    Args:
        num_projected: snapshots that are projected on it.
    """
    fewest, most = (points + 2 * num_projected + 1 for points in settings.num_points)
    if settings.directions == "gradient":
        return fewest + FORWARDS_PER_GRADIENT, most + FORWARDS_PER_GRADIENT
    if settings.directions == "top":
        work = search_work(settings.dims, 1e-3, 200)
        product = FORWARDS_PER_GRADIENT * GRADIENTS_PER_PRODUCT
        return fewest + round(product * work.fewest), most + round(product * work.most)
    return fewest, most


def estimate_slices(
    passes: Mapping[str, list[tuple[int, int]]],
    known: int,
    forward_seconds: Mapping[str, float],
    stands_for: Mapping[str, str],
    workers: int,
    problems: Mapping[str, str],
) -> SliceEstimate:
    """The cost of slices of several runs.

    Args:
        passes: `forwards` of each slice to measure, by run id.
        known: slices that are measured already.
        forward_seconds: of one forward pass, by the id of the run that it was timed on.
        stands_for: which of these stands for each run, by run id.
        workers: processes at a time.
        problems: why runs have no measurement.
    """
    wanted = {run_id: slices for run_id, slices in passes.items() if slices}
    concurrent = max(1, min(workers, len(wanted)))
    totals = {run_id: (sum(low for low, _ in each), sum(high for _, high in each)) for run_id, each in wanted.items()}
    times = {run_id: forward_seconds[other] for run_id, other in stands_for.items() if other in forward_seconds}
    timed = bool(wanted) and all(run_id in times for run_id in wanted)
    low, high = (sum(total[end] for total in totals.values()) for end in (0, 1))
    seconds = [
        sum(totals[run_id][end] * times[run_id] for run_id in totals) / concurrent if timed else math.nan
        for end in (0, 1)
    ]
    return SliceEstimate(
        runs=len(wanted),
        slices=sum(map(len, wanted.values())),
        known=known,
        workers=concurrent,
        forwards=(low, high),
        seconds=(seconds[0], seconds[1]) if timed else None,
        forward_seconds=dict(forward_seconds),
        problems=dict(problems),
    )


def time_forward(
    run: Run, step: int, *, split: str = SPLIT, num_examples: int | None = None, device: str | None = None
) -> float:
    """Seconds of a forward pass over a split at a captured step: of its longest batch, scaled up by tokens.

    Raises:
        StoreError, UsageError: as `landscape.analysis.open_run`.
    """
    import torch

    from landscape.loss import forward_losses
    from landscape.slices.evaluation import evaluating

    restored = open_run(run, device=device)
    restored.load(step)
    batches = restored.examples(split, num_examples)
    tokens = [batch["input_ids"].numel() for batch in batches]
    longest = max(range(len(batches)), key=tokens.__getitem__)
    place = next(restored.model.parameters()).device
    batch = {name: tensor.to(place) for name, tensor in batches[longest].items()}
    seconds = math.inf
    for _ in range(2):  # the first also allocates
        with evaluating(restored.model):
            began = time.perf_counter()
            forward_losses(restored.model, batch)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            seconds = min(seconds, time.perf_counter() - began)
    return seconds * sum(tokens) / tokens[longest]


def _range(low: Any, high: Any) -> str:
    return f"{high}" if low == high else f"{low} to {high}"
