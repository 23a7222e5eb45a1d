"""One question asked of many snapshots of a run; the answers are rows of one table in its ``analysis`` folder.

What sharpness, trace, density and layers share: which snapshots, what is known already, the probe, rows on disk after
every snapshot, and rows without a value where there is none.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.analysis.checks import check_counts
from landscape.analysis.restored import RestoredRun, open_run
from landscape.analysis.spaces import CapturedSpace, UndefinedError
from landscape.analysis.tables import Row, read_rows, to_frame, write_rows
from landscape.analysis.variants import Variant
from landscape.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from landscape.analysis.cost import Work
    from landscape.store import Run

SPLIT = "probe"

TYPES = {
    "step": "int64", "space": "string", "matrix": "string", "backend": "string", "split": "string",
    "num_examples": "int64", "num_labels": "int64", "num_parameters": "int64", "loss": "float64",
    "num_matvecs": "int64", "seconds": "float64", "seed": "int64", "max_examples": "int64", "snapshot": "string",
    "reason": "string",
}  # fmt: skip
"""Columns of every table. ``loss`` is in nats a counted label; ``snapshot`` is a CRC-32 of what was read of the run for
the row; ``reason`` says why a row has no value (it is NaN then, and so is the loss), and is null elsewhere."""

_ADDED = {"matrix": "hessian", "backend": "landscape", "reason": None}
"""Columns that older tables lack, and what their rows mean."""


@dataclass(frozen=True)
class Subject:
    """What is measured on: the model (moved from snapshot to snapshot), the probe, and how its space is asked for.

    Attributes:
        options: keyword arguments of `landscape.curvature` for the matrix and its space.
        preconditioner: Adam's D (n,) at the step that the model is at; None outside the preconditioned space.
        threshold: where the optimizer becomes unstable, in spaces that have such a value.
    """

    model: nn.Module
    batches: list[Any]
    options: dict[str, Any]
    preconditioner: Callable[[int], Tensor | None]
    threshold: float | None


@dataclass(frozen=True)
class Question:
    """What is asked of every snapshot.

    Attributes:
        analysis: names the table and the progress.
        variant: of which matrix.
        work: what an answer costs.
        num_examples: only the first so many of the probe; None: all.
        settings: what else decides a row's value, as columns; the table holds one combination a space.
        types: Arrow types of the question's own columns.
        blank: the rows, less what all share, of a snapshot where the answer is undefined.
        begin: called once with the subject; returns what measures the snapshot that the model is at.
        is_answer: whether rows of one snapshot with the same settings answer the question.
        wants: whether a row with the same settings is part of the answer.
        headline: the answer at one snapshot in a few characters.
        defaults: columns that older tables lack, and what their rows mean.
    """

    analysis: str
    variant: Variant
    work: Work
    num_examples: int | None
    settings: Mapping[str, Any]
    types: Mapping[str, str]
    blank: Sequence[Row]
    begin: Callable[[Subject], Callable[[int], list[Row]]]
    headline: Callable[[list[Row]], str]
    is_answer: Callable[[list[Row]], bool] = bool
    wants: Callable[[Row], bool] = lambda row: True
    defaults: Mapping[str, Any] | None = None

    @property
    def file(self) -> str:
        """Name of the table."""
        return self.variant.table(self.analysis)

    @property
    def columns(self) -> dict[str, str]:
        """Every column with its Arrow type."""
        return {**TYPES, **self.types}


def ask(
    run: Run,
    question: Question,
    steps: Iterable[int] | None = None,
    *,
    every: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The answers at captured steps, as a table that is also kept in the run's ``analysis`` folder.

    Every answer is on disk, atomically, before the next is looked for: an interrupted analysis goes on where it
    stopped. What was measured with the same settings on the same snapshot is not measured again.

    Args:
        steps: captured steps; default: all.
        every: of those, only multiples of so many.
        batch_size: examples a forward pass; default: the config's ``per_device_eval_batch_size``.
        device: default: CUDA where there is one.
        progress: show a progress bar.

    Raises:
        UsageError: an argument out of range, the model or data cannot be found, or the space is defined at none of the
            snapshots.
        StoreError: no such snapshot, snapshots that do not fit the model, changed model or data, or a damaged file.
    """
    check_counts(every=every, num_examples=question.num_examples, batch_size=batch_size)
    space = CapturedSpace(run, question.variant.space)
    chosen = space.choose(steps, every)
    table = _Table(run, question)
    checksums = {step: space.checksum(step) for step in chosen}
    missing = [step for step in chosen if not table.answers(step, checksums[step])]
    if missing:
        restored = open_run(run, device=device)
        for step, rows in _measured(restored, question, space, missing, batch_size, progress):
            table.replace(step, [{**row, "snapshot": checksums[step]} for row in rows])
    answers = [row for step in chosen for row in table.rows_of(step)]
    reasons = [row["reason"] for row in answers]
    if question.variant.space == "balanced" and all(reasons):
        raise UsageError(reasons[-1])
    return to_frame(answers, question.columns)


