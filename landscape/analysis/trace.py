"""Trace of the loss's Hessian along a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from landscape.analysis.checks import check_counts
from landscape.analysis.cost import Work
from landscape.analysis.series import Question, Row, Subject, ask, shared
from landscape.analysis.variants import Variant
from landscape.errors import UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Run

TRACE_FILE = "trace.parquet"
TYPES = {
    "value": "float64",
    "standard_error": "float64",
    "num_probes": "int64",
    "method": "string",
    "backend": "string",
}


def analyze_trace(
    run: Run,
    steps: Iterable[int] | None = None,
    *,
    every: int | None = None,
    num_probes: int = 100,
    space: str = "adapter",
    seed: int = 0,
    method: str = "hutchinson",
    matrix: str = "hessian",
    backend: str = "landscape",
    num_examples: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The trace of the Hessian of the probe loss at captured steps, kept in ``analysis/trace.parquet``.

    Resumable, and stored with one combination of settings a space, as `landscape.analysis.analyze_sharpness`. Every
    step is measured with the same random signs, so that differences between steps are more precise than the values.

    Args:
        run: a run with snapshots; it may still be training.
        steps: captured steps; default: all.
        every: of those, only multiples of so many.
        num_probes: Hessian-vector products a step, as in `landscape.curvature.trace`.
        space: ``adapter``, ``merged`` or ``balanced``.
        seed: of the random signs.
        method: ``hutchinson`` or ``hutch++``.
        matrix: ``hessian`` or ``ggn``; the latter has a file of its own, ``trace-ggn.parquet``.
        backend: ``landscape``, or ``pyhessian`` as a cross-check, in ``trace-pyhessian.parquet``.
        num_examples: only the first so many examples of the probe split.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``.
        device: default: CUDA where there is one.
        progress: show a progress bar.

    Returns:
        One row a step: value (the sum of all num_parameters eigenvalues), standard_error, num_matvecs, num_probes,
        method, and the columns of `landscape.analysis.series.TYPES`.

    Raises:
        UsageError, StoreError: as `landscape.analysis.analyze_sharpness`.
    """
    question = trace_question(
        num_probes=num_probes, space=space, seed=seed, method=method, matrix=matrix, backend=backend,
        num_examples=num_examples,
    )  # fmt: skip
    return ask(run, question, steps, every=every, batch_size=batch_size, device=device, progress=progress)


def trace_question(
    *,
    num_probes: int = 100,
    space: str = "adapter",
    seed: int = 0,
    method: str = "hutchinson",
    matrix: str = "hessian",
    backend: str = "landscape",
    num_examples: int | None = None,
) -> Question:
    """What `analyze_trace` asks of every snapshot; `UsageError` for an argument out of range."""
    from landscape.curvature.trace import METHODS

    variant = Variant(space, matrix, backend)
    variant.check("trace")
    check_counts(num_examples=num_examples)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if backend == "pyhessian" and method != "hutchinson":
        raise UsageError(f"method: {method!r} with backend='pyhessian'; allowed: hutchinson")
    if num_probes < (least := 2 if method == "hutchinson" else 4):
        raise UsageError(f"num_probes: {num_probes}; allowed with {method}: at least {least}, for a standard error")

    vectors = 2 if method == "hutchinson" else 2 * (num_probes // 3) + 2

    def begin(subject: Subject) -> Callable[[int], list[Row]]:
        measured = _pyhessian if backend == "pyhessian" else _trace

        def measure(step: int) -> list[Row]:
            result = measured(subject, num_probes, seed, method)
            estimate = {key: getattr(result, key) for key in ("value", "standard_error", "num_matvecs")}
            return [{**shared(result), **estimate}]

        return measure

    return Question(
        analysis="trace",
        variant=variant,
        work=Work(num_probes, num_probes, vectors, vectors),
        num_examples=num_examples,
        settings={"num_probes": num_probes, "seed": seed, "method": method},
        types=TYPES,
        blank=[{"value": math.nan, "standard_error": math.nan}],
        begin=begin,
        headline=lambda rows: f"{rows[0]['value']:.4g} ± {rows[0]['standard_error']:.2g}",
    )


def _trace(subject: Subject, num_probes: int, seed: int, method: Any) -> Any:
    from landscape.curvature import trace

    return trace(subject.model, subject.batches, num_probes, seed=seed, method=method, **subject.options)


def _pyhessian(subject: Subject, num_probes: int, seed: int, *_: str) -> Any:
    from landscape.curvature.pyhessian_backend import pyhessian_trace

    return pyhessian_trace(subject.model, subject.batches, num_probes, seed=seed)
