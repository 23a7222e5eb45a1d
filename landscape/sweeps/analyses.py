"""Analyses of many runs on the engine that also trains them: one job a run, results in the run folders."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from landscape.sweeps.engines import Engine, Job
from landscape.sweeps.progress import SweepDisplay

SHARPNESS = "landscape.sweeps.cells:analyze_sharpness_cell"
GAP = "landscape.sweeps.cells:analyze_gap_cell"


@dataclass(frozen=True)
class AnalysisResult:
    """What came back for each run id, and why not for the others."""

    results: dict[str, Any]
    errors: dict[str, str]


def spread(steps: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """At most ``count`` of these steps, evenly spaced, the first and the last among them."""
    if len(steps) <= count:
        return [int(step) for step in steps]
    if count == 1:
        return [int(steps[-1])]
    return sorted({int(steps[round(i * (len(steps) - 1) / (count - 1))]) for i in range(count)})


def run_analyses(
    title: str,
    function: str,
    arguments: Mapping[str, dict[str, Any]],
    engine: Engine,
    console: Console | None = None,
) -> AnalysisResult:
    """Call a function once for each run; one that fails does not stop the others.

    Args:
        title: shown with the progress.
        function: ``module:function``, e.g. `SHARPNESS`.
        arguments: keyword arguments by run id, JSON types.
        engine: left open.
        console: where progress is shown; default: nowhere.
    """
    results: dict[str, Any] = {}
    errors: dict[str, str] = {}
    began: dict[str, float] = {}
    jobs = [Job(run_id, function, values) for run_id, values in arguments.items()]
    with (
        SweepDisplay(console or Console(quiet=True)) as display,
        contextlib.closing(engine.run(jobs)) as events,
    ):
        display.begin(title, dict.fromkeys(arguments, 0))
        for event in events:
            if event.kind == "started":
                began[event.key] = time.monotonic()
            elif event.kind == "finished":
                if event.error is None:
                    results[event.key] = event.result
                else:
                    errors[event.key] = event.error
                state = "failed" if event.error else "done"
                display.ended(event.key, state, 0, time.monotonic() - began[event.key], event.error)
    return AnalysisResult(results, errors)
