"""Where the runs of a sweep are run."""

from __future__ import annotations

from landscape.errors import UsageError, unknown
from landscape.sweeps.engines.base import Engine, Event, Job
from landscape.sweeps.engines.inline import InlineEngine
from landscape.sweeps.engines.local import LocalEngine, available_cores

ENGINES = ("local",)

__all__ = [
    "ENGINES",
    "Engine",
    "Event",
    "InlineEngine",
    "Job",
    "LocalEngine",
    "available_cores",
    "check_engine",
    "make_engine",
]


def check_engine(name: str, workers: int | None) -> None:
    """Refuse what `make_engine` would, before anything slow.

    Raises:
        UsageError: an unknown name, or a negative number of workers.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if workers is not None and workers < 0:
        raise UsageError(f"workers: {workers} is negative; 0 runs everything in this process")


def make_engine(name: str = "local", workers: int | None = None, *, num_jobs: int | None = None) -> Engine:
    """An engine by name.

    Args:
        name: one of `ENGINES`.
        workers: processes at a time; None: one a core; 0: none, every run in this process.
        num_jobs: how many there will be at most; fewer workers then have more cores each.

    Raises:
        UsageError: as `check_engine`.
    """
    check_engine(name, workers)
    if workers == 0:
        return InlineEngine()
    workers = workers or available_cores()
    return LocalEngine(workers if num_jobs is None else max(1, min(workers, num_jobs)))
