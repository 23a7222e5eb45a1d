"""Spectral density of the loss's Hessian along a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from landscape.analysis.checks import check_counts
from landscape.analysis.cost import Work
from landscape.analysis.series import Question, Row, Subject, ask, shared
from landscape.analysis.tables import FLOATS
from landscape.analysis.variants import Variant

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Run

DENSITY_FILE = "density.parquet"
ARRAYS = ("grid", "density", "standard_error", "nodes", "weights")
TYPES = {
    **dict.fromkeys(ARRAYS, FLOATS), "bandwidth": "float64", "smallest": "float64", "largest": "float64",
    "num_steps": "int64", "num_probes": "int64",
}  # fmt: skip


def analyze_density(
    run: Run,
    steps: Iterable[int] | None = None,
    *,
    every: int | None = None,
    num_steps: int = 60,
    num_probes: int = 4,
    space: str = "adapter",
    seed: int = 0,
    matrix: str = "hessian",
    backend: str = "landscape",
    num_examples: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The density of the Hessian's eigenvalues at captured steps, kept in ``analysis/density.parquet``.

    Resumable, and stored with one combination of settings a space, as `landscape.analysis.analyze_sharpness`.

    Args:
        run: a run with snapshots; it may still be training.
        steps: captured steps; default: all.
        every: of those, only multiples of so many.
        num_steps: Lanczos steps a probe, as in `landscape.curvature.spectral_density`.
        num_probes: random vectors a step; num_steps·num_probes Hessian-vector products.
        space: ``adapter``, ``merged`` or ``balanced``.
        seed: of the random vectors.
        matrix: ``hessian`` or ``ggn``; the latter has a file of its own, ``density-ggn.parquet``.
        backend: ``landscape``, or ``pyhessian`` as a cross-check, in ``density-pyhessian.parquet``.
        num_examples: only the first so many examples of the probe split.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``.
        device: default: CUDA where there is one.
        progress: show a progress bar.

    Returns:
        One row a step. Arrays: ``density`` with its ``standard_error`` on ``grid``, and the quadrature behind it,
        ``nodes`` and ``weights`` (num_probes x num_steps, flattened row by row), from which moments and other
        bandwidths follow. Numbers: bandwidth, smallest and largest (nodes), num_matvecs, num_steps, num_probes, and the
        columns of `landscape.analysis.series.TYPES`.

    Raises:
        UsageError, StoreError: as `landscape.analysis.analyze_sharpness`.
    """
    question = density_question(
        num_steps=num_steps, num_probes=num_probes, space=space, seed=seed, matrix=matrix, backend=backend,
        num_examples=num_examples,
    )  # fmt: skip
    return ask(run, question, steps, every=every, batch_size=batch_size, device=device, progress=progress)


def density_question(
    *,
    num_steps: int = 60,
    num_probes: int = 4,
    space: str = "adapter",
    seed: int = 0,
    matrix: str = "hessian",
    backend: str = "landscape",
    num_examples: int | None = None,
) -> Question:
    """What `analyze_density` asks of every snapshot; `UsageError` for an argument out of range."""
    variant = Variant(space, matrix, backend)
    variant.check("density")
    check_counts(num_steps=num_steps, num_probes=num_probes, num_examples=num_examples)

    def begin(subject: Subject) -> Callable[[int], list[Row]]:
        measured = _pyhessian if backend == "pyhessian" else _density

        def measure(step: int) -> list[Row]:
            result = measured(subject, num_steps, num_probes, seed)
            quadrature = result.quadrature
            row = {
                **{key: getattr(result, key).tolist() for key in ("grid", "density", "standard_error")},
                **{key: getattr(quadrature, key).ravel().tolist() for key in ("nodes", "weights")},
                "bandwidth": result.bandwidth,
                "smallest": quadrature.smallest,
                "largest": quadrature.largest,
                "num_matvecs": result.num_matvecs,
            }
            return [{**shared(result), **row}]

        return measure

    return Question(
        analysis="density",
        variant=variant,
        work=Work(num_steps * num_probes, num_steps * num_probes, num_steps + 2, num_steps + 2),
        num_examples=num_examples,
        settings={"num_steps": num_steps, "num_probes": num_probes, "seed": seed},
        types=TYPES,
        blank=[{**{key: [] for key in ARRAYS}, **dict.fromkeys(("bandwidth", "smallest", "largest"), math.nan)}],
        begin=begin,
        headline=lambda rows: f"{rows[0]['smallest']:.3g} to {rows[0]['largest']:.3g}",
    )


def _density(subject: Subject, num_steps: int, num_probes: int, seed: int) -> Any:
    from landscape.curvature import spectral_density

    return spectral_density(subject.model, subject.batches, num_steps, num_probes, seed=seed, **subject.options)


def _pyhessian(subject: Subject, num_steps: int, num_probes: int, seed: int) -> Any:
    from landscape.curvature.pyhessian_backend import pyhessian_density

    return pyhessian_density(subject.model, subject.batches, num_steps, num_probes, seed=seed)
