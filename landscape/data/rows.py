"""From a config to checked rows of text: finds the files or hub splits, maps columns, holds out, adds noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from landscape.config import RunConfig
from landscape.data import arithmetic, sampling
from landscape.data.tables import Table, read_table
from landscape.data.tasks import TASKS, Columns, Task
from landscape.errors import UsageError, nearest, unknown
from landscape.hub import unreachable

TEXT_ROLES = ("input", "target")
CLASS_ROLES = ("text", "text_pair", "label")


@dataclass(frozen=True)
class Rows:
    """Parallel columns: ``fields`` maps the input roles to texts; ``targets`` are texts, or labels in [0, classes)."""

    fields: Mapping[str, list[str]]
    targets: list[str] | list[int]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at these indices, in their order."""
        fields = {role: [values[i] for i in indices] for role, values in self.fields.items()}
        return Rows(fields, [self.targets[i] for i in indices])  # type: ignore[arg-type]


@dataclass(frozen=True)
class TaskRows:
    """A task as texts: the splits with subsets taken and noise added; ``label_words`` is empty for text targets."""

    task: Task
    train: Rows
    eval: Rows
    probe: Rows
    label_words: tuple[str, ...]


@dataclass(frozen=True)
class _Tables:
    """The tables of a task; eval is None where a part of train is to be held out."""

    train: Table
    eval: Table | None


def find_task(config: RunConfig) -> Task:
    """The task by name, with the keys that do not go with it refused.

    Raises:
        UsageError: unknown name, or data_dir, data_files or columns for a task that does not read them.
    """
    if config.task not in TASKS:
        raise unknown("task", config.task, TASKS)
    if config.task == "arithmetic":
        for key in ("data_dir", "data_files", "columns"):
            if getattr(config, key) is not None:
                raise UsageError(f"{key}: task 'arithmetic' is generated and reads no files; remove the key")
    elif config.task == "files":
        if config.data_dir is not None:
            raise UsageError("data_dir: task 'files' reads data_files: {train: ..., eval: ...}; remove the key")
        for key in config.data_files or {}:
            if key not in ("train", "eval"):
                raise UsageError(f"data_files: {key!r} is not known; allowed: train, eval.{nearest(key, ('eval',))}")
    elif config.data_files is not None:
        raise UsageError(f"data_files: only for task: files; task {config.task!r} reads data_dir or the hub")
    return TASKS[config.task]


def is_local(config: RunConfig) -> bool:
    """Whether the data is on this machine, and so can be checked in full before anything is downloaded."""
    return config.task in ("arithmetic", "files") or config.data_dir is not None


def load_rows(config: RunConfig) -> TaskRows:
    """Read, check and cut the task's data.

    Raises:
        UsageError: anything wrong with the files or their content, or a hub that cannot be reached.
    """
    task = find_task(config)
    if task.name == "arithmetic":
        return _arithmetic_rows(task, config)
    tables = _tables(task, config)
    columns = _columns(task, config.columns, tables.train)
    label_words = task.label_words if "label" in columns else ()
    if task.name == "files" and "label" in columns:
        label_words = _class_names(tables.train, columns["label"])
    train = _table_rows(tables.train, columns, label_words, task)
    if tables.eval is not None:
        evaluation = _table_rows(tables.eval, columns, label_words, task)
    else:
        if len(train) < 2:
            raise UsageError(f"{tables.train.origin} has {len(train)} usable rows; at least 2 are needed to hold out 1")
        kept, held = sampling.hold_out(len(train))
        train, evaluation = train.take(kept), train.take(held)
    # The probe is the head of the order that train's subset is taken from: the same rows for every train_examples.
    used = sampling.subset(len(train), config.train_examples)
    position = {row: index for index, row in enumerate(used)}
    probed = [position[row] for row in sampling.subset(len(train), min(config.probe_examples, len(used)))]
    train = _add_noise(train.take(used), config.label_noise, label_words)
    evaluation = evaluation.take(sampling.subset(len(evaluation), config.eval_examples))
    return TaskRows(_with_templates(task, columns), train, evaluation, train.take(probed), label_words)


def data_digest(config: RunConfig) -> str:
    """What stands for the data in a run's identity, independent of where files lie.

    A sha256 over the bytes of the splits used and the column mapping, or over the generator's version and sizes for
    `arithmetic`; ``hub:<path>/<config>@main`` for sets loaded by hub name.
    """
    task = find_task(config)
    if task.name == "arithmetic":
        described: dict[str, Any] = {"arithmetic": arithmetic.GENERATOR_VERSION, "sizes": arithmetic.DEFAULT_SIZES}
    elif not is_local(config):
        path = task.hub_path if task.hub_config is None else f"{task.hub_path}/{task.hub_config}"
        return f"hub:{path}@main"
    else:
        tables = _tables(task, config)
        described = {
            "task": task.name,
            "train": tables.train.digest,
            "eval": tables.eval.digest if tables.eval else None,
            "columns": dict(_columns(task, config.columns, tables.train)),
        }
    return f"sha256:{hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()}"


