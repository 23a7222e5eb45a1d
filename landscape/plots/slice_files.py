"""Slices as a store keeps them, as pictures: which of them belong together, and what they are called.

Slices with the same settings share a picture: several steps of a run side by side, or one step of several runs. A plane
that snapshots lie on has a picture of its own, unless other slices lie along the same directions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from landscape.plots import slice_words
from landscape.plots.build import Pen
from landscape.plots.curves import CurveSet
from landscape.plots.data import RunData, cell_labels, group
from landscape.plots.slice_lines import line_slices
from landscape.plots.slice_surfaces import MOST_SURFACES, surface_figure
from landscape.plots.slice_words import axis_labels, remarks
from landscape.plots.slices import LinePath, LineSlice, Measured, PathData, SurfaceData, SurfaceSet
from landscape.plots.style import INK, method_style, shade

if TYPE_CHECKING:
    from landscape.store.slices import SliceFile, SliceTrajectory

Runs = Mapping[str, RunData]
Pens = Mapping[str, Pen]

MOST_LINES = 6
"""Slices in one panel."""

ALPHA = 0.05
"""Level at which a rebound of a run's loss counts, and is marked on its path."""

_MOST_REBOUNDS = 2

_WALL = 30.0
"""A loss so many times that of the model and of its paths is off the scale of colors."""

_OWN_PLANE = ("pca", "line")


