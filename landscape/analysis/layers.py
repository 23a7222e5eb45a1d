"""Sharpness of every layer along a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from landscape.analysis.checks import check_counts, check_tolerance
from landscape.analysis.cost import search_work
from landscape.analysis.series import Question, Row, Subject, ask, shared
from landscape.analysis.variants import Variant

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Run

LAYERS_FILE = "layers.parquet"
TYPES = {
    "index": "int64", "layer": "string", "value": "float64", "residual": "float64", "converged": "bool",
    "layer_parameters": "int64", "group": "string", "tol": "float64", "max_matvecs": "int64",
}  # fmt: skip


def analyze_layers(
    run: Run,
    steps: Iterable[int] | None = None,
    *,
    every: int | None = None,
    group: str = "module",
    space: str = "adapter",
    tol: float = 1e-2,
    max_matvecs: int = 100,
    seed: int = 0,
    matrix: str = "hessian",
    num_examples: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The largest eigenvalue of every layer's block of the Hessian, at captured steps, in ``analysis/layers.parquet``.

    Resumable, and stored with one combination of settings a space, as `landscape.analysis.analyze_sharpness`. It costs
    as many searches a step as there are layers.

    Args:
        run: a run with snapshots; it may still be training.
        steps: captured steps; default: all.
        every: of those, only multiples of so many.
        group: what a layer is: ``module`` or ``block``, as in `landscape.curvature.layer_eigenvalues`.
        space: ``adapter``, ``merged`` or ``balanced``.
        tol: relative residual at which an eigenvalue counts as found.
        max_matvecs: most Hessian-vector products a layer.
        seed: of the random vectors.
        matrix: ``hessian`` or ``ggn``; the latter has a file of its own, ``layers-ggn.parquet``.
        num_examples: only the first so many examples of the probe split.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``.
        device: default: CUDA where there is one.
        progress: show a progress bar.

    Returns:
        One row per (step, layer), layers in the model's order: index, layer, value, residual, converged, num_matvecs
        (of this layer), layer_parameters, group, tol, max_matvecs, and the columns of
        `landscape.analysis.series.TYPES`. A step that has no values is one row without a layer.

    Raises:
        UsageError, StoreError: as `landscape.analysis.analyze_sharpness`.
    """
    question = layers_question(
        group=group, space=space, tol=tol, max_matvecs=max_matvecs, seed=seed, matrix=matrix, num_examples=num_examples
    )
    return ask(run, question, steps, every=every, batch_size=batch_size, device=device, progress=progress)


def layers_question(
    *,
    group: str = "module",
    space: str = "adapter",
    tol: float = 1e-2,
    max_matvecs: int = 100,
    seed: int = 0,
    matrix: str = "hessian",
    num_examples: int | None = None,
) -> Question:
    """What `analyze_layers` asks of every snapshot; `UsageError` for an argument out of range."""
    from landscape.curvature.layers import check_group

    variant = Variant(space, matrix)
    variant.check("layers")
    check_group(group)
    check_counts(max_matvecs=max_matvecs, num_examples=num_examples)
    check_tolerance(tol)

    def begin(subject: Subject) -> Callable[[int], list[Row]]:
        from landscape.curvature import layer_eigenvalues

        def measure(step: int) -> list[Row]:
            options = {"tol": tol, "max_matvecs": max_matvecs, "seed": seed, "group": group, **subject.options}
            result = layer_eigenvalues(subject.model, subject.batches, **options)
            columns = {
                "layer": result.names,
                "value": result.values.tolist(),
                "residual": result.residuals.tolist(),
                "converged": result.converged.tolist(),
                "num_matvecs": result.num_matvecs.tolist(),
                "layer_parameters": result.layer_parameters.tolist(),
            }
            rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
            whole = {**shared(result), "max_matvecs": max_matvecs}
            return [{**whole, "index": index, **row} for index, row in enumerate(rows)]

        return measure

    unmeasured = {"value": math.nan, "residual": math.nan, "converged": False, "max_matvecs": max_matvecs}
    return Question(
        analysis="layers",
        variant=variant,
        work=search_work(1, tol, max_matvecs, group),
        num_examples=num_examples,
        settings={"group": group, "tol": tol, "seed": seed},
        types=TYPES,
        blank=[{"index": 0, **unmeasured}],
        begin=begin,
        headline=lambda rows: f"{max(row['value'] for row in rows):.4g}",
        is_answer=lambda rows: all(row["converged"] or row["max_matvecs"] >= max_matvecs for row in rows),
    )
