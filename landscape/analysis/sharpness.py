"""Sharpness along a run: the largest Hessian eigenvalues at captured steps, kept in the run's folder."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from landscape.analysis.restored import RestoredRun, check_steps, open_run
from landscape.analysis.tables import read_rows, write_table
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from torch import Tensor

    from landscape.store import Run

SHARPNESS_FILE = "sharpness.parquet"
SPLIT = "probe"
COLUMNS = (
    *("step", "index", "value", "residual", "num_matvecs", "converged", "space", "split", "num_examples", "num_labels"),
    *("loss", "seconds", "tol", "seed", "max_matvecs", "max_examples", "num_parameters", "snapshot"),
)


@dataclass(frozen=True)
class _Settings:
    """What decides a row's value (beyond its tolerance); the file holds one combination a space."""

    space: str
    split: str
    max_examples: int
    tol: float
    seed: int


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
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The k largest Hessian eigenvalues of the probe loss at captured steps, kept in ``analysis/sharpness.parquet``.

    Snapshots are taken in order, and each search starts from the eigenvectors of the one before. Every result is on
    disk, atomically, before the next search begins: an interrupted analysis goes on where it stopped. What was measured
    with the same settings on the same snapshot is not measured again, unless it did not converge and ``max_matvecs``
    has grown. The file holds one combination of settings a space; measuring with others replaces the rows of the space.

    Args:
        run: a run with snapshots; it may still be training.
        steps: captured steps; default: all.
        every: of those, only multiples of so many.
        k: how many eigenvalues.
        space: coordinates of the Hessian, as `landscape.curvature.top_eigenvalues`.
        tol: relative residual at which an eigenvalue counts as found.
        max_matvecs: most Hessian-vector products a step.
        seed: of the random vectors.
        num_examples: only the first so many examples of the probe split.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``. Results do not depend
            on it.
        device: default: CUDA where there is one.
        progress: show a progress bar.

    Returns:
        One row per (step, index): step, index (0 is the largest), value, residual (relative), num_matvecs, converged,
        space, split, num_examples, num_labels, loss (nats a counted label), seconds, tol, seed, max_matvecs,
        max_examples, num_parameters, and snapshot, the CRC-32 of the parameters. Where the parameters had diverged,
        value, residual and loss are NaN.

    Raises:
        UsageError: an argument out of range, or the model or data cannot be found.
        StoreError: no such snapshot, snapshots that do not fit the model, changed model or data, or a damaged file.
    """
    _check_arguments(space, k, tol, max_matvecs, every, num_examples, batch_size)
    config, snapshots = run.config, run.snapshots()
    chosen = check_steps(run, snapshots.steps.tolist() if steps is None else steps)
    chosen = [step for step in chosen if every is None or step % every == 0]
    if not chosen:
        raise StoreError(f"run {run.id}: no snapshot{f' at a multiple of {every} steps' if every else ''} to measure")
    settings = _Settings(space, SPLIT, num_examples or config.probe_examples, tol, seed)
    path = run.analysis_dir / SHARPNESS_FILE
    known = read_rows(path, COLUMNS)
    checksums = {step: _checksum(snapshots.tensors(step)) for step in chosen}
    missing = [step for step in chosen if not _is_known(known, step, checksums[step], settings, k, max_matvecs)]
    if missing:
        restored = open_run(run, device=device)
        probe = restored.data.probe
        indices = range(min(num_examples or len(probe), len(probe)))
        batches = list(probe.batches(batch_size or config.per_device_eval_batch_size, indices))
        options = {"k": k, "space": space, "tol": tol, "max_matvecs": max_matvecs, "seed": seed}
        for step, rows in _measured(restored, missing, batches, options, progress):
            origin = {**asdict(settings), "max_matvecs": max_matvecs, "snapshot": checksums[step]}
            _write_rows(path, [{**row, **origin} for row in rows], settings)
    return _table(
        [row for row in read_rows(path, COLUMNS) if row["step"] in chosen and row["index"] < k and _fits(row, settings)]
    )


def _check_arguments(
    space: str,
    k: int,
    tol: float,
    max_matvecs: int,
    every: int | None,
    num_examples: int | None,
    batch_size: int | None,
) -> None:
    """Before a model is loaded; what depends on it (k against its size) is checked by the search."""
    from landscape.curvature import check_space

    check_space(space)
    for name, value in (("k", k), ("every", every), ("num_examples", num_examples), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: {value}; allowed: at least 1")
    if not 0 < tol < 1:
        raise UsageError(f"tol: {tol}; allowed: greater than 0 and less than 1")
    if max_matvecs < k:
        raise UsageError(f"max_matvecs: {max_matvecs}; allowed: at least k = {k}")


def _is_known(
    rows: list[dict[str, Any]], step: int, snapshot: str, settings: _Settings, k: int, max_matvecs: int
) -> bool:
    """Whether the k eigenvalues of this snapshot are there: converged, or not to be had with this budget."""
    mine = [row for row in rows if row["step"] == step and row["index"] < k and _fits(row, settings)]
    return len(mine) == k and all(
        row["snapshot"] == snapshot
        and (row["converged"] or math.isnan(row["loss"]) or row["max_matvecs"] >= max_matvecs)
        for row in mine
    )


def _fits(row: Mapping[str, Any], settings: _Settings) -> bool:
    return all(row[key] == value for key, value in asdict(settings).items())


def _measured(
    restored: RestoredRun, steps: list[int], batches: list[Any], options: dict[str, Any], progress: bool
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows of each step as they are measured, each search started from the one before."""
    from tqdm import tqdm

    from landscape.curvature import top_eigenvalues
    from landscape.loss import count_labels
    from landscape.measurement import NonFiniteLossError

    probe = restored.data.probe
    counts = [count_labels(batch["labels"], probe.kind) for batch in batches]
    sizes = {
        "num_examples": sum(int((count > 0).sum()) for count in counts),
        "num_labels": sum(int(count.sum()) for count in counts),
        "num_parameters": sum(p.numel() for p in restored.model.parameters() if p.requires_grad),
    }
    bar = tqdm(steps, desc="sharpness", disable=not progress)
    start = None
    for step in bar:
        began = time.perf_counter()
        restored.load(step)
        try:
            result = top_eigenvalues(restored.model, batches, start=start, **options)
        except NonFiniteLossError:
            values = residuals = [math.nan] * options["k"]
            measured: dict[str, Any] = {"num_matvecs": 0, "converged": False, "loss": math.nan}
        else:
            start = result.next_start
            values, residuals = result.values.tolist(), result.residuals.tolist()
            measured = {"num_matvecs": result.num_matvecs, "converged": result.converged, "loss": result.loss}
        bar.set_postfix_str(f"step {step}: {values[0]:.4g}", refresh=False)
        seconds = time.perf_counter() - began
        shared = {"step": step, **measured, **sizes, "seconds": seconds}
        pairs = enumerate(zip(values, residuals, strict=True))
        yield step, [{**shared, "index": i, "value": value, "residual": residual} for i, (value, residual) in pairs]


def _write_rows(path: Path, rows: list[dict[str, Any]], settings: _Settings) -> None:
    """Add rows to what the file holds by now; of their space, steps measured anew and other settings go."""
    steps = {row["step"] for row in rows}
    kept = [
        row
        for row in read_rows(path, COLUMNS)
        if row["space"] != settings.space or (_fits(row, settings) and row["step"] not in steps)
    ]
    write_table(path, _table([*kept, *rows]))


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    ordered = sorted(rows, key=lambda row: (row["space"], row["step"], row["index"]))
    return pd.DataFrame(ordered, columns=list(COLUMNS))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the parameters' bytes, in hex."""
    import torch

    checksum = 0
    for tensor in tensors.values():
        checksum = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
