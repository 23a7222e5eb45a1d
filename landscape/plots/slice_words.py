"""What is said of a slice that a store holds: names and units of its axes, how it was filled, what was read off it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape.plots.data import RunData, distinct, group, spell

if TYPE_CHECKING:
    from landscape.store.slices import SliceFile

_UNITS = {"filter": "× row norms", "layer": "× layer norms", "none": "distance in parameters"}


def axis_labels(item: SliceFile, labels: Sequence[str]) -> list[str]:
    """Name and unit of each axis.

    Args:
        labels: names of the slice's runs.
    """
    settings, dims = item.info["settings"], item.dims
    unit = _UNITS[settings["normalization"]]
    match settings["directions"]:
        case "random":
            unit = "× N(0, 1)" if settings["normalization"] == "none" else unit
            names = ["random direction"] if dims == 1 else ["random direction 1", "random direction 2"]
        case "pca":
            names = ["PC 1", "PC 2"]
        case "line":
            ends = labels if len(labels) > 1 else [f"step {step}" for step in item.info["anchors"]]
            if dims == 1:
                return [f"share of the way from {ends[0]} to {ends[1]}"]
            names = [f"from {ends[0]} to {ends[1]}", f"across, to {ends[2]}"]
        case "update":
            unit = "× its length" if settings["normalization"] == "none" else unit
            names = ["last update", "random direction"]
        case "gradient":
            names = ["gradient", "random direction"]
        case _:
            names = ["top eigenvector", "second eigenvector"]
    return [f"{name} ({unit})" for name in names[:dims]]


def remarks(item: SliceFile, *, averaged: bool, left_out: int = 0) -> tuple[str, ...]:
    """How the values came about and what was read off them, one sentence each.

    Args:
        averaged: whether the mean over draws is shown, else the first of them.
        left_out: paths that are not drawn.
    """
    info, draws = item.info, len(item.loss)
    said = []
    if averaged and item.dims == 2:
        spread = item.spread[np.isfinite(item.spread)]
        size = f" (their sd: {np.median(spread):.2g} in the median, at most {spread.max():.2g})" if len(spread) else ""
        said.append(f"Mean over {draws} planes{size}.")
    elif draws > 1 and not averaged:
        said.append(f"The first of {draws} planes, which the paths are projected on.")
    if not item.evaluated.all():
        said.append(_filling(item))
    if "since" in info:
        said.append(f"The update is that since step {info['since']}.")
    if info.get("eigenvalues"):
        said.append(f"Eigenvalues: {', '.join(f'{value:.3g}' for value in info['eigenvalues'])}.")
    if info.get("barrier") is not None:
        said.append(f"Barrier (most above the straight line between the ends): {info['barrier']:.3g} nats.")
    if item.flatness is not None:
        said.append(_flatness(item))
    if len(item.runs) > 1:
        said.append("Runs may differ in gauge: a part of the distance between them may change no function.")
    if left_out:
        said.append(f"Paths of runs that were not chosen are left out: {left_out}.")
    return tuple(said)


def _filling(item: SliceFile) -> str:
    """How many points were measured, and how wrong the others may be."""
    facts = [draw for draw in item.info["draws"] if "error_bound" in draw]
    bound = max((draw["error_bound"] for draw in facts), default=math.nan)
    tested = min((draw["num_held_out"] for draw in facts), default=0)
    missed = "" if all(draw["converged"] for draw in facts) else ", more than was asked for"
    said = (
        f"{int(item.evaluated.sum())} of {item.evaluated.size} points measured, the others interpolated: "
        f"error at most {bound:.2g} nats by {tested} held-out points{missed}"
    )
    surest = [draw for draw in facts if draw.get("coverage")]
    if len(surest) < len(facts) or not facts:
        return f"{said}."
    share, error = min(draw["coverage"] for draw in surest), max(draw["held_out_error"] for draw in surest)
    return f"{said}; with 95 % confidence {share:.1%} of them are within {error:.2g}."


def _flatness(item: SliceFile) -> str:
    numbers = item.flatness or {}
    delta = item.info["settings"]["delta"]
    width = f"Width at +{delta:g} nats: {_plus_minus(numbers['width'])}"
    bent = f"negative curvature at {_plus_minus(numbers['nonconvexity'], 100)} % of the points"
    if item.dims == 1:
        return f"{width}; {bent}."
    return f"{width}; anisotropy {_plus_minus(numbers['anisotropy'])}; {bent}."


def _plus_minus(estimate: tuple[float, float, float], times: float = 1.0) -> str:
    value, error = estimate[0] * times, estimate[1] * times
    if math.isinf(value):
        return "beyond the axes"
    if not math.isfinite(error) or error <= 0:
        return f"{value:.3g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def title(items: Sequence[SliceFile], labels: Sequence[str]) -> str:
    """Of a picture.

    Args:
        labels: names of its runs.
    """
    names = labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
    item, kind = items[0], items[0].info["settings"]["directions"]
    flat = "plane" if item.dims == 2 else "line"
    if len(items) > 1:
        return f"Loss around {names}" if len(labels) > 1 else f"Loss around {len(items)} snapshots of {names}"
    if len(item.runs) > 1:
        return f"{names} on one common {flat}" if len(labels) > 1 else f"{names} on a {flat} of several runs"
    if kind == "pca":
        return f"{names} on the plane of its principal components" if item.dims == 2 else f"{names} along its first PC"
    return f"Loss on the {flat} through snapshots of {names}" if kind == "line" else f"Loss around {names}"


def chosen(items: Sequence[SliceFile], runs: Sequence[RunData], of: int) -> str:
    """What a picture shows, for the line under its title.

    Args:
        of: how many slices of the kind there are.
    """
    cells = list(group(runs))
    said = []
    if cells:
        models, tasks = distinct(cells, "model"), distinct(cells, "task")
        said.append(f"{', '.join(map(str, models))} on {', '.join(map(str, tasks))}")
        for axis in ("rank", "alpha", "learning_rate"):
            values = distinct(cells, axis)
            said += [spell(axis, value) for value in values] if len(values) == 1 else []
        seeds = {run.seed for run in runs}
        said += [f"seed {seed}" for seed in seeds] if len(seeds) == 1 else []
    steps = sorted({max(item.info["anchors"]) for item in items})
    more = f" (of {of} slices of the kind)" if of > len(items) else ""
    until = "up to " if items[0].trajectories and len(items) == 1 else ""
    said.append(f"{until}step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}{more}")
    if "common" in items[0].info:
        said.append(f"directions and axes of step {items[0].info['common']['step']}")
    said.append(" × ".join(str(len(axis)) for axis in items[0].axes) + " points")
    said.append(f"slice{'s' * (len(items) > 1)} {', '.join(item.info['id'] for item in items)}")
    return "; ".join(said)
