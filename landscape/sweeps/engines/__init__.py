"""Where the runs of a sweep are run."""

from __future__ import annotations

import importlib.util

from landscape.errors import UsageError, unknown
from landscape.sweeps.engines.base import Engine, Event, Job, Resources
from landscape.sweeps.engines.devices import find_devices, most_workers
from landscape.sweeps.engines.inline import InlineEngine
from landscape.sweeps.engines.local import LocalEngine, available_cores

ENGINES = ("local", "ray")

__all__ = [
    "ENGINES",
    "Engine",
    "Event",
    "InlineEngine",
    "Job",
    "LocalEngine",
    "Resources",
    "available_cores",
    "check_engine",
    "make_engine",
]


def check_engine(name: str, workers: int | None) -> None:
    """Refuse what `make_engine` would, before anything slow.

    Raises:
        UsageError: an unknown name, one whose package is missing, or a negative number of workers.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("engine: ray is not installed: pip install 'lora-landscape[ray]'")
    if workers is not None and workers < 0:
        raise UsageError(f"workers: {workers} is negative; 0 runs everything in this process")


def make_engine(
    name: str = "local",
    workers: int | None = None,
    *,
    num_jobs: int | None = None,
    memory: int = 0,
    address: str | None = None,
    resources: Resources | None = None,
) -> Engine:
    """An engine by name.

    Args:
        name: one of `ENGINES`.
        workers: processes at a time; None: as many as there are cores, or as fit on the GPUs, or on the cluster; 0:
            none, every run in this process.
        num_jobs: how many there will be at most; fewer workers then have more cores each.
        memory: bytes that the largest of them will take, 0: not known.
        address: of a Ray cluster; None: that of ``RAY_ADDRESS``, or a private one.
        resources: of each worker on a Ray cluster.

    Raises:
        UsageError: as `check_engine`.
    """
    check_engine(name, workers)
    if workers == 0:
        return InlineEngine()
    if name == "ray":
        from landscape.sweeps.engines.ray import RayEngine

        return RayEngine(workers, num_jobs=num_jobs, address=address, resources=resources or Resources())
    devices = find_devices()
    workers = workers or most_workers(devices, memory, available_cores())
    return LocalEngine(workers if num_jobs is None else max(1, min(workers, num_jobs)), devices=devices)
