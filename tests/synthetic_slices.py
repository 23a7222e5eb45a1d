"""Slices as a store keeps them, without a model behind them: quadratics, and paths that bend across them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from landscape.analysis.slice_settings import SliceSettings
from landscape.store import Store
from landscape.store.slices import SliceFile, SliceTrajectory, joint_slices_dir, slice_path, write_slice


def quadratic(places: np.ndarray, draw: int = 0) -> np.ndarray:
    """A loss (...) at coordinates (..., dims)."""
    return 0.5 + (np.array([1.0, 0.4])[: places.shape[-1]] * (1 + 0.2 * draw) * places**2).sum(axis=-1)


def path(run: str, steps: Sequence[int] = range(0, 61, 6), dims: int = 2, turn: float = 0.0) -> SliceTrajectory:
    """From the edge to the center, 0.1 nats lower than the surface where it lies off it."""
    t = np.linspace(0, 1, len(steps))
    places = np.stack([1.4 * (1 - t) ** 2, (turn + 0.8) * np.sin(np.pi * t)], axis=1)[:, :dims]
    distance = np.sin(np.pi * t)
    below = quadratic(places)
    return SliceTrajectory(
        run, np.array(steps), places, distance, below - 0.1 * distance, np.full(len(t), 0.02), below, 0.9
    )


def slice_file(
    *runs: str,
    step: int | None = 60,
    paths: Sequence[SliceTrajectory] = (),
    info: Mapping[str, Any] | None = None,
    evaluated: float = 1.0,
    **settings: Any,
) -> SliceFile:
    """One slice of these runs.

    Args:
        info: more of what the file says.
        evaluated: share of the points that were measured; others count as interpolated.
    """
    full = SliceSettings(**{"points": 7, **settings}).checked(joint=len(runs) > 1)
    axes = (np.linspace(-2, 2, full.points),) * full.dims
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    loss = np.stack([quadratic(places, draw) for draw in range(full.draws)])
    facts: dict[str, Any] = {"cosine": None, "evaluation": "in_place x1", "seconds": 0.1}
    if evaluated < 1:
        facts |= {"error_bound": 0.003, "held_out_error": 0.0012, "num_held_out": 100, "num_tests": 1}
        facts |= {"coverage": 0.964, "converged": True}
    known = np.random.default_rng(0).random(loss.shape) < evaluated
    described = {
        "run": runs[0], "runs": list(runs), "step": step if len(runs) == 1 else None, "anchors": [step] * len(runs),
        "settings": asdict(full), "draws": [facts] * full.draws, "metric": "loss", "num_examples": 8,
        "num_labels": 200, "num_parameters": 4000, "precision": "float32", "num_evaluations": int(known.sum()),
        "split": "probe", "snapshot": "0", **(info or {}),
    }  # fmt: skip
    described["id"] = full.identity(**described)
    wide = full.directions == "random"
    return SliceFile(
        axes,
        loss,
        np.where(known, 0.03, np.nan),
        known,
        0.5,
        tuple(paths),
        {"width": (1.2, 0.034, 3.0), "anisotropy": (2.5, 0.1, 3.0), "nonconvexity": (0.0, 0.0, 3.0)} if wide else None,
        described,
    )


def keep(store: Store, *items: SliceFile) -> None:
    """Write slices where analyses do: with their run, or with the store."""
    for item in items:
        joint = len(item.runs) > 1
        folder = joint_slices_dir(store.path) if joint else store.get(item.runs[0]).analysis_dir
        write_slice(slice_path(folder, item.dims, item.info["id"]), item)
