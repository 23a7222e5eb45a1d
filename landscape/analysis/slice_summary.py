"""What is read off a slice once the whole of it is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.analysis.slice_settings import THROUGH_SNAPSHOTS
from landscape.store.slices import FLATNESS, SliceFile, slice_path

if TYPE_CHECKING:
    from landscape.slices import SliceResult


def results_of(item: SliceFile) -> list[SliceResult]:
    """A slice on disk as the results that `landscape.slices` works with, one a draw; without directions."""
    from landscape.slices import SliceResult

    settings = item.info["settings"]
    is_random = settings["directions"] == "random"
    same = {key: item.info[key] for key in ("metric", "num_examples", "num_labels", "num_parameters", "precision")}
    return [
        SliceResult(
            axes=item.axes,
            loss=item.loss[draw],
            standard_error=item.standard_error[draw],
            origin_loss=item.origin_loss,
            space=settings["space"],
            normalization=settings["normalization"],
            seed=settings["seed"] if is_random else None,
            draw=draw if is_random else None,
            directions=None,
            cosine=facts["cosine"],
            evaluation=facts["evaluation"],
            seconds_a_point={},
            seconds=facts["seconds"],
            **same,
        )
        for draw, facts in enumerate(item.info["draws"])
    ]


def completed(item: SliceFile) -> SliceFile:
    """With its barrier or its flatness, and the number of points that were measured."""
    from landscape.slices import Interpolation, flatness

    results = results_of(item)
    settings = item.info["settings"]
    info = {**item.info, "num_evaluations": int(item.evaluated.sum())}
    if settings["directions"] == "line" and item.dims == 1 and settings["radius"] is None:
        barrier = Interpolation(results[0]).barrier
        info["barrier"] = barrier if math.isfinite(barrier) else None
    if settings["directions"] in THROUGH_SNAPSHOTS or any(len(axis) < 5 or not (axis == 0).any() for axis in item.axes):
        return replace(item, info=info)
    numbers = flatness(results, settings["delta"])
    estimates = {name: getattr(numbers, name) for name in FLATNESS}
    rows = {name: (e.value, e.standard_error, float(e.num_draws)) for name, e in estimates.items()}
    return replace(item, info=info, flatness=rows)


def summary(item: SliceFile) -> dict[str, Any]:
    """One slice as one row of plain values: what was measured, and the numbers read off it."""
    import numpy as np

    finite = item.loss[np.isfinite(item.loss)]
    settings, facts = item.info["settings"], item.info["draws"]
    row: dict[str, Any] = {
        "runs": list(item.runs), "step": item.info["step"],
        "file": slice_path(Path(), item.dims, item.info["id"]).name,
        **{key: settings[key] for key in ("dims", "directions", "space", "normalization", "draws", "seed")},
        "anchors": item.info["anchors"], "common": item.info.get("common"), "points": item.loss[0].size,
        "num_evaluations": item.info["num_evaluations"], "num_examples": item.info["num_examples"],
        "origin_loss": item.origin_loss, "smallest": float(finite.min(initial=math.inf)),
        "largest": float(finite.max(initial=-math.inf)), "not_finite": int(item.loss.size - finite.size),
        "barrier": item.info.get("barrier"),
        "error_bound": max((draw["error_bound"] for draw in facts if "error_bound" in draw), default=None),
        "explained_variance": _explained(item),
        "explained_by_run": {path.run: path.explained_variance for path in item.trajectories},
        "seconds": sum(draw["seconds"] for draw in facts),
    }  # fmt: skip
    for name in FLATNESS if item.flatness is not None else ():
        row[name], row[f"{name}_error"] = (item.flatness or {})[name][:2]
    return row


def _explained(item: SliceFile) -> float | None:
    """Of all snapshots together, where that is known."""
    if len(item.trajectories) == 1:
        return item.trajectories[0].explained_variance
    return sum(item.info["explained"]) if "explained" in item.info else None