@dataclass(frozen=True)
class Picture:
    """Slices of 1D or 2D that are drawn together, in order; ``of`` is how many of the kind there are."""

    items: tuple[SliceFile, ...]
    of: int

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs that it shows."""
        return tuple(dict.fromkeys(run_id for item in self.items for run_id in item.runs))

    @property
    def is_joint(self) -> bool:
        """Whether several runs are on one plane."""
        return len(self.items[0].runs) > 1

    @property
    def is_series(self) -> bool:
        """Whether these are several steps of one run."""
        return len(self.items) > 1 and len(self.run_ids) == 1

    @property
    def order(self) -> tuple[bool, ...]:
        """Sorts what says most first."""
        return (
            not self.is_joint,
            not (self.is_series and _shared(self.items[0]) is not None),
            not any(item.trajectories for item in self.items),
            not self.is_series,
        )


def surface_figures(runs: Iterable[RunData]) -> list[SurfaceSet]:
    """The 2D slices of runs as pictures: planes of several runs first, then several steps of one, then others."""
    known = {run.run_id: run for run in runs}
    return [_surfaces(picture, known) for picture in _pictures(known, 2, MOST_SURFACES)]


def line_figures(runs: Iterable[RunData]) -> list[CurveSet]:
    """The 1D slices of runs as pictures, in the same order."""
    known = {run.run_id: run for run in runs}
    return [_lines(picture, known) for picture in _pictures(known, 1, MOST_LINES)]


def _pictures(runs: Runs, dims: int, most: int) -> list[Picture]:
    ordered = [run for members in group(runs.values()).values() for run in members]
    found = {item.info["id"]: item for run in ordered for item in run.slices if item.dims == dims}
    alike: dict[str, list[SliceFile]] = {}
    for item in found.values():
        alike.setdefault(_kind(item), []).append(item)
    pictures = [picture for items in alike.values() for picture in _arranged(items, most)]
    return sorted(pictures, key=lambda picture: picture.order)


def _kind(item: SliceFile) -> str:
    """What slices of one picture have in common."""
    alone = len(item.runs) > 1 or item.info["settings"]["directions"] in _OWN_PLANE
    plane = _shared(item) or (item.info["id"] if alone else None)
    return json.dumps([plane, item.info["settings"], item.info["num_examples"], item.info["metric"]], sort_keys=True)


def _shared(item: SliceFile) -> str | None:
    """The identity of directions and axes that slices of several steps have in common."""
    return item.info.get("common", {}).get("id")


def _arranged(items: Sequence[SliceFile], most: int) -> list[Picture]:
    """A picture for each run with several steps, and pictures of several runs with one."""
    by_run: dict[tuple[str, ...], list[SliceFile]] = {}
    for item in items:
        by_run.setdefault(item.runs, []).append(item)
    pictures, single = [], []
    for same in by_run.values():
        same.sort(key=lambda item: item.info["step"])
        if len(same) == 1:
            single += same
            continue
        places = np.unique(np.linspace(0, len(same) - 1, min(most, len(same))).round().astype(int))
        pictures.append(Picture(tuple(same[place] for place in places), len(same)))
    starts = range(0, len(single), most)
    return pictures + [Picture(tuple(single[start : start + most]), len(single)) for start in starts]


def _surfaces(picture: Picture, known: Runs) -> SurfaceSet:
    pens = _pens(picture.run_ids, known)
    surfaces = [_surface(item, _name(picture, item, known, pens), known, pens) for item in picture.items]
    title, chosen = _words(picture, known, pens)
    result = surface_figure(surfaces, title=title, chosen=chosen, highest=_highest(surfaces, picture.items))
    drawn = {path.run for item in picture.items for path in item.trajectories if path.run in known}
    if all(known[run_id].episodes is not None for run_id in drawn):
        return result
    note = "tested rebounds, to be marked on the paths: landscape analyze episodes."
    return replace(result, curves=replace(result.curves, missing=(note,)))


def _words(picture: Picture, known: Runs, pens: Pens) -> tuple[str, str]:
    """The title, and what is shown."""
    shown = [known[run_id] for run_id in picture.run_ids if run_id in known]
    labels = [pens[run.run_id].label for run in sorted(shown, key=lambda run: pens[run.run_id].order)]
    return slice_words.title(picture.items, labels), slice_words.chosen(picture.items, shown, picture.of)


def _surface(item: SliceFile, name: str, known: Runs, pens: Pens) -> SurfaceData:
    drawn = [trajectory for trajectory in item.trajectories if trajectory.run in known]
    drawn.sort(key=lambda trajectory: pens[trajectory.run].order)
    paths = tuple(_path(trajectory, pens[trajectory.run], known[trajectory.run]) for trajectory in drawn)
    # Paths are projected on the plane of the first draw.
    averaged = len(item.loss) > 1 and not paths
    x_label, y_label = axis_labels(item, [pens[run_id].label for run_id in item.runs])
    return SurfaceData(
        *item.axes,
        loss=item.mean if averaged else item.loss[0],
        measured=_measured(item, known),
        title=name,
        standard_error=None if averaged else item.standard_error[0],
        paths=paths,
        x_label=x_label,
        y_label=y_label,
        spread=item.spread if averaged else None,
        evaluated=np.asarray(item.evaluated.all(axis=0)) if averaged else item.evaluated[0],
        center=_center(item),
        notes=remarks(item, averaged=averaged, left_out=len(item.trajectories) - len(paths)),
    )


def _center(item: SliceFile) -> tuple[float, float] | None:
    """Where the snapshot lies through which the plane goes, if it is one and no path ends there."""
    if "common" in item.info:
        x, y = item.info["center"]
        return x, y
    return None if item.trajectories or item.info["settings"]["directions"] in _OWN_PLANE else (0.0, 0.0)


def _path(trajectory: SliceTrajectory, pen: Pen, run: RunData) -> PathData:
    path = PathData(
        steps=trajectory.steps,
        coordinates=trajectory.coordinates,
        loss=trajectory.loss,
        distance=trajectory.distance,
        surface_loss=trajectory.surface_loss,
        standard_error=trajectory.standard_error,
        explained_variance=trajectory.explained_variance,
        label=pen.label,
        color=pen.color,
    )
    return replace(path, marks=_marks(rebounds(run), path))


def _marks(found: Sequence[CountedRebound], path: PathData) -> tuple[tuple[float, str], ...]:
    """Onset, peak and recovery of rebounds, at the snapshots nearest to them."""
    names: dict[int, list[str]] = {}
    for number, rebound in enumerate(found, start=1):
        suffix = f" {number}" if len(found) > 1 else ""
        for name, step in rebound.stages:
            index = path.nearest(step)
            if index is not None and path.steps[0] <= step <= path.steps[-1]:
                names.setdefault(index, []).append(name + suffix)
    steps = path.steps.tolist()
    return tuple((steps[index], f"{', '.join(said)} ({steps[index]})") for index, said in sorted(names.items()))


@dataclass(frozen=True)
class CountedRebound:
    """A rebound of a run's training loss that counts, in steps."""

    kind: str
    onset: float
    peak: float
    recovery: float

    @property
    def stages(self) -> tuple[tuple[str, float], ...]:
        """Names and steps; what diverged has no recovery."""
        end = () if self.kind == "divergence" else (("recovery", self.recovery),)
        return ("onset", self.onset), ("peak", self.peak), *end


