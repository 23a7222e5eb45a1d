"""Comparisons across a sweep in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from landscape.episodes.sweep import AxisOutcome, CellOutcome, MethodComparison

MEASURE_NAMES = {"rise": "largest rise of the loss", "rise_area": "area of the loss above its running minimum"}
_AXIS_NAMES = {"rank": "rank", "learning_rate": "learning rate", "train_examples": "number of training examples"}

Name = Callable[[str], str]


def comparison_verdict(one: MethodComparison, alpha: float = 0.05, name: Name = str) -> str:
    """One sentence: does the first method change the measure against the second, by how much, how surely."""
    first, second, result = name(one.first), name(one.second), one.result
    what = MEASURE_NAMES[one.measure]
    sizes = f"{one.means[0]:.3g} against {one.means[1]:.3g}"
    low, high = result.low, result.high
    interval = f"difference {result.difference:+.3g}, {100 * result.level:.3g} % interval {low:+.3g} to {high:+.3g}"
    seeds = f"{result.pairs} seed{'s' * (result.pairs != 1)}"
    test = f"exact sign-flip test over {seeds}, p = {result.p_value:.2g}, q = {one.q_value:.2g}"
    rebounds = f"{one.rebounding[0]} of {one.runs[0]} runs rebound against {one.rebounding[1]} of {one.runs[1]}"
    where = _where(one)
    if result.p_value <= alpha:
        verb = "lowers" if result.difference < 0 else "raises"
        many = "" if one.q_value <= alpha else ", which is not significant among all the comparisons"
        return f"{first} {verb} the {what} against {second} {where}: {sizes} ({interval}; {test}{many}; {rebounds})."
    weak = f"; {seeds} cannot give a p-value below {result.smallest_p:.3g}" if result.too_few else ""
    return (
        f"No difference between {first} and {second} is shown in the {what} {where}: {sizes} "
        f"({interval}; {test}{weak}; {rebounds})."
    )


def undecided_verdict(first: str, second: str, alpha: float, name: Name = str) -> str:
    """What is said of two methods where no cell decides."""
    return f"No run of {name(first)} or {name(second)} rebounds (q ≤ {alpha:g}): there is nothing to reduce."


def axis_verdict(one: AxisOutcome, alpha: float = 0.05, name: Name = str) -> str:
    """One sentence: whether the final loss has an interior peak along the axis."""
    result, axis = one.result, _AXIS_NAMES[one.axis]
    fixed = ", ".join(f"{key} {value:g}" for key, value in one.fixed if value is not None and key != "train_examples")
    place = "each rank at its best learning rate" if one.at_best else fixed
    head = f"{name(one.method)} along {axis}{f' ({place})' if place else ''}"
    if result.p_value <= alpha:
        shape = f"{result.before:g} → {result.peak:g} → {result.after:g}"
        return (
            f"{head}: the final loss rises and falls again at {shape}, by {_percent(result.amplitude)} "
            f"(p = {result.p_value:.2g}, q = {one.q_value:.2g})."
        )
    power = (
        ""
        if math.isnan(result.detectable)
        else f"; a peak of {_percent(result.detectable)} would be found 4 times in 5"
    )
    weak = f"; underpowered: {result.underpowered}" if result.underpowered else power
    lost = f"; {one.lost} run{'s' * (one.lost != 1)} without a final loss left out" if one.lost else ""
    return f"{head}: no second descent shown (p = {result.p_value:.2g}{weak}{lost})."


def cells_verdict(cells: Sequence[CellOutcome], method: str, alpha: float = 0.05, name: Name = str) -> str:
    """One sentence on the grid of a method."""
    own = [cell for cell in cells if cell.method == method]
    found = [cell for cell in own if cell.q_value <= alpha]
    runs, rebounding = sum(cell.runs for cell in own), sum(cell.rebounding for cell in own)
    lost = sum(cell.diverged for cell in own)
    tail = f"; {lost} diverged" if lost else ""
    return (
        f"{name(method)}: {rebounding} of {runs} runs rebound (q ≤ {alpha:g}), in {len(found)} of {len(own)} cells "
        f"their p-values combined do{tail}."
    )


def _percent(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):.2g} %"


def _where(one: MethodComparison) -> str:
    if one.setting == "cell":
        rank = "" if one.rank is None else f"rank {one.rank}, "
        return f"at {rank}learning rate {one.learning_rate:g}"
    if one.setting == "best":
        return f"with each at its best learning rate, mean over {one.cells} rank{'s' * (one.cells != 1)}"
    return f"in the {one.cells} cell{'s' * (one.cells != 1)} in which a run of either rebounds"