# --- generated --------------------------------------------------------------------------------------------------------


def _arithmetic_rows(task: Task, config: RunConfig) -> TaskRows:
    sizes = arithmetic.DEFAULT_SIZES
    problems = arithmetic.generate("finetuning", "train", config.train_examples or sizes["train"])
    draws = sampling.raw_draws(sampling.NOISE_SEED + 1, len(problems))
    for index in sampling.noisy_indices(len(problems), config.label_noise):
        problems[index] = problems[index].with_wrong_result(int(draws[index]))
    held_out = arithmetic.generate("finetuning", "eval", config.eval_examples or sizes["eval"])
    train, evaluation = (
        Rows({"input": [p.question for p in part]}, [p.answer for p in part]) for part in (problems, held_out)
    )
    return TaskRows(task, train, evaluation, train.take(range(min(config.probe_examples, len(train)))), ())


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(task: Task, config: RunConfig) -> _Tables:
    if task.name == "files":
        files = config.data_files or {}
        evaluation = files.get("eval")
        return _Tables(read_table(Path(files["train"])), read_table(Path(evaluation)) if evaluation else None)
    if config.data_dir is None:
        return _hub_tables(task.name, tuple((config.columns or {}).values()))
    folder = _data_folder(task, Path(config.data_dir).expanduser())
    paths = [folder / f"{name}.parquet" for name in task.eval_splits]
    evaluation = _first_labelled(task, config.columns, (read_table(path) for path in paths if path.is_file()))
    return _Tables(read_table(folder / "train.parquet"), evaluation)


def _data_folder(task: Task, folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"data_dir: {folder} is not a folder")
    for candidate in (folder / task.name, folder):
        if (candidate / "train.parquet").is_file():
            return candidate
    inside = sorted(path.name for path in folder.iterdir())
    raise UsageError(
        f"data_dir: neither {folder / 'train.parquet'} nor {folder / task.name / 'train.parquet'} exists; "
        f"the folder holds: {', '.join(inside[:12]) or 'nothing'}.{nearest(task.name, inside)}"
    )


def _first_labelled(task: Task, override: Columns | None, tables: Iterable[Table]) -> Table | None:
    """The first eval table whose labels are not hidden; GLUE hides test labels as -1."""
    for table in tables:
        columns = _columns(task, override, table)
        if "label" not in columns or any(label != -1 for label in table.column(columns["label"], "label")):
            return table
    return None


@lru_cache(maxsize=4)
def _hub_tables(name: str, extra_columns: tuple[str, ...]) -> _Tables:
    import datasets
    from datasets import config as datasets_config

    task = TASKS[name]
    assert task.hub_path is not None
    offline = unreachable()
    was_offline, bars = datasets_config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    datasets_config.HF_HUB_OFFLINE = bool(offline) or was_offline
    datasets.disable_progress_bars()
    try:
        splits: Any = datasets.load_dataset(task.hub_path, task.hub_config)
    except Exception as error:  # the library raises a different type for each layer that can fail
        cause = offline or " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"task: {task.name!r} cannot be loaded from the hub set {task.hub_path!r} ({cause}). "
            "Give a folder of Parquet files: data_dir: FOLDER with train.parquet and validation.parquet or test.parquet"
        ) from error
    finally:
        datasets_config.HF_HUB_OFFLINE = was_offline
        if not bars:
            datasets.enable_progress_bars()
    wanted = {name for columns in task.columns for name in columns.values()} | {"input", *extra_columns}

    def table(split: str) -> Table:
        data = splits[split]
        names = [name for name in data.column_names if name in wanted]
        return Table(f"{task.hub_path} {split}", data.select_columns(names)[:], "")

    return _Tables(table("train"), _first_labelled(task, None, (table(n) for n in task.eval_splits if n in splits)))


# --- columns and checks -----------------------------------------------------------------------------------------------