def unanswered(run: Run, question: Question, steps: Iterable[int]) -> list[int]:
    """Which of these steps have no answer yet; a snapshot that changed since is not noticed here."""
    table = _Table(run, question)
    return [step for step in steps if not table.answers(step)]


def shared(result: Any) -> Row:
    """The columns of `TYPES` that every result of `landscape.curvature` has."""
    keys = ("num_examples", "num_labels", "num_parameters", "loss")
    return {key: getattr(result, key) for key in keys}


class _Table:
    """The stored rows of a question."""

    def __init__(self, run: Run, question: Question) -> None:
        self._question = question
        self._path: Path = run.analysis_dir / question.file
        self._identity = {
            **asdict(question.variant),
            "split": SPLIT,
            "max_examples": question.num_examples or run.config.probe_examples,
            **question.settings,
        }
        self._rows = self._read()

    def rows_of(self, step: int) -> list[Row]:
        """The answer's rows at a step, by index."""
        return [row for row in self._rows if row["step"] == step and self._fits(row) and self._question.wants(row)]

    def answers(self, step: int, checksum: str | None = None) -> bool:
        """Whether the question is answered at a step, on the snapshot with this checksum if one is given."""
        rows = self.rows_of(step)
        if not rows or (checksum is not None and any(row["snapshot"] != checksum for row in rows)):
            return False
        if all(math.isnan(row["loss"]) for row in rows):
            return len(rows) >= len(self._question.blank)
        return self._question.is_answer(rows)

    def replace(self, step: int, rows: list[Row]) -> None:
        """Add an answer to what the file holds by now; of its space, the old one and other settings go."""
        kept = [
            row
            for row in self._read()
            if row["space"] != self._question.variant.space or (self._fits(row) and row["step"] != step)
        ]
        added = [{"reason": None, "step": step, **row, **self._identity} for row in rows]
        self._rows = sorted([*kept, *added], key=lambda row: (row["space"], row["step"], row.get("index", 0)))
        write_rows(self._path, self._rows, self._question.columns)

    def _fits(self, row: Row) -> bool:
        return all(row[key] == value for key, value in self._identity.items())

    def _read(self) -> list[Row]:
        added = {**_ADDED, **(self._question.defaults or {})}
        rows = read_rows(self._path, self._question.columns, tuple(added))
        return [{**row, **{key: value for key, value in added.items() if row[key] is None}} for row in rows]


def _measured(
    restored: RestoredRun,
    question: Question,
    space: CapturedSpace,
    steps: list[int],
    batch_size: int | None,
    progress: bool,
) -> Iterator[tuple[int, list[Row]]]:
    """Rows of each step as they are measured."""
    from tqdm import tqdm

    from landscape.measurement import NonFiniteLossError

    batches = restored.probe(question.num_examples, batch_size)
    sizes = _sizes(restored, batches)
    options = {"space": space.coordinates, "matrix": question.variant.matrix}
    preconditioner = functools.partial(space.preconditioner, restored.model)
    measure = question.begin(Subject(restored.model, batches, options, preconditioner, space.threshold))
    bar = tqdm(steps, desc=question.analysis, disable=not progress)
    for step in bar:
        began = time.perf_counter()
        restored.load(step)
        try:
            space.check(restored.model)
            rows = measure(step)
        except (NonFiniteLossError, UndefinedError) as error:
            undefined = {"loss": math.nan, "num_matvecs": 0, "reason": str(error)}
            rows = [{**undefined, **row} for row in question.blank]
        else:
            bar.set_postfix_str(f"step {step}: {question.headline(rows)}", refresh=False)
        seconds = time.perf_counter() - began
        yield step, [{**sizes, "seconds": seconds, **row} for row in rows]


def _sizes(restored: RestoredRun, batches: list[Any]) -> Row:
    from landscape.loss import count_labels

    counts = [count_labels(batch["labels"], restored.data.probe.kind) for batch in batches]
    return {
        "num_examples": sum(int((count > 0).sum()) for count in counts),
        "num_labels": sum(int(count.sum()) for count in counts),
        "num_parameters": sum(p.numel() for p in restored.model.parameters() if p.requires_grad),
    }
