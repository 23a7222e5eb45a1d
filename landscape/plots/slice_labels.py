"""Marks and step labels along the paths on a surface, placed where they touch nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from landscape.plots.curves import FloatArray
from landscape.plots.slices import PathData, SurfaceData, SurfaceSet
from landscape.plots.style import INK


@dataclass(frozen=True)
class Spot:
    """A snapshot drawn with a mark of its own."""

    kind: Literal["start", "end", "mark"]
    path: PathData
    index: int
    text: str
    color: str


@dataclass(frozen=True)
class StepLabel:
    """A label on a surface: its center in the unit of the page it was placed on, from the lower left corner."""

    text: str
    color: str
    x: float
    y: float


def spots(path: PathData, *, alone: bool = True) -> list[Spot]:
    """First and last snapshot on the plane, and those nearest to the marks.

    Args:
        alone: whether it is the only path; else the last snapshot carries its name in place of the step, and the first
            one, where runs may start together, is nobody's.
    """
    seen = path.seen.tolist()
    if not seen:
        return []
    found = [Spot("start", path, seen[0], f"step {path.steps[seen[0]]}", path.color if alone else INK)]
    if len(seen) > 1:
        found.append(Spot("end", path, seen[-1], str(path.steps[seen[-1]]) if alone else path.label, path.color))
    for step, name in path.marks:
        index = path.nearest(step)
        if index is not None:
            found.append(Spot("mark", path, index, name, path.color))
    return found


def step_labels(
    result: SurfaceSet, surface: SurfaceData, page: tuple[float, float], character: tuple[float, float]
) -> list[StepLabel]:
    """Labels that fit on a surface drawn on a page of this size: marks and ends first, then steps between them.

    Args:
        page: width and height of the axes.
        character: width and height of one, in the same unit.
    """
    low = np.array([result.x_range[0], result.y_range[0]])
    span = np.array([result.x_range[1], result.y_range[1]]) - low
    texts, colors, anchors, needed, lines = [], [], [], [], []
    if surface.center is not None:
        lines.append((np.array([surface.center]) - low) / span * page)
    for number, path in enumerate(surface.paths):
        places = (path.coordinates - low) / span * page
        lines.append(places)
        own = spots(path, alone=len(surface.paths) == 1)
        # Runs of one base start in one place, whose step is said once.
        named = [spot for spot in own if not (spot.kind == "start" and number)]
        taken = {spot.index for spot in own}
        between = [index for index in _round_steps(path) if index not in taken]
        for index, text, color, must in [
            *((spot.index, spot.text, spot.color, True) for spot in named),
            *((index, str(path.steps[index]), path.color, False) for index in between),
        ]:
            texts.append(text)
            colors.append(color)
            anchors.append(places[index])
            needed.append(must)
    if not texts:
        return []
    sizes = [(len(text) * character[0] + 2, character[1]) for text in texts]
    placed = place_labels(np.array(anchors), sizes, needed, lines, page)
    return [StepLabel(texts[label.index], colors[label.index], label.x, label.y) for label in placed]


def _round_steps(path: PathData, most: int = 6) -> list[int]:
    """Indices of the snapshots nearest to round steps, at most about ``most``."""
    first, last = int(path.steps[0]), int(path.steps[-1])
    least = max(1.0, (last - first) / most)
    power = 10.0 ** math.floor(math.log10(least))
    interval = next(round(base * power) for base in (1, 2, 5, 10) if base * power >= least)
    nearest = [path.nearest(step) for step in range(first - first % interval, last + 1, interval)]
    return list(dict.fromkeys(index for index in nearest if index is not None))


@dataclass(frozen=True)
class Placed:
    """A label that found room: which one, and its center."""

    index: int
    x: float
    y: float


_AROUND = [(math.cos(angle), math.sin(angle)) for angle in np.pi * np.array([0.5, 1.5, 0, 1, 0.25, 0.75, 1.25, 1.75])]


def place_labels(
    anchors: FloatArray,
    sizes: Sequence[tuple[float, float]],
    needed: Sequence[bool],
    lines: Sequence[FloatArray],
    page: tuple[float, float],
) -> list[Placed]:
    """Centers of labels beside their anchors, so that none touches another, the page's edge or (if it can) a line.

    Needed labels are placed first and may lie on a line; others are left out where there is no free room.

    Args:
        anchors: (labels, 2), in the unit of all lengths here, such as points or pixels, from the lower left corner.
        sizes: width and height of each label.
        lines: polylines (points, 2) to keep free.
        page: width and height.
    """
    dense = np.concatenate([_dense(line) for line in lines]) if lines else np.empty((0, 2))
    boxes: list[tuple[float, float, float, float]] = []
    placed = []
    for index in sorted(range(len(sizes)), key=lambda item: not needed[item]):
        half_w, half_h = sizes[index][0] / 2, sizes[index][1] / 2
        best: tuple[float, Placed, tuple[float, float, float, float]] | None = None
        for gap in (5.0, 9.0, 15.0, 24.0) if needed[index] else (5.0, 9.0):
            for dx, dy in _AROUND:
                x = float(anchors[index][0]) + dx * (half_w + gap)
                y = float(anchors[index][1]) + dy * (half_h + gap)
                box = (x - half_w, x + half_w, y - half_h, y + half_h)
                if box[0] < 1 or box[1] > page[0] - 1 or box[2] < 1 or box[3] > page[1] - 1:
                    continue
                if any(_touch(box, other) for other in boxes):
                    continue
                covered = (np.abs(dense - (x, y)) <= (half_w + 1, half_h + 1)).all(axis=1).sum()
                if covered and not needed[index]:
                    continue
                cost = 20.0 * float(covered) + gap
                if best is None or cost < best[0]:
                    best = cost, Placed(index, x, y), box
        if best is not None:
            placed.append(best[1])
            boxes.append(best[2])
    return placed


def _dense(line: FloatArray) -> FloatArray:
    """Points along a polyline, about 3 apart; lines that are not finite count for nothing."""
    line = line[np.isfinite(line).all(axis=1)]
    if len(line) < 2:
        return line
    steps = np.maximum(1, np.ceil(np.linalg.norm(np.diff(line, axis=0), axis=1) / 3)).astype(int)
    parts = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(line[:-1], line[1:], steps.tolist(), strict=True)]
    return np.concatenate([*parts, line[-1:]])


def _touch(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    apart = 2.0
    return (
        one[0] < other[1] + apart
        and other[0] < one[1] + apart
        and one[2] < other[3] + apart
        and other[2] < one[3] + apart
    )
