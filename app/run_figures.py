"""Figures of runs and their analyses that the papers' figures do not need: costs, spectra, layers, scatter plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from app.index import RunRow
from landscape.plots import RunData
from landscape.plots.build import with_ranges
from landscape.plots.curves import Curve, CurveSet, Panel
from landscape.plots.data import floats, format_rate, method_of, split_series
from landscape.plots.evaluation import gap_series
from landscape.plots.sharpness import largest
from landscape.plots.style import INK, MethodStyle, method_order, method_style, shade
from landscape.plots.tiles import Tile, Tiles

MOST_DENSITIES = 5
"""Steps whose densities are told apart in one panel."""
MOST_TILES = 400


@dataclass(frozen=True)
class Cost:
    """Something that a run took, on an x axis."""

    axis: str
    of: Callable[[RunRow], float | None]
    help: str


def _spent(row: RunRow) -> float | None:
    return None if row.tail.seconds is None else row.tail.seconds * row.step


def _peak(kind: str) -> Callable[[RunRow], float | None]:
    def of(row: RunRow) -> float | None:
        peak = row.status.peak_memory.get(kind) if row.status else None
        return None if peak is None else peak / 1e9

    return of


COSTS: dict[str, Cost] = {
    "time": Cost("time in optimizer steps, s", _spent, "Seconds a step, over the run's last steps, times its steps."),
    "wall": Cost("wall time, s", lambda row: row.seconds, "From the first start to the last stop, pauses included."),
    "memory": Cost(
        "peak memory of the process, GB", _peak("rss"),
        "Most main memory that the training process took, with libraries, model and data.",
    ),
    "gpu": Cost("peak memory on the GPU, GB", _peak("cuda"), "Most that tensors took on the device while training."),
    "rank": Cost(
        "LoRA rank (size of what is trained)",
        lambda row: None if row.config.get("method") == "full" else row.config.get("rank"),
        "Adapter parameters and their optimizer state grow in proportion to the rank.",
    ),
}  # fmt: skip


def known_costs(rows: Sequence[RunRow]) -> list[str]:
    """Of `COSTS` those that some run has."""
    return [key for key, cost in COSTS.items() if any(cost.of(row) for row in rows)]


@dataclass(frozen=True)
class Score:
    """What a run reached, on a y axis."""

    axis: str
    of: Callable[[RunRow], float | None]
    larger_is_better: bool = False


_LOSSES = {
    "eval": Score("last eval loss, nats/token", lambda row: row.tail.eval_loss),
    "train": Score("last training loss (clean), nats/token", lambda row: row.tail.loss),
}


def scores(rows: Sequence[RunRow]) -> dict[str, Score]:
    """Losses, and what the tasks of these runs measure besides."""
    names = sorted({name for row in rows for name in row.tail.scores})
    return _LOSSES | {
        name: Score(f"last {name.replace('_', ' ')} (held out)", lambda row, name=name: row.tail.scores.get(name), True)
        for name in names
    }


def pareto(rows: Sequence[RunRow], cost: str, score: Score = _LOSSES["eval"]) -> CurveSet:
    """A score against a cost: one point a run, one color a method; the runs that no other beats are joined."""
    kind = COSTS[cost]
    found = [(kind.of(row), score.of(row), row) for row in rows]
    known = [
        (float(x), float(y), method_of(row.config))
        for x, y, row in found
        if x and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    curves = []
    for order, method in enumerate(sorted({name for *_, name in known}, key=method_order)):
        own = sorted((x, y) for x, y, name in known if name == method)
        style = method_style(method)
        x, y = np.array(own).T
        curves.append(_points(style, x, y, order))
    sign = -1.0 if score.larger_is_better else 1.0
    front = frontier([(x, sign * y) for x, y, _ in known])
    if len(front) > 1:
        x, y = np.array(front).T
        curves.append(Curve("not beaten in both", INK, x, sign * y, dash="dot", order=len(curves)))
    panels = [Panel("", tuple(curves), score.axis, x_label=kind.axis, log_x=cost in ("time", "wall"))]
    panels, cut = with_ranges(panels, [0])
    left_out = len(rows) - len(known)
    better = "Upper left is better" if score.larger_is_better else "Lower left is better"
    notes = (f"{better}: {len(known)} runs; {left_out} without both numbers are left out.", *cut)
    return CurveSet("What a result costs", tuple(panels), notes=notes)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which no other is at most as large in both coordinates, by the first."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def _points(style: MethodStyle, x: np.ndarray, y: np.ndarray, order: int) -> Curve:
    # Bars of no length: points that stand for themselves, joined by nothing.
    return Curve(
        style.label, style.color, x, y, lower=y, upper=y, markers=True, marker=style.marker, order=order, bars=True
    )


def density_figure(table: pd.DataFrame, steps: Sequence[int], space: str) -> CurveSet:
    """Spectral density of the Hessian at some steps of a run, early steps light and late ones dark."""
    curves = []
    rows = table.loc[(table["space"] == space) & table["step"].isin(list(steps))].sort_values("step")
    rows = rows.loc[[len(grid) > 1 for grid in rows["grid"]]].head(MOST_DENSITIES)
    for order, row in enumerate(rows.to_dict("records")):
        position = order / (len(rows) - 1) if len(rows) > 1 else 0.5
        x, y = np.asarray(row["grid"], dtype=float), np.asarray(row["density"], dtype=float)
        kept = y > max(float(y.max()) * 1e-7, 1e-12)
        curves.append(
            Curve(
                f"step {row['step']}", shade("#0072b2", position), x[kept], y[kept], order=order,
                dash=("solid", "dash", "dot", "dashdot", "longdash")[order % 5],
            )
        )  # fmt: skip
    panels, _ = with_ranges(
        [Panel("", tuple(curves), "density of eigenvalues (log)", x_label=f"eigenvalue, {space} space", log_y=True)],
        [0],
    )
    notes = (
        "Stochastic Lanczos quadrature: how the Hessian's eigenvalues are distributed. The tall bulk near 0 are flat "
        "directions; the tail on the right are the few sharp ones; left of 0 the loss curves down.",
    )
    return CurveSet("Spectral density", panels, notes=notes)


def layer_figure(table: pd.DataFrame, space: str) -> CurveSet:
    """Largest eigenvalue of each layer's block by step, as a heat map."""
    rows = table.loc[(table["space"] == space) & table["layer"].notna() & np.isfinite(table["value"].astype(float))]
    layers, steps = list(dict.fromkeys(rows["layer"])), sorted(set(rows["step"]))
    layers = layers[: max(1, MOST_TILES // max(1, len(steps)))]
    largest = max(float(rows["value"].to_numpy(float).max()), 1e-12) if len(rows) else 1.0
    tiles = []
    for row in rows.to_dict("records"):
        if row["layer"] in layers:
            share = math.sqrt(max(0.0, row["value"]) / largest)
            text = f"{row['value']:.3g}{'' if row['converged'] else '?'}"
            words = f"{row['layer']} at step {row['step']}: λmax {row['value']:.4g}"
            place = steps.index(row["step"]), len(layers) - 1 - layers.index(row["layer"])
            numbers = {"step": row["step"], "value": row["value"]}
            tiles.append(Tile(*place, share, (text,), False, words, numbers))
    panel = Panel(
        "", (), "layer", x_label="optimizer step",
        tiles=Tiles(tuple(map(str, steps)), tuple(short_layer(name) for name in reversed(layers)), tuple(tiles)),
    )  # fmt: skip
    notes = (
        f"Largest eigenvalue of each layer's block of the Hessian, {space} space; darker is larger (square root). "
        "A ? did not converge.",
    )
    return CurveSet("Sharpness by layer", (panel,), share_y="none", notes=notes)


def short_layer(name: str) -> str:
    """``base_model.model.model.layers.0.self_attn.q_proj`` → ``0 q_proj``."""
    parts = name.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    return f"{number} {parts[-1]}".strip()


SCATTER = {
    "adapter": "sharpness λmax, adapter space", "balanced": "sharpness λmax, balanced",
    "merged": "sharpness λmax, merged weights", "preconditioned": "preconditioned sharpness (unitless)",
    "gap": "generalization gap, nats/token", "eval": "eval loss, nats/token",
}  # fmt: skip
"""Columns of `snapshot_table` that can be set against each other."""


def snapshot_table(runs: Sequence[RunData]) -> pd.DataFrame:
    """One row a captured step with an eigenvalue: run, method, step, λmax by space, gap and eval loss at that step."""
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for run in runs:
        frame = largest(run)
        spaces, steps, values = frame["space"].astype(str), floats(frame, "step"), floats(frame, "value")
        for space, step, value in zip(spaces, steps.tolist(), values.tolist(), strict=True):
            if space in SCATTER and math.isfinite(step):
                known = {"run": run.run_id, "method": run.method, "step": int(step)}
                rows.setdefault((run.run_id, int(step)), known)[space] = value
        for name, trace in (("gap", gap_series(run, "gap")), ("eval", split_series(run, "eval"))):
            for step, value in zip(trace.x.tolist(), trace.y.tolist(), strict=True):
                if (run.run_id, int(step)) in rows:
                    rows[run.run_id, int(step)][name] = value
    table = pd.DataFrame(list(rows.values()), columns=["run", "method", "step", *SCATTER])
    return table.astype(dict.fromkeys(SCATTER, "float64"))


def scatter_figure(table: pd.DataFrame, x: str, y: str, log_x: bool = False) -> CurveSet:
    """One column of `snapshot_table` against another, a point a snapshot, a color a method."""
    rows = table.loc[np.isfinite(table[x]) & np.isfinite(table[y]) & ((table[x] > 0) | (not log_x))]
    curves = []
    for order, method in enumerate(sorted(set(rows["method"]), key=method_order)):
        own = rows.loc[rows["method"] == method]
        style = method_style(str(method))
        curves.append(_points(style, own[x].to_numpy(float), own[y].to_numpy(float), order))
    panels, cut = with_ranges(
        [Panel("", tuple(curves), SCATTER[y], x_label=SCATTER[x], log_x=log_x, zero_line=y == "gap")], [0]
    )
    return CurveSet("Do they rise together?", panels, notes=cut)


FLATNESS_COLUMNS = {
    "width": ("width", "Length around the snapshot on which the loss rises by at most 0.1 nats, in units of the slice; "
              "wide is flat."),
    "width_error": ("± se of width", "Standard error over random directions."),
    "anisotropy": ("anisotropy", "Largest ÷ smallest curvature of the plane: how much the direction matters."),
    "nonconvexity": ("nonconvexity", "Share of the slice that curves down."),
    "lambda_max": ("λmax", "Sharpness in the adapter's coordinates: steepest direction of all, not of this slice."),
    "gap": ("gap, nats/token", "Eval minus probe loss at this step."),
    "gap_error": ("± se of gap", "Standard error over examples."),
}  # fmt: skip
"""Of `landscape.analysis.flatness.flatness_table`, those that a page shows: heading and help."""


def label(row: RunRow) -> str:
    """A run in a few words: method, rank, learning rate and seed."""
    config = row.config
    if not config:
        return row.id
    parts = [method_style(method_of(config)).label]
    if config.get("rank") is not None and config.get("method") != "full":
        parts.append(f"r = {config['rank']}")
    if config.get("learning_rate") is not None:
        parts.append(f"lr = {format_rate(config['learning_rate'])}")
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    return ", ".join(parts)