def _columns(task: Task, override: Columns | None, table: Table) -> Columns:
    """The role → column mapping that holds for this table."""
    roles = set(override or {})
    if wrong := sorted(roles - {*TEXT_ROLES, *CLASS_ROLES}):
        allowed = ", ".join((*TEXT_ROLES, *CLASS_ROLES))
        raise UsageError(
            f"columns: {wrong[0]!r} is not known; allowed: {allowed}.{nearest(wrong[0], allowed.split(', '))}"
        )
    if task.columns and not roles >= {"input", "target"}:
        base = _matching(task, table)
        if wrong := sorted(roles - set(base)):
            raise UsageError(f"columns: {wrong[0]!r} is no role of task {task.name!r}; its roles: {', '.join(base)}")
        return {**base, **(override or {})}
    if roles == {"input", "target"} or ({"text", "label"} <= roles <= set(CLASS_ROLES)):
        return dict(override or {})
    raise UsageError(
        f"columns: got {', '.join(sorted(roles))}; needed are {{input, target}}, or {{text, label}} with or without "
        "text_pair"
    )


def _matching(task: Task, table: Table) -> Columns:
    """The first of the task's mappings whose columns all exist; else the official one, whose absence is then told."""
    for columns in task.columns:
        if all(name in table.columns for name in columns.values()):
            return columns
    return task.columns[0]


def _table_rows(table: Table, columns: Columns, label_words: tuple[str, ...], task: Task) -> Rows:
    fields = {role: _texts(table, name, role) for role, name in columns.items() if role not in ("label", "target")}
    if "label" in columns:
        return Rows(fields, _labels(table, columns["label"], label_words))
    if columns["input"] == "instruction" and "input" in table.columns:
        # Alpaca's optional context, empty in most rows.
        context = [value or "" for value in table.column("input", "input")]
        fields["input"] = [f"{a}\n{b}" if b else a for a, b in zip(fields["input"], context, strict=True)]
    rows = Rows(fields, _texts(table, columns["target"], "target"))
    if task.answer_label is None:
        return rows
    labels = table.column(task.columns[0]["label"], "label")
    return rows.take([index for index, label in enumerate(labels) if label == task.answer_label])


def _texts(table: Table, name: str, role: str) -> list[str]:
    values = table.column(name, role)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            shown = "no value" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
            raise UsageError(f"columns: {role} {name!r} must hold text; {table.place(row)} has {shown}")
    return values


def _class_names(table: Table, name: str) -> tuple[str, ...]:
    """The classes of a user's own label column: 0 to the largest number, or its distinct texts in order."""
    values = table.column(name, "label")
    if all(_integer(value) is not None for value in values):
        return tuple(str(number) for number in range(max(2, 1 + max(_integer(value) or 0 for value in values))))
    names = sorted({str(value) for value in values if value is not None})
    if len(names) < 2:
        raise UsageError(f"columns: label {name!r} of {table.origin} has only one class, {names[0]!r}")
    return tuple(names)


def _labels(table: Table, name: str, label_words: tuple[str, ...]) -> list[int]:
    words = {word: index for index, word in enumerate(label_words)}
    labels: list[int] = []
    for row, value in enumerate(table.column(name, "label")):
        label = words.get(value) if isinstance(value, str) and value in words else _integer(value)
        if label is None or not 0 <= label < len(label_words):
            raise UsageError(
                f"columns: label {name!r}: {table.place(row)} has {value!r}; allowed: 0 to {len(label_words) - 1}"
                f" ({', '.join(label_words[:8])})"
            )
        labels.append(label)
    return labels


def _integer(value: object) -> int | None:
    """A whole number, also as Python's bool, 1.0 or the text of a CSV field."""
    if isinstance(value, str):
        return int(value) if value.strip().lstrip("-").isdecimal() else None
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def _add_noise(rows: Rows, share: float, label_words: tuple[str, ...]) -> Rows:
    noisy = sampling.noisy_indices(len(rows), share)
    if not noisy:
        return rows
    if len(set(rows.targets)) < 2:
        raise UsageError(f"label_noise: {share:g} needs training targets that differ; all {len(rows)} are the same")
    if label_words:
        return replace(rows, targets=sampling.other_labels(rows.targets, noisy, len(label_words)))  # type: ignore[arg-type]
    return replace(rows, targets=sampling.other_targets(rows.targets, noisy))  # type: ignore[arg-type]


def _with_templates(task: Task, columns: Columns) -> Task:
    """Templates for the roles at hand, where the task's own name others."""
    if "label" not in columns and "{input}" not in task.prompt:
        return replace(task, prompt="Q: {input}\nA:", source="{input}")
    if "label" in columns and "{text}" not in task.prompt:
        text = "{text}\n{text_pair}" if "text_pair" in columns else "{text}"
        return replace(task, prompt=f"{text}\nLabel:", source=text)
    return task
