"""What an engine is: something that runs independent jobs elsewhere and says what became of each.

Engines hold no state of a sweep: the run store does. A job names an importable function and plain values, so that it
can cross to another process, another machine or another scheduler, and be given again after a crash.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Resources:
    """What a job wants for itself.

    Attributes:
        cpus: cores, for engines that share them out.
        gpus: of a device, perhaps a fraction; 0: none; None: a whole one where there are any.
        memory: bytes, of the device where there is one, else of the machine; 0: not known.
    """

    cpus: float = 1.0
    gpus: float | None = None
    memory: int = 0


@dataclass(frozen=True)
class Job:
    """One call to make elsewhere.

    Attributes:
        key: names the job in events; unique among the jobs given together.
        function: ``package.module:function``, importable in a fresh process.
        arguments: its keyword arguments, JSON types only.
    """

    key: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()


@dataclass(frozen=True)
class Event:
    """What happened to a job, or ``tick``: nothing did for a while (a chance to refresh a display).

    Attributes:
        result: with ``finished``, what the function returned.
        error: with ``finished``, why there is no result: an exception's tail, or how the process died.
        lost: with ``finished``, the process was killed or its machine is gone; the job itself may be blameless.
    """

    kind: Literal["started", "finished", "tick"]
    key: str = ""
    result: Any = None
    error: str | None = None
    lost: bool = False


class Engine(Protocol):
    """Runs jobs; one worker may run many, one after another, keeping whatever their modules cache warm."""

    num_workers: int

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Yield ``started`` and ``finished`` once for every job, in any order, with ticks between.

        A `deque` is emptied from the left as places become free, and the caller may append to it meanwhile.

        A job that fails, and a worker that dies, end that job only. Closing the iterator early (or an interrupt
        inside it) stops the workers in order: each running job sees a `KeyboardInterrupt`.
        """
        ...

    def close(self) -> None:
        """Let the workers go; the engine can be used again afterwards."""
        ...


def call(job: Job) -> Any:
    """Import the job's function and call it in this process."""
    module, _, name = job.function.partition(":")
    return getattr(importlib.import_module(module), name)(**job.arguments)


def describe(error: BaseException, lines: int = 6) -> str:
    """The end of a traceback, the exception itself last: what a status file keeps of a failure."""
    text = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(text[-lines:])
