"""Runs that hold something of everything a store can hold; nothing was trained."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from landscape.analysis.slice_settings import SliceSettings
from landscape.config import RunConfig
from landscape.store import Run, SnapshotLayout, Store
from landscape.store.slices import SliceFile, slice_path, write_slice
from landscape.store.tables import write_table
from landscape.training.order import stored_order

DIGESTS = {"data": "d" * 16, "model": "m" * 16}
STEPS = 12
LAYOUT = SnapshotLayout.from_tensors({"A": torch.zeros(3, 4), "B": torch.zeros(5)})


def tensors(step: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return {"A": torch.randn(3, 4, generator=generator), "B": torch.randn(5, generator=generator)}


def line(step: int, seed: int = 0) -> dict[str, Any]:
    loss = 3.0 / (step + seed + 1)
    return {"step": step, "loss_clean": loss, "loss_perturbed": math.nan if step == 3 else loss, "seconds": 0.01 * step}


def add(
    store: Store, run_id: str = "lora-r8-s0-aaaa", *, seed: int = 0, steps: int = STEPS, state: str = "done"
) -> Run:
    """A run with metrics, evaluations, two snapshot streams, base tensors, a checkpoint, analyses and a slice."""
    run = store.add(RunConfig.parse({"max_steps": STEPS, "alpha": 16, "seed": seed}), run_id, DIGESTS)
    with run.begin_attempt() as attempt:
        attempt.write_base_tensors({"base": torch.arange(4.0) + seed})
        writers = [attempt.snapshot_writer(stream, LAYOUT) for stream in ("params", "adam_v")]
        for step in range(steps + 1):
            for writer in writers:
                writer.put(step, tensors(step, seed))
            if step:
                attempt.log(line(step, seed))
            if step % 4 == 0:
                attempt.log({"step": step, "split": "eval", "loss": 2.0 / (step + 1), "standard_error": 0.1})
        attempt.sync()
    run.set_status(state=state, step=steps, environment={"torch": "2.13", "threads": 1})
    if state == "done":
        run.compact()
    run.analysis_dir.mkdir()
    write_table(run.analysis_dir / "sharpness.parquet", pa.table({"step": [0, 4], "value": [1.5, 2.5]}))
    write_slice(slice_path(run.analysis_dir, 1, "x"), slice_of(run.id))
    return run


def fill_shared(store: Store, *runs: Run) -> None:
    """A data order, base losses, and a slice of several runs."""
    stored_order(store.orders_dir, 8, 0, 20)
    np.savez(store.base_loss_dir / "abc.npz", nll=np.array([1.0, np.nan, 2.0]), count=np.array([3.0, np.nan, 4.0]))
    write_slice(slice_path(store.path / "analysis", 1, "joint"), slice_of(*(run.id for run in runs)))


SLICE = {
    "id": "x", "space": "adapter", "steps": [0], "step": 0, "anchors": [0], "draws": [{}], "metric": "loss",
    "num_examples": 8, "num_labels": 200, "precision": "float32", "split": "probe",
    "settings": asdict(SliceSettings(dims=1, points=5).checked()),
}  # fmt: skip


def slice_of(*runs: str) -> SliceFile:
    loss = np.linspace(1.0, 2.0, 5)[None]
    return SliceFile(
        axes=(np.linspace(-1, 1, 5),), loss=loss, standard_error=loss / 10, evaluated=np.ones_like(loss, dtype=bool),
        origin_loss=1.5, trajectories=(), flatness=None,
        info={**SLICE, "run": runs[0], "runs": list(runs), "id": "x" if len(runs) == 1 else "joint"},
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for leases."""
    files = (path for path in folder.rglob("*") if path.is_file() and "leases" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
