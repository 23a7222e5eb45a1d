"""What an analysis will cost, said before it begins: from one timed gradient and the number of products expected."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.analysis.restored import open_run
from landscape.errors import UsageError

if TYPE_CHECKING:
    import torch

    from landscape.analysis.series import Question
    from landscape.store import Run

GRADIENTS_PER_PRODUCT = 1.3
"""Where graphs are kept; 2.5 where memory is too short for them, and 2 by finite differences."""
GRADIENTS_PER_SNAPSHOT = 2.0
"""The loss and the graph of its gradient, before the first product."""

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Work:
    """What a question needs of one snapshot.

    Attributes:
        fewest: products with the matrix; ``most``, where it is not known beforehand.
        vectors: of n numbers each, kept in memory at once; ``least_vectors``, where memory is short.
        group: all of it is needed for every layer of this kind, with vectors as long as a layer.
    """

    fewest: int
    most: int
    vectors: int
    least_vectors: int
    group: str | None = None


def search_work(k: int, tol: float, max_matvecs: int, group: str | None = None) -> Work:
    """Of a search for the k largest eigenvalues.

    Between warm starts on a Hessian with one far outlier and a random start on one without gap: at a tolerance of 1e-2,
    6 products a snapshot were the mean along a run of ``tiny``; at 1e-3, tests/curvature/workload.py takes 35. Beyond
    k = 1 a further sequence looks for copies of repeated eigenvalues.
    """
    digits = -math.log10(tol)
    products = [
        min(max_matvecs, round(count * (1 if k == 1 else k + 1))) for count in (2 + 2 * digits, 5 + 10 * digits)
    ]
    vectors = max_matvecs + 2 * k + 4
    # Layers are searched without restarts.
    return Work(products[0], products[1], vectors, vectors if group else min(vectors, 4 * k + 12), group)


@dataclass(frozen=True)
class ProbeCost:
    """Measured on one run.

    Attributes:
        gradient_seconds: of the loss over the whole probe, at the threads of the process that timed it.
        num_parameters: n, the size of the vectors; ``num_layers`` of them where the question is asked of layers, and
            ``layer_parameters``, the size of the largest.
        item_bytes: of each number.
        memory_bytes: to be had on the device.
    """

    run_id: str
    gradient_seconds: float
    num_parameters: int
    num_layers: int
    layer_parameters: int
    item_bytes: int
    memory_bytes: int
    device: str


@dataclass(frozen=True)
class Estimate:
    """What analyses of several runs will cost.

    Attributes:
        snapshots: to measure; ``known``, answered already.
        products: (fewest, most) a snapshot; None where nothing is to be measured.
        seconds: (fewest, most), all in all; None where it could not be timed.
        vector_bytes: memory that vectors take, in all processes together; ``least_vector_bytes``, if it must be.
        memory_bytes: to be had; None where nothing was timed.
        problems: why a run could not be timed, by run id.
    """

    runs: int
    snapshots: int
    known: int
    workers: int
    products: tuple[int, int] | None
    seconds: tuple[float, float] | None
    vector_bytes: int
    least_vector_bytes: int
    memory_bytes: int | None
    probes: tuple[ProbeCost, ...]
    problems: Mapping[str, str]

    def sentence(self) -> str:
        """The estimate, and how it was made."""
        known = f" ({self.known} are known)" if self.known else ""
        counts = f"{_plural(self.snapshots, 'snapshot')} of {_plural(self.runs, 'run')} to measure{known}"
        if self.seconds is None or self.products is None:
            problems = "; ".join(f"{run_id}: {problem}" for run_id, problem in self.problems.items())
            return counts + (f"; no estimate ({problems})" if problems else "")
        made = [
            f"{_range(*self.products)} products a snapshot of about {GRADIENTS_PER_PRODUCT} gradients",
            *(
                f"a gradient took {_number(probe.gradient_seconds)} s on the probe of {probe.run_id}"
                for probe in self.probes
            ),
            f"{_plural(self.workers, 'process', 'es')} at a time",
        ]
        memory = f", {self.vector_bytes / 1e9:.2g} GB of vectors" if self.vector_bytes > 1e8 else ""
        return f"{counts}: about {_spell(self.seconds)}{memory} ({'; '.join(made)})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "problems": dict(self.problems)}


def time_probe(run: Run, question: Question, step: int, *, device: str | None = None) -> ProbeCost:
    """Time the gradient of the probe's loss at a captured step: of its longest batch, scaled up by tokens.

    Raises:
        StoreError, UsageError: as `landscape.analysis.open_run`.
    """
    import torch

    from landscape.curvature import Objective
    from landscape.curvature.layers import group_coordinates

    restored = open_run(run, device=device)
    restored.load(step)
    batches = restored.probe(question.num_examples)
    tokens = [batch["input_ids"].numel() for batch in batches]
    longest = max(range(len(batches)), key=tokens.__getitem__)
    # Balanced coordinates are as many as the adapter's, and undefined at some steps.
    space = "merged" if question.variant.space == "merged" else "adapter"
    objective = Objective(restored.model, [batches[longest]], space=space)
    seconds = math.inf
    for _ in range(2):  # the first also allocates
        began = time.perf_counter()
        objective.value_and_gradient_at(None)
        if objective.device.type == "cuda":
            torch.cuda.synchronize(objective.device)
        seconds = min(seconds, time.perf_counter() - began)
    layers = [objective.size]
    if question.work.group is not None:
        slices = group_coordinates(objective.names, objective.sizes, question.work.group)
        layers = [sum(part.stop - part.start for part in parts) for parts in slices.values()]
    return ProbeCost(
        run_id=run.id,
        gradient_seconds=seconds * sum(tokens) / tokens[longest],
        num_parameters=objective.size,
        num_layers=len(layers),
        layer_parameters=max(layers),
        item_bytes=objective.dtype.itemsize,
        memory_bytes=available_memory(objective.device),
        device=str(objective.device),
    )


def estimate_cost(
    work: Work,
    snapshots: Mapping[str, int],
    known: int,
    probes: Mapping[str, ProbeCost],
    workers: int,
    problems: Mapping[str, str] | None = None,
) -> Estimate:
    """The cost of asking a question that takes ``work`` of so many snapshots of each run.

    Args:
        snapshots: to measure, by run id.
        known: snapshots that are answered already.
        probes: the measurement that stands for each run, by run id.
        workers: processes at a time.
        problems: why runs have no measurement.
    """
    used = {probe.run_id: probe for run_id, probe in probes.items() if snapshots[run_id]}
    timed = all(run_id in probes for run_id, count in snapshots.items() if count)
    concurrent = max(1, min(workers, sum(count > 0 for count in snapshots.values())))
    totals = [0.0, 0.0]
    for run_id, probe in probes.items():
        for i, products in enumerate((work.fewest, work.most)):
            gradients = GRADIENTS_PER_SNAPSHOT + GRADIENTS_PER_PRODUCT * products * probe.num_layers
            totals[i] += snapshots[run_id] * gradients * probe.gradient_seconds / concurrent
    layers = max((probe.num_layers for probe in used.values()), default=1)
    vector = concurrent * max((probe.layer_parameters * probe.item_bytes for probe in used.values()), default=0)
    memory = min((probe.memory_bytes for probe in used.values()), default=None)
    # A search restarts where its vectors would take more than half of what is free.
    kept = work.vectors * vector if memory is None else min(work.vectors * vector, memory // 2)
    return Estimate(
        runs=sum(count > 0 for count in snapshots.values()),
        snapshots=sum(snapshots.values()),
        known=known,
        workers=concurrent,
        products=(work.fewest * layers, work.most * layers) if used else None,
        seconds=(totals[0], totals[1]) if timed and used else None,
        vector_bytes=max(kept, work.least_vectors * vector),
        least_vector_bytes=work.least_vectors * vector,
        memory_bytes=memory,
        probes=tuple(used.values()),
        problems=dict(problems or {}),
    )


def check_memory(estimate: Estimate) -> None:
    """Refuse what cannot fit.

    Raises:
        UsageError: the vectors need more than the device has free.
    """
    if estimate.memory_bytes is None or estimate.least_vector_bytes <= estimate.memory_bytes:
        return
    needed, there = (f"{size / 1e9:.2f} GB" for size in (estimate.least_vector_bytes, estimate.memory_bytes))
    raise UsageError(
        f"memory: vectors need {needed} in {_plural(estimate.workers, 'process', 'es')}, and {there} can be had; lower "
        "--workers, --num-steps or --max-matvecs, or measure a smaller space"
    )


def available_memory(device: torch.device) -> int:
    """Bytes that can be had on a device; in main memory no more than a container's limit."""
    from landscape.measurement import free_bytes

    sizes = [free_bytes(device)]
    if device.type != "cuda":
        for path in _CGROUP_LIMITS:
            with contextlib.suppress(OSError, ValueError):  # no such controller, or "max"
                sizes.append(int(path.read_text()))
    return min(sizes)


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else ending}"


def _range(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"


def _spell(seconds: Sequence[float]) -> str:
    """``20 to 60 s``, ``2 to 5 min``, ``1.5 to 4 h``."""
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds[1] >= 1.5 * size)
    low, high = (_number(value / (size or 1)) for value in seconds)
    return f"{high} {unit}" if low == high else f"{low} to {high} {unit}"


def _number(value: float) -> str:
    """Two digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
