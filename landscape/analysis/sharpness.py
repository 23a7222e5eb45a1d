"""Sharpness along a run: the largest eigenvalues of the loss's Hessian at captured steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from landscape.analysis.checks import check_counts, check_tolerance
from landscape.analysis.cost import search_work
from landscape.analysis.series import Question, Row, Subject, ask, shared
from landscape.analysis.variants import Variant
from landscape.errors import UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Run

SHARPNESS_FILE = "sharpness.parquet"
WHICH = ("largest", "smallest")

TYPES = {
    "index": "int64", "value": "float64", "residual": "float64", "converged": "bool", "threshold": "float64",
    "threshold_ratio": "float64", "which": "string", "cold": "bool", "product": "string", "tol": "float64",
    "max_matvecs": "int64",
}  # fmt: skip
_ADDED = {"threshold": None, "threshold_ratio": None, "which": "largest", "cold": None, "product": None}


def analyze_sharpness(
    run: Run,
    steps: Iterable[int] | None = None,
    *,
    every: int | None = None,
    k: int = 1,
    space: str = "adapter",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    seed: int = 0,
    num_examples: int | None = None,
    batch_size: int | None = None,
    which: str = "largest",
    matrix: str = "hessian",
    backend: str = "landscape",
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The k largest Hessian eigenvalues of the probe loss at captured steps, kept in ``analysis/sharpness.parquet``.

    Snapshots are taken in order, and each search starts from the eigenvectors of the one before, but every tenth from a
    random vector (`landscape.curvature.SharpnessTracker`). Every result is on
    disk, atomically, before the next search begins: an interrupted analysis goes on where it stopped. What was measured
    with the same settings on the same snapshot is not measured again, unless it did not converge and ``max_matvecs``
    has grown. The file holds one combination of settings a space; measuring with others replaces the rows of the space.
    Another matrix, backend or end of the spectrum has a file of its own, such as ``sharpness-ggn.parquet``.

    Args:
        run: a run with snapshots; it may still be training.
        steps: captured steps; default: all.
        every: of those, only multiples of so many.
        k: how many eigenvalues.
        space: ``adapter``, ``merged`` or ``balanced`` as in `landscape.curvature.top_eigenvalues`, or
            ``preconditioned``: D^½ H D^½ in adapter coordinates with Adam's diagonal D at that step, for runs that
            captured ``moments``; step 0 has none.
        tol: relative residual at which an eigenvalue counts as found.
        max_matvecs: most Hessian-vector products a step.
        seed: of the random vectors.
        num_examples: only the first so many examples of the probe split.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``. Results do not depend
            on it.
        which: ``largest``, or ``smallest``: the most negative curvature, with index 0 for the smallest.
        matrix: ``hessian`` or ``ggn``, the generalized Gauss-Newton matrix.
        backend: ``landscape``, or ``pyhessian`` as a cross-check: it finds the eigenvalues of largest magnitude, in
            the adapter space only.
        device: default: CUDA where there is one.
        progress: show a progress bar.

    Returns:
        One row per (step, index): step, index (0 is the largest), value, residual (relative), num_matvecs, converged,
        space, matrix, backend, which, cold (the search began from a random vector), product (how matrix-vector products
        were made), split, num_examples, num_labels, loss (nats a counted label), seconds, tol, seed, max_matvecs,
        max_examples, num_parameters, snapshot (CRC-32 of what was read), and in the preconditioned space threshold
        (`landscape.curvature.stability.stability_threshold`) and threshold_ratio = value ÷ threshold: 1 at the edge of
        stability. Where the parameters had diverged, or the space is not defined, value, residual and loss are NaN and
        ``reason`` says why.

    Raises:
        UsageError: an argument out of range, or the model or data cannot be found.
        StoreError: no such snapshot, moments that were not captured, snapshots that do not fit the model, changed model
            or data, or a damaged file.
    """
    question = sharpness_question(
        k=k, space=space, tol=tol, max_matvecs=max_matvecs, seed=seed, num_examples=num_examples, which=which,
        matrix=matrix, backend=backend,
    )  # fmt: skip
    return ask(run, question, steps, every=every, batch_size=batch_size, device=device, progress=progress)


def sharpness_question(
    *,
    k: int = 1,
    space: str = "adapter",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    seed: int = 0,
    num_examples: int | None = None,
    which: str = "largest",
    matrix: str = "hessian",
    backend: str = "landscape",
) -> Question:
    """What `analyze_sharpness` asks of every snapshot.

    Raises:
        UsageError: an argument out of range; k against the number of parameters is checked by the search.
    """
    variant = Variant(space, matrix, backend)
    variant.check("sharpness")
    check_counts(k=k, num_examples=num_examples)
    check_tolerance(tol)
    if max_matvecs < k:
        raise UsageError(f"max_matvecs: {max_matvecs}; allowed: at least k = {k}")
    if which not in WHICH:
        raise unknown("which", which, WHICH)
    if backend == "pyhessian" and which != "largest":
        raise UsageError(f"which: {which!r} with backend='pyhessian'; allowed: largest")
    options = {"k": k, "tol": tol, "max_matvecs": max_matvecs, "seed": seed}

    def begin(subject: Subject) -> Callable[[int], list[Row]]:
        search = _pyhessian(subject, options) if backend == "pyhessian" else _search(subject, options, which)
        threshold = subject.threshold if which == "largest" else None
        return lambda step: _rows(search(step), max_matvecs, threshold)

    unmeasured = {"value": math.nan, "residual": math.nan, "converged": False, "max_matvecs": max_matvecs}
    return Question(
        analysis="sharpness" if which == "largest" else "sharpness-smallest",
        variant=variant,
        work=search_work(k, tol, max_matvecs),
        num_examples=num_examples,
        settings={"tol": tol, "seed": seed, "which": which if backend == "landscape" else "magnitude"},
        types=TYPES,
        blank=[{"index": index, **unmeasured} for index in range(k)],
        begin=begin,
        headline=lambda rows: f"{rows[0]['value']:.4g}",
        # Converged, or not to be had with this budget.
        is_answer=lambda rows: len(rows) == k and all(r["converged"] or r["max_matvecs"] >= max_matvecs for r in rows),
        wants=lambda row: row["index"] < k,
        defaults=_ADDED,
    )


def _search(subject: Subject, options: dict[str, Any], which: Any) -> Callable[[int], Any]:
    """Eigenvalues at the snapshot that the model is at, each search started from the one before."""
    from landscape.curvature import SharpnessTracker

    tracker = SharpnessTracker(subject.model, subject.batches, which=which, **subject.options, **options)
    return lambda step: tracker.measure(preconditioner=subject.preconditioner(step))


def _pyhessian(subject: Subject, options: dict[str, Any]) -> Callable[[int], Any]:
    from landscape.curvature.pyhessian_backend import pyhessian_top_eigenvalues

    return lambda step: pyhessian_top_eigenvalues(subject.model, subject.batches, **options)


def _rows(result: Any, max_matvecs: int, threshold: float | None) -> list[Row]:
    whole = {
        **{key: getattr(result, key) for key in ("num_matvecs", "cold", "product")},
        "converged": bool(result.converged),
        "max_matvecs": max_matvecs,
    }
    pairs = enumerate(zip(result.values.tolist(), result.residuals.tolist(), strict=True))
    return [
        {
            "index": index,
            "value": value,
            "residual": residual,
            **shared(result),
            **whole,
            "threshold": threshold,
            "threshold_ratio": None if threshold is None else value / threshold,
        }
        for index, (value, residual) in pairs
    ]
