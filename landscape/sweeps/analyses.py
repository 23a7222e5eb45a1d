"""Analyses of many runs on the engine that also trains them: one job a run, results in the run folders."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from landscape.errors import StoreError
from landscape.sweeps.engines import Engine, Job
from landscape.sweeps.progress import SweepDisplay

if TYPE_CHECKING:
    from landscape.analysis.cost import Estimate, ProbeCost
    from landscape.analysis.series import Question

ALONG_RUNS = {
    name: f"landscape.sweeps.cells:analyze_{name}_cell" for name in ("sharpness", "trace", "density", "layers")
}
"""Analyses of snapshots; arguments: store, run_id, steps, options of `landscape.analysis.questions`, and progress."""
SHARPNESS = ALONG_RUNS["sharpness"]
GAP = "landscape.sweeps.cells:analyze_gap_cell"
SLICE = "landscape.sweeps.cells:analyze_slice_cell"
"""Slices; arguments: store, run_id, steps, options of `landscape.analysis.slice_settings`, and progress."""
JOINT_SLICE = "landscape.sweeps.cells:analyze_joint_slice_cell"
"""One slice of several runs; arguments: store, run_ids, until, options as for `SLICE`, and progress."""
TIME_FORWARD = "landscape.sweeps.cells:time_forward_cell"
_TIME_PROBE = "landscape.sweeps.cells:time_probe_cell"
CELLS = frozenset({*ALONG_RUNS.values(), GAP, SLICE, JOINT_SLICE, TIME_FORWARD, _TIME_PROBE})
"""What a worker calls for a store that asks for it, and nothing else."""


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


def estimate_analyses(
    analysis: str, arguments: Mapping[str, dict[str, Any]], options: dict[str, Any], engine: Engine
) -> Estimate:
    """What an analysis of `ALONG_RUNS` will cost, from a gradient timed on the largest run of each model and task.

    Args:
        analysis: its name.
        arguments: keyword arguments by run id, as for `run_analyses`.
        options: in all of them.
        engine: where it will run; left open.

    Raises:
        UsageError: an option out of range.
    """
    from landscape.analysis.cost import estimate_cost
    from landscape.analysis.questions import QUESTIONS
    from landscape.analysis.series import unanswered
    from landscape.store import Store

    question = QUESTIONS[analysis](**options)
    missing: dict[str, list[int]] = {}
    problems: dict[str, str] = {}
    same_cost: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for run_id, values in arguments.items():
        run = Store.open(values["store"]).get(run_id)
        try:
            missing[run_id] = unanswered(run, question, values["steps"])
            config, size = run.config, run.snapshots().layout.record_bytes
        except StoreError as error:  # which the run's own job will meet again
            missing[run_id], problems[run_id] = values["steps"], str(error)
            continue
        if missing[run_id]:
            kind = (config.model, config.task, config.dtype, config.rank is None)
            same_cost.setdefault(kind, []).append((size, run_id))
    stands_for = {run_id: max(runs)[1] for runs in same_cost.values() for _, run_id in runs}
    jobs = []
    for run_id in sorted(set(stands_for.values())):
        place = {key: arguments[run_id][key] for key in ("store", "run_id")}
        step = missing[run_id][0]  # a later one may have diverged
        jobs.append(Job(run_id, _TIME_PROBE, {**place, "analysis": analysis, "step": step, "options": options}))
    timed, untimed = _timed(jobs, engine)
    return estimate_cost(
        question.work,
        {run_id: len(steps) for run_id, steps in missing.items()},
        sum(len(values["steps"]) for values in arguments.values()) - sum(map(len, missing.values())),
        {run_id: timed[other] for run_id, other in stands_for.items() if other in timed},
        max(1, engine.num_workers),
        problems | untimed,
    )


def _timed(jobs: Sequence[Job], engine: Engine) -> tuple[dict[str, ProbeCost], dict[str, str]]:
    """What came back for each job, and why not for the others."""
    from landscape.analysis.cost import ProbeCost

    timed, problems = {}, {}
    with contextlib.closing(engine.run(jobs)) as events:
        for event in events:
            if event.kind == "finished" and event.error is None:
                timed[event.key] = ProbeCost(**event.result)
            elif event.kind == "finished":
                problems[event.key] = (event.error or "").strip().splitlines()[-1]
    return timed, problems


def run_analyses(
    title: str,
    function: str,
    arguments: Mapping[str, dict[str, Any]],
    engine: Engine,
    console: Console | None = None,
    question: Question | None = None,
) -> AnalysisResult:
    """Call a function once for each run; one that fails does not stop the others.

    Args:
        title: shown with the progress.
        function: ``module:function``, e.g. `SHARPNESS`.
        arguments: keyword arguments by run id, JSON types.
        engine: left open.
        console: where progress is shown; default: nowhere.
        question: what is asked, where progress is to count snapshots and not runs.
    """
    results: dict[str, Any] = {}
    errors: dict[str, str] = {}
    began: dict[str, float] = {}
    jobs = [Job(run_id, function, values) for run_id, values in arguments.items()]
    left = {run_id: _left(values, question) for run_id, values in arguments.items()}
    with (
        SweepDisplay(console or Console(quiet=True)) as display,
        contextlib.closing(engine.run(jobs)) as events,
    ):
        display.begin(title, left, "snapshot")
        for event in events:
            if event.kind == "started":
                began[event.key] = time.monotonic()
            elif event.kind == "finished":
                if event.error is None:
                    results[event.key] = event.result
                else:
                    errors[event.key] = event.error
                state = "failed" if event.error else "done"
                display.ended(event.key, state, left[event.key], time.monotonic() - began[event.key], event.error)
            elif display.due():
                under_way = [key for key in began if key not in results and key not in errors]
                display.running({key: left[key] - _left(arguments[key], question) for key in under_way})
    return AnalysisResult(results, errors)


def _left(values: dict[str, Any], question: Question | None) -> int:
    """Snapshots of a run that have no answer yet; 0 where nobody asks for any."""
    if question is None:
        return 0
    from landscape.analysis.series import unanswered
    from landscape.store import Store

    try:
        return len(unanswered(Store.open(values["store"]).get(values["run_id"]), question, values["steps"]))
    except StoreError:  # which the run's own job meets
        return len(values["steps"])
