"""A finished reproduction as one small JSON file, and the table of verdicts that follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.reproduction.experiment import Experiment, load_experiment
from landscape.reproduction.records import Record
from landscape.reproduction.rules import Compares, Rule
from landscape.reproduction.scores import Paper, score_rows
from landscape.reproduction.verdict import Judged, Row, rounded

TABLE = "reproduction.csv"
"""Of a store, or of the shipped experiments: the dashboard's page reads it."""
_SHOWN = (
    "model", "task", "rank", "alpha", "learning_rate", "lr_scheduler_type", "warmup_ratio", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "train_examples", "eval_examples",
    "probe_examples", "adam_beta1", "dtype", "bf16",
)  # fmt: skip
"""Config keys that a reader wants to know."""


@dataclass(frozen=True)
class Result:
    """What one experiment came to at one scale.

    Attributes:
        settings: config keys that all runs share.
        grid: the values that the others take.
        environment: package versions, machine and device of the runs.
        data: digest by task of the data that was read.
        planned: runs that the scale asks for; ``runs`` are those that ended.
        figures: files drawn, beside this one.
    """

    experiment: str
    scale: str
    about: str
    settings: Mapping[str, Any]
    grid: Mapping[str, Any]
    environment: Mapping[str, Any]
    planned: int
    runs: Sequence[Record]
    data: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[str] = ()

    @property
    def seeds(self) -> list[int]:
        """Of the runs that ended."""
        return sorted({run.seed for run in self.runs})

    def sentence(self) -> str:
        """The scale in one line: model, task, steps, seeds."""
        keys = ("model", "task", "max_steps")
        known = {key: self.settings.get(key, self.grid.get(key)) for key in keys}
        model, task, steps = (", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in known.values())
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"
        part = f", {len(self.runs)} of {self.planned} runs" if len(self.runs) < self.planned else ""
        return f"{self.scale}: {model}, {task}, {steps} steps, {seeds}{part}"

    def plain(self, rows: Sequence[Row]) -> dict[str, Any]:
        """For JSON, with the verdicts, which follow from the rest."""
        values = {item.name: getattr(self, item.name) for item in fields(self)} | {"runs": None}
        return {
            **rounded(values),
            "runs": [run.plain() for run in self.runs],
            "rows": [row.plain() for row in rows],
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Result:
        """What `plain` gave; the rows are made anew."""
        known = {item.name: values[item.name] for item in fields(cls)}
        return cls(**{**known, "runs": tuple(Record.from_plain(run) for run in values["runs"])})


def settings_of(configs: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the keys that readers want to know: values that all configs share, and the values of those that differ."""
    listed = list(configs)
    shared: dict[str, Any] = {}
    varied: dict[str, Any] = {}
    for key in _SHOWN:
        # Full fine-tuning has no rank: a null says nothing of the others.
        values = [config[key] for config in listed if config[key] is not None]
        distinct = list(dict.fromkeys(values))
        if len(distinct) == 1:
            shared[key] = distinct[0]
        elif distinct:
            varied[key] = sorted(distinct) if key != "task" else distinct
    return shared, varied


def verdicts(result: Result, experiment: Experiment | None = None) -> list[Row]:
    """The rows of a result: one a rule, then the paper's scores beside ours.

    A rule about a variant that the scale leaves out, about scores where none were measured, or about best learning
    rates where there is one alone, has no row.
    """
    experiment = experiment or load_experiment(result.experiment)
    tasks = [str(task) for task in experiment.grid.get("task") or [experiment.config.get("task")]]
    paper = Paper(experiment.paper_values, result.scale == "paper", tasks)
    runs, scale = list(result.runs), result.sentence()

    def row(quantity: str, theirs: float | None, judged: Judged) -> Row:
        return Row(
            experiment.source, experiment.place, quantity, theirs, _number(judged.value), _number(judged.sd), scale,
            judged.verdict, judged.sentence, result.experiment,
        )  # fmt: skip

    present = experiment.variants_at(result.scale)
    scored = any(math.isfinite(run.score) for run in runs)
    # Beside full fine-tuning's own rate, which is no choice.
    tuned = len({run.learning_rate for run in runs if "learning_rate" in run.place}) > 1
    asked = [rule for rule in experiment.rules if rule.is_asked(present, scored, tuned)]
    rows = [row(rule.quantity, _theirs(rule, runs, paper), rule.judge(runs, paper)) for rule in asked]
    tasks = ", ".join(dict.fromkeys(run.task for run in runs))
    for variant, theirs, judged in score_rows(runs, paper):
        rows.append(row(f"score of {variant}, mean over {tasks}", _number(theirs), judged))
    return rows


def _theirs(rule: Rule, runs: Sequence[Record], paper: Paper) -> float | None:
    """The paper's value of a rule; a difference of scores is one over the same tasks, or none."""
    if not (isinstance(rule, Compares) and rule.measure == "score"):
        return rule.paper_value
    tasks = list(dict.fromkeys(run.task for run in runs))
    return _number(paper.of(rule.first, tasks)[0] - paper.of(rule.second, tasks)[0])


def with_q_values(runs: Sequence[Record]) -> list[Record]:
    """The runs with q-values (Benjamini and Hochberg) over all that were tested."""
    from landscape.episodes.multiplicity import q_values

    tested = [run for run in runs if math.isfinite(run.p_value)]
    found = dict(zip([run.run_id for run in tested], q_values([run.p_value for run in tested]).tolist(), strict=True))
    return [replace(run, q_value=found.get(run.run_id, math.nan)) for run in runs]


def write_result(result: Result, folder: Path, experiment: Experiment | None = None) -> Path:
    """``<folder>/<experiment>-<scale>.json``, one run a line; ``experiment`` where it is no shipped one."""
    from landscape.store.atomic import write_bytes

    values = result.plain(verdicts(result, experiment))
    parts = []
    for key, value in values.items():
        if key in ("runs", "rows"):
            lines = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            parts.append(f'  "{key}": [\n{lines}\n  ]' if value else f'  "{key}": []')
        else:
            parts.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
    path = folder / f"{result.experiment}-{result.scale}.json"
    write_bytes(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
    return path


def read_results(folder: Path) -> list[Result]:
    """Every result in a folder, by name.

    Raises:
        StoreError: a file that is none.
    """
    found = []
    for path in sorted(folder.glob("*-*.json")):
        try:
            found.append(Result.from_plain(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is no result of landscape reproduce: {error}") from error
    return found


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The rows as the dashboard's page reads them."""
    import pandas as pd

    from landscape.store.atomic import replacing

    names = [item.name for item in fields(Row)]
    with replacing(path) as temporary:
        pd.DataFrame([row.plain() for row in rows], columns=names).to_csv(temporary, index=False)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