def rebounds(run: RunData | None) -> list[CountedRebound]:
    """Those that were found in a run's training loss and count, at most two, most significant first."""
    if run is None or run.episodes is None:
        return []
    rows = [row for row in run.episodes.to_dict("records") if row["column"] == "loss_clean"]
    # The raw curve's, where it was tested: they ask for no trust in a control.
    rows = [row for row in rows if row["adjust"] == "none"] or rows
    rows = [row for row in rows if row["p_value"] <= ALPHA and row["kind"] not in ("none", "spike")]
    rows.sort(key=lambda row: row["p_value"])
    names = ("kind", "onset", "peak", "recovery")
    return [CountedRebound(**{name: row[name] for name in names}) for row in rows[:_MOST_REBOUNDS]]


def _highest(surfaces: Sequence[SurfaceData], items: Sequence[SliceFile]) -> float | None:
    """Where the scale of colors ends, if walls would use it up."""
    paths = [path for surface in surfaces for path in surface.paths]
    levels = np.concatenate([[item.origin_loss for item in items], *(np.r_[p.loss, p.surface_loss] for p in paths)])
    levels = levels[np.isfinite(levels) & (levels > 0)]
    return _WALL * float(levels.max()) if len(levels) else None


def _lines(picture: Picture, known: Runs) -> CurveSet:
    pens, count = _pens(picture.run_ids, known), len(picture.items)
    lines = []
    for order, item in enumerate(picture.items):
        pen = pens[item.runs[0]]
        color = shade(pen.color, order / (count - 1)) if picture.is_series else pen.color
        lines.append(_line(item, _name(picture, item, known, pens) or pen.label, color, known, alone=count == 1))
    first = picture.items[0]
    x_label = axis_labels(first, [pens[run_id].label for run_id in first.runs])[0]
    title, chosen = _words(picture, known, pens)
    return line_slices(lines, title=title, chosen=chosen, x_label=x_label)


def _line(item: SliceFile, label: str, color: str, known: Runs, *, alone: bool) -> LineSlice:
    several, path = len(item.loss) > 1, None
    if alone and item.trajectories:
        t = item.trajectories[0]
        path = LinePath(t.steps, t.coordinates[:, 0], t.loss, t.distance, t.standard_error)
    return LineSlice(
        *item.axes,
        loss=item.loss if several else item.loss[0],
        measured=_measured(item, known),
        label=label,
        color=color,
        standard_error=None if several else item.standard_error[0],
        path=path,
        notes=remarks(item, averaged=several),
    )


def _measured(item: SliceFile, known: Runs) -> Measured:
    settings, info = item.info["settings"], item.info
    ranks = {known[run_id].cell.rank for run_id in item.runs if run_id in known}
    return Measured(
        settings["space"],
        settings["normalization"],
        info["num_examples"],
        info["num_labels"],
        info["metric"],
        info["precision"],
        info["split"],
        has_gauge=ranks != {None},
    )


def _pens(wanted: Sequence[str], known: Runs) -> dict[str, Pen]:
    """Names and colors of runs: the method's own, in shades where several of them share it."""
    cells = group(known[run_id] for run_id in wanted if run_id in known)
    labels = cell_labels(list(cells))
    runs = [run for members in cells.values() for run in members]
    pens = {run_id: Pen(run_id, INK) for run_id in wanted}
    for order, run in enumerate(runs):
        same = [other.run_id for other in runs if other.method == run.method]
        position = same.index(run.run_id) / (len(same) - 1) if len(same) > 1 else 0.5
        seed = f"  seed {run.seed}" if len(cells[run.cell]) > 1 else ""
        pens[run.run_id] = Pen(labels[run.cell] + seed, shade(method_style(run.method).color, position), order=order)
    return pens


def _name(picture: Picture, item: SliceFile, known: Runs, pens: Pens) -> str:
    """Of one slice among several: what tells it apart."""
    if len(picture.items) == 1:
        return ""
    step = item.info["step"]
    if not picture.is_series:
        return f"{pens[item.runs[0]].label}, step {step}"
    for rebound in rebounds(known.get(item.runs[0])):
        when = "before" if step < rebound.onset else "after" if step > rebound.recovery else "in"
        return f"step {step}, {when} the {'episode' if rebound.kind == 'episode' else 'rebound'}"
    return f"step {step}"
