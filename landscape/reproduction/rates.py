"""What the end of training looks like at each learning rate: one panel a number, one line a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from landscape.errors import StoreError
from landscape.plots import Curve, CurveSet, Panel, RunData, method_style
from landscape.plots.data import format_rate
from landscape.plots.evaluation import gap_series
from landscape.plots.sharpness import sharpness_series
from landscape.plots.style import method_order
from landscape.reproduction.variants import final_loss, final_score

Read = Callable[[RunData], float]


def _eigenvalue(run: RunData, space: str, first: bool = False) -> float:
    values = sharpness_series(run, space).y
    if not len(values) or (first and len(values) < 2):
        return math.nan
    return float(values[0] if first else values[-1])


def _gap(run: RunData) -> float:
    values = gap_series(run, "gap").y
    return float(values[-1]) if len(values) else math.nan


def _width(run: RunData) -> float:
    """Of the last snapshot's widest slice along random directions: all of it where the loss never rises so far."""
    found = []
    for item in run.slices:
        settings = item.info["settings"]
        if item.flatness is not None and settings["directions"] == "random":
            whole = 2 * float(settings["radius"])
            found.append((item.info["step"], whole, min(float(item.flatness["width"][0]), whole)))
    return max(found)[-1] if found else math.nan


NUMBERS: dict[str, tuple[Read, str]] = {
    "held-out loss": (final_loss, "eval loss, nats/label"),
    "score": (final_score, "score, %"),
    "generalization gap": (_gap, "eval − probe loss, nats"),
    "λmax": (lambda run: _eigenvalue(run, "adapter"), "λmax, adapter space"),
    "λmax at the start": (lambda run: _eigenvalue(run, "adapter", first=True), "λmax, adapter space"),
    "balanced λmax": (lambda run: _eigenvalue(run, "balanced"), "λmax, balanced"),
    "width": (_width, "width of random slices"),
}


def by_rate(
    figure: str, runs: Sequence[RunData], names: Sequence[str], title: str, needs: Sequence[str] = ()
) -> CurveSet:
    """Means over seeds with ±1 sd against the learning rate; numbers that no run has are left out and named.

    Of λmax, which spans decades, the geometric mean and the standard deviation of its logarithm.

    Raises:
        StoreError: fewer than two methods or learning rates were evaluated, or no run has any number of ``needs``.
    """
    usable = [run for run in runs if run.state == "done" and math.isfinite(final_loss(run)) and run.cell.learning_rate]
    if not usable:
        raise StoreError(f"figure {figure} needs finished runs with evaluations on the eval split")
    required = [read for name, (read, _) in NUMBERS.items() if name in needs]
    several = len({run.config["learning_rate"] for run in usable}) > 1 and len({run.method for run in usable}) > 1
    if not several or (required and not any(math.isfinite(read(run)) for read in required for run in usable)):
        what = f", analyzed for {' or '.join(needs)}" if needs else ""
        raise StoreError(f"figure {figure} needs runs of two methods at two learning rates{what}")
    tasks = list(dict.fromkeys(str(run.config["task"]) for run in usable))
    methods = sorted({run.method for run in usable}, key=method_order)
    rates = sorted({float(run.config["learning_rate"]) for run in usable})
    ticks = tuple((rate, format_rate(rate)) for rate in rates)
    panels, missing = [], []
    for task in tasks:
        own = [run for run in usable if run.config["task"] == task]
        for name in names:
            read, label = NUMBERS[name]
            curves = [_curve([run for run in own if run.method == method], method, index, read, "λmax" in name)
                      for index, method in enumerate(methods)]  # fmt: skip
            known = tuple(curve for curve in curves if curve is not None)
            if not known:
                missing.append(f"{name} of {task}.")
                continue
            panels.append(Panel(f"{task}: {name}" if len(tasks) > 1 else name, known, label, x_label="learning rate",
                                log_x=True, x_ticks=ticks, log_y="λmax" in name and _spans_decades(known)))  # fmt: skip
    lost = sum(run.state == "diverged" for run in runs)
    means = "Means over seeds" + (" (of λmax geometric)" if any("λmax" in panel.title for panel in panels) else "")
    return CurveSet(
        title,
        tuple(panels),
        columns=min(3, len(panels)),
        share_y="none",
        chosen=f"model {', '.join(sorted({str(run.config['model']) for run in usable}))}; task {', '.join(tasks)}",
        notes=(
            f"{means}, bands ±1 sd, at the end of training where no start is named.",
            *([f"{lost} runs diverged."] if lost else []),
        ),
        missing=tuple(missing),
    )


def _curve(runs: Sequence[RunData], method: str, order: int, read: Read, in_logs: bool) -> Curve | None:
    rates = sorted({float(run.config["learning_rate"]) for run in runs})
    values = [np.array([read(run) for run in runs if run.config["learning_rate"] == rate]) for rate in rates]
    values = [row[np.isfinite(row)] for row in values]
    kept = [index for index, row in enumerate(values) if len(row)]
    if not kept:
        return None
    in_logs = in_logs and all((row > 0).all() for row in values)
    into, back = (np.log, np.exp) if in_logs else (np.asarray, np.asarray)
    mean = np.array([into(values[index]).mean() for index in kept])
    sd = np.array([into(values[index]).std(ddof=1) if len(values[index]) > 1 else math.nan for index in kept])
    spread = bool(np.isfinite(sd).any())
    style = method_style(method)
    return Curve(
        style.label, style.color, np.array([rates[index] for index in kept]), back(mean), dash=style.dash, order=order,
        lower=back(mean - sd) if spread else None, upper=back(mean + sd) if spread else None,
        band="±1 sd over seeds" if spread else "", n=np.array([len(values[index]) for index in kept]), markers=True,
    )  # fmt: skip


def _spans_decades(curves: Sequence[Curve]) -> bool:
    """Whether the values want a logarithmic axis."""
    values = np.concatenate([curve.y for curve in curves])
    return bool((values > 0).all() and values.max() > 20 * values.min())
