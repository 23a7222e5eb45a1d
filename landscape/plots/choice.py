"""Which runs a figure shows: settings are fixed one after the other, and every decision is kept in words.

A paper's figure has one model, one task and often one learning rate; a store may have many. What a figure shows is
never an accident of order: the value with the most runs is taken, and the figure says which values it left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from landscape.errors import StoreError
from landscape.plots.curves import CurveSet
from landscape.plots.data import RunData, distinct, group, spell, split_series, step_series
from landscape.plots.style import method_style


@dataclass(frozen=True)
class Choice:
    """The runs that are left, how they were chosen, and what the figure lacks."""

    figure: str
    runs: tuple[RunData, ...]
    said: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        figure: str,
        runs: Iterable[RunData],
        *,
        methods: Sequence[str],
        required: Sequence[str],
        measured: str = "step",
    ) -> Choice:
        """The runs of some methods that have measurements, of one model and task, in one setting a method.

        Args:
            methods: what the figure compares; those without runs are noted as missing.
            required: at least one of these must have runs.
            measured: ``step`` for a clean loss at every step, ``eval`` for evaluations on held-out examples.

        Raises:
            StoreError: no run of the required methods has such measurements.
        """
        runs = list(runs)
        names = {"step": "step losses (loss_clean)", "eval": "evaluations on the eval split"}
        usable = [run for run in runs if _has(run, measured)]
        if not any(run.method in required for run in usable):
            have = Counter(run.method for run in runs)
            counts = ", ".join(f"{method}: {_runs(count)}" for method, count in sorted(have.items())) or "no runs"
            raise StoreError(
                f"figure {figure} needs runs of method {' or '.join(required)} with {names[measured]}; the choice from "
                f"the store has {counts}, {len(usable)} of them with such measurements"
            )
        kept = [run for run in usable if run.method in methods]
        said = []
        for axis in ("model", "task"):
            best, words = _prevailing(kept, lambda run, axis=axis: str(getattr(run.cell, axis)), str)
            kept = [run for run in kept if str(getattr(run.cell, axis)) == best]
            said.append(f"{axis} {words}")
        choice = cls(figure, tuple(kept), tuple(said))._one_setting_a_method()
        present = {run.method for run in choice.runs}
        absent = [method_style(method).label for method in methods if method not in present]
        return replace(choice, missing=tuple(f"no runs of {label}" for label in absent))

    def fix(self, axis: str, prefer: Any = None) -> Choice:
        """One value of rank or learning rate: the one that most methods have, of those ``prefer`` (the paper's), else
        the one with the most runs, else the largest. Runs without a value (full fine-tuning has no rank) stay.
        """
        valued = [run for run in self.runs if getattr(run.cell, axis) is not None]
        if not valued:
            return self
        best, words = _prevailing(valued, lambda run: getattr(run.cell, axis), lambda value: spell(axis, value), prefer)
        return self._with([run for run in self.runs if getattr(run.cell, axis) in (best, None)], words)

    def highest(self, axis: str) -> Choice:
        """The largest value only; runs without one stay."""
        values = distinct(group(self.runs), axis)
        if not values:
            return self
        left_out = f" (the highest of {len(values)})" if len(values) > 1 else ""
        runs = [run for run in self.runs if getattr(run.cell, axis) in (values[-1], None)]
        return self._with(runs, spell(axis, values[-1]) + left_out)

    def alpha_rule(self, ratio: float) -> Choice:
        """One rule for alpha over all methods and ranks: α = ``ratio``·r (the paper's) where any run has it, else the
        ratio or, if more runs have it, the number that prevails.
        """
        adapted = [run for run in self.runs if run.cell.rank is not None and run.cell.alpha is not None]
        if not adapted:
            return self
        rules = Counter(rule for run in adapted for rule in _alpha_rules(run))
        best = max(rules, key=lambda rule: (rule == ("r", ratio), rules[rule], rule[0] == "r", rule[1]))
        runs = [run for run in self.runs if run.cell.rank is None or best in _alpha_rules(run)]
        kind, value = best
        words = f"α = {value:g}" if kind == "number" else "α = r" if value == 1 else f"α = {value:g}r"
        if len(runs) < len(self.runs):
            words += f" ({_runs(len(self.runs) - len(runs))} with another α left out)"
        return self._with(runs, words)

    def require(self, axis: str, wanted: Sequence[Any]) -> Choice:
        """Note which values that the paper's figure shows are not there."""
        have = distinct(group(self.runs), axis)
        absent = [spell(axis, value) for value in wanted if value not in have]
        words = f"the paper's {', '.join(absent)}" if absent else ""
        return replace(self, missing=(*self.missing, words)) if words else self

    def dress(self, result: CurveSet) -> CurveSet:
        """The figure with the words about its choice."""
        missing = tuple(f"{text}." for text in self.missing)
        return replace(result, chosen="; ".join(self.said), missing=(*result.missing, *missing))

    def _with(self, runs: Sequence[RunData], *words: str) -> Choice:
        return replace(self, runs=tuple(runs), said=(*self.said, *words))

    def _one_setting_a_method(self) -> Choice:
        """Runs of one method must not differ in batch size, schedule and the like."""
        kept: list[RunData] = []
        dropped = 0
        for method in dict.fromkeys(run.method for run in self.runs):
            same = tuple(run for run in self.runs if run.method == method)
            counts = Counter(run.cell.others for run in same)
            best = max(counts, key=lambda others: (counts[others], others))
            kept += [run for run in same if run.cell.others == best]
            dropped += len(same) - counts[best]
        words = [f"{_runs(dropped)} with other settings (batch size, schedule...) left out"] if dropped else []
        return self._with(kept, *words)


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _has(run: RunData, measured: str) -> bool:
    return bool(len(step_series(run, "loss_clean").x if measured == "step" else split_series(run, "eval").x))


def _alpha_rules(run: RunData) -> tuple[tuple[str, float], tuple[str, float]]:
    """The two rules that the run's alpha follows: a multiple of its rank, and a number."""
    rank, alpha = run.cell.rank or 1, run.cell.alpha or 0.0
    return ("r", round(alpha / rank, 9)), ("number", alpha)


def _prevailing(
    runs: Sequence[RunData], key: Callable[[RunData], Any], words: Callable[[Any], str], prefer: Any = None
) -> tuple[Any, str]:
    """The value of most methods, of those the preferred one, else of most runs, else the largest; and it in words."""
    counts = Counter(key(run) for run in runs)
    methods = {value: len({run.method for run in runs if key(run) == value}) for value in counts}
    best = max(counts, key=lambda value: (methods[value], value == prefer, counts[value], value))
    others = sorted(value for value in counts if value != best)
    if not others:
        return best, words(best)
    if all(methods[value] < methods[best] for value in others):
        reason = "most methods"
    elif best == prefer:
        reason = "as in the paper"
    else:
        rivals = [value for value in others if methods[value] == methods[best]]
        reason = "most runs" if all(counts[value] < counts[best] for value in rivals) else "the largest of equals"
    return best, f"{words(best)} ({reason}; also in the store: {', '.join(words(value) for value in others)})"
