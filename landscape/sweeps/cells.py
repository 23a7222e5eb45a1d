"""What a worker does for one cell of a sweep; importable by name in a fresh process, plain values in and out."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.sweeps.engines.base import describe

if TYPE_CHECKING:
    from landscape.store import Run


def train_cell(config: dict[str, Any], store: str, expired: Sequence[Any] | None = None) -> dict[str, Any]:
    """Train one run (resuming what is there); what went wrong is raised, and in the run's status.

    Args:
        expired: the mark of another process's lease on the run that the caller has seen expire.

    Returns:
        ``state``, ``held`` where another process is at work on the run; run_id, step, and ``warnings``, what the
        toolkit logged on the way: a worker's own output is not shown. Where the disk is full, ``disk_full`` and
        ``error``.
    """
    from landscape.store import LeaseHeldError, LeaseLostError
    from landscape.training import train

    mark = (int(expired[0]), str(expired[1])) if expired else None
    with _warnings_of_ours() as messages:
        try:
            result = train(RunConfig.parse(config), store, expired=mark)
        except (LeaseHeldError, LeaseLostError):
            return {"state": "held"}
        except StoreError as error:
            if not _is_disk_full(error):
                raise
            return {"state": "failed", "disk_full": True, "error": describe(error), "warnings": messages}
    return {"run_id": result.run_id, "state": result.state, "step": result.step, "warnings": messages}


def is_ours(run: Run) -> bool:
    """Whether this toolkit can train the run: it was neither imported nor captured from somebody else's trainer."""
    config = run.config
    return type(config) is RunConfig and config.task != "external"


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def _warnings_of_ours() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("landscape")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def prepare_cells(configs: list[dict[str, Any]], store: str) -> None:
    """Compute the base model's losses once, for all the runs that share its model and data."""
    from landscape.store import Store
    from landscape.training import prepare_base_loss

    opened = Store.open(store)
    for config in configs:
        prepare_base_loss(RunConfig.parse(config), opened)


def time_probe_cell(store: str, run_id: str, analysis: str, step: int, options: dict[str, Any]) -> dict[str, Any]:
    """A `landscape.analysis.cost.ProbeCost` of this run, as plain values."""
    from landscape.analysis.cost import time_probe
    from landscape.analysis.questions import QUESTIONS
    from landscape.store import Store

    return dataclasses.asdict(time_probe(Store.open(store).get(run_id), QUESTIONS[analysis](**options), step))


def analyze_sharpness_cell(
    store: str, run_id: str, steps: list[int], options: dict[str, Any], progress: bool = False
) -> list[dict[str, Any]]:
    """Top eigenvalues at these snapshots, stored with the run; the rows of its table."""
    return _answers("sharpness", store, run_id, steps, {**options, "progress": progress})


def analyze_trace_cell(
    store: str, run_id: str, steps: list[int], options: dict[str, Any], progress: bool = False
) -> list[dict[str, Any]]:
    """The trace at these snapshots, stored with the run; the rows of its table."""
    return _answers("trace", store, run_id, steps, {**options, "progress": progress})


def analyze_density_cell(
    store: str, run_id: str, steps: list[int], options: dict[str, Any], progress: bool = False
) -> list[dict[str, Any]]:
    """Spectral densities at these snapshots, stored with the run; the rows of its table, without the arrays."""
    from landscape.analysis.density import ARRAYS

    rows = _answers("density", store, run_id, steps, {**options, "progress": progress})
    return [{key: value for key, value in row.items() if key not in ARRAYS} for row in rows]


def analyze_layers_cell(
    store: str, run_id: str, steps: list[int], options: dict[str, Any], progress: bool = False
) -> list[dict[str, Any]]:
    """Top eigenvalues of every layer at these snapshots, stored with the run; the rows of its table."""
    return _answers("layers", store, run_id, steps, {**options, "progress": progress})


def _answers(name: str, store: str, run_id: str, steps: list[int], options: dict[str, Any]) -> list[dict[str, Any]]:
    from landscape import analysis
    from landscape.store import Store

    analyze = getattr(analysis, f"analyze_{name}")
    return analyze(Store.open(store).get(run_id), steps, **options).to_dict("records")


def analyze_gap_cell(store: str, run_id: str) -> list[dict[str, Any]]:
    """Loss on eval minus loss on probe at every evaluation, stored with the run; the rows of its table."""
    from landscape.analysis import analyze_gap
    from landscape.store import Store

    return analyze_gap(Store.open(store).get(run_id)).to_dict("records")


def analyze_slice_cell(
    store: str, run_id: str, steps: list[int], options: dict[str, Any], progress: bool = False
) -> list[dict[str, Any]]:
    """Slices at these snapshots, stored with the run; a row each, without the arrays."""
    from landscape.analysis.slice_settings import SliceSettings
    from landscape.analysis.slices import analyze_slice, summary
    from landscape.store import Store

    run = Store.open(store).get(run_id)
    return [summary(item) for item in analyze_slice(run, SliceSettings(**options), steps, progress=progress)]


def analyze_joint_slice_cell(
    store: str, run_ids: list[str], until: int | None, options: dict[str, Any], progress: bool = False
) -> list[dict[str, Any]]:
    """One slice of several runs, stored beside them; its row, without the arrays."""
    from landscape.analysis.slice_joint import analyze_joint_slice
    from landscape.analysis.slice_settings import SliceSettings
    from landscape.analysis.slices import summary
    from landscape.store import Store

    opened = Store.open(store)
    runs = [opened.get(run_id) for run_id in run_ids]
    return [summary(analyze_joint_slice(opened, runs, SliceSettings(**options), until, progress=progress))]


def time_forward_cell(store: str, run_id: str, step: int, split: str, num_examples: int | None) -> float:
    """Seconds of a forward pass over a split of this run."""
    from landscape.analysis.slice_cost import time_forward
    from landscape.store import Store

    return time_forward(Store.open(store).get(run_id), step, split=split, num_examples=num_examples)
