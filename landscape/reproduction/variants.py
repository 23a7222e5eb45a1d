"""Which variant of an experiment a run is, from its config alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.plots import RunData, group
from landscape.reproduction.experiment import Experiment, load_experiment
from landscape.reproduction.records import score_of

_NESTED = ("method_args", "adapter_args")


def variant_of(config: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The variant with most keys that the run has; sizes such as ρ may differ by scale, words and switches may not."""
    fits = {name: n for name, values in variants.items() if (n := _fit(config, values))}
    return max(fits, key=lambda name: fits[name]) if fits else None


def _fit(config: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """How many keys agree; 0 where one does not."""
    pairs = [(config.get(key), value) for key, value in values.items() if key in ("method", "adapter", "rank")]
    for nested in _NESTED:
        own = config.get(nested) or {}
        wanted = values.get(nested) or {}
        pairs += [(own.get(key), value) for key, value in wanted.items() if isinstance(value, (bool, str))]
    return len(pairs) if pairs and all(own == value for own, value in pairs) else 0


def all_variants(experiments: Sequence[Experiment]) -> dict[str, Mapping[str, Any]]:
    """Of several experiments, each name once."""
    return {name: values for one in experiments for name, values in one.variants.items()}


class Sorted:
    """A figure's runs by variant and task: of one variant on one task those of the commonest settings.

    Args:
        runs: of a store.
        names: experiments whose variants count.
    """

    def __init__(self, runs: Sequence[RunData], names: Sequence[str]) -> None:
        self.experiments = [load_experiment(name) for name in names]
        self.variants = all_variants(self.experiments)
        self.left_out = 0
        places: dict[tuple[str, str], list[RunData]] = {}
        for run in runs:
            name = variant_of(run.config, self.variants)
            if name is not None and len(run.evaluations):
                places.setdefault((name, str(run.config["task"])), []).append(run)
        self.runs: dict[tuple[str, str], list[RunData]] = {}
        for place, members in places.items():
            cells = group(members)
            best = max(cells, key=lambda cell: len(cells[cell]))
            self.runs[place] = cells[best]
            self.left_out += len(members) - len(cells[best])
        present = {name for name, _ in self.runs}
        self.names = [name for name in self.variants if name in present]
        self.tasks = list(dict.fromkeys(task for _, task in sorted(self.runs)))

    @property
    def has_scores(self) -> bool:
        """Whether any run logged its task's metric; else losses are shown."""
        return any(math.isfinite(final_score(run)) for runs in self.runs.values() for run in runs)

    def values(self, name: str, task: str) -> np.ndarray:
        """Scores in percent, or losses in nats where there are no scores, one a finished run."""
        read = final_score if self.has_scores else final_loss
        found = np.array([read(run) for run in self.runs.get((name, task), []) if run.state == "done"])
        return found[np.isfinite(found)] if len(found) else found

    def paper(self, name: str, task: str) -> float:
        """The paper's number: of the first experiment that has one."""
        for one in self.experiments:
            for value in one.paper_values:
                if (value.variant, value.task) == (name, task):
                    return value.value
        return math.nan

    def missing(self) -> tuple[str, ...]:
        """Variants without runs."""
        absent = [name for name in self.variants if name not in self.names]
        return (f"no runs of {', '.join(absent)}.",) if absent else ()

    def chosen(self) -> str:
        """Which runs, in words."""
        models = sorted({str(run.config["model"]) for runs in self.runs.values() for run in runs})
        words = f"model {', '.join(models)}; task {', '.join(self.tasks)}"
        return words + (f"; {self.left_out} runs with other settings left out" if self.left_out else "")


def final_score(run: RunData) -> float:
    """The task's metric at the last evaluation on the eval split, in percent."""
    frame = run.evaluations
    held_out = frame.loc[frame["split"] == "eval"] if "split" in frame else frame
    return score_of(str(run.config["task"]), held_out.iloc[-1].to_dict()) if len(held_out) else math.nan


def final_loss(run: RunData) -> float:
    """The last loss on the eval split."""
    frame = run.evaluations
    held_out = frame.loc[frame["split"] == "eval"] if "split" in frame else frame
    return float(held_out["loss"].iloc[-1]) if len(held_out) else math.nan
