"""A log's runs as runs of a store: measured values under the store's names, settings as far as anybody knows them.

The run's id is made of its content, so that importing a log twice changes nothing. ``origin.json`` in the run's folder
says where it came from.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from landscape.config import RunConfig, alpha_value
from landscape.config.imported import ImportedConfig
from landscape.errors import UsageError, unknown
from landscape.importers.curves import Log, LogCurve, LogCurves
from landscape.importers.files import checksum
from landscape.importers.tables import flattened
from landscape.store import Run, Store
from landscape.store.atomic import read_json, write_json
from landscape.store.lines import encode_line

ORIGIN_FILE = "origin.json"
_FINISHED = ("done", "diverged")
_SPLITS = {"eval": "eval", "val": "eval", "valid": "eval", "validation": "eval", "dev": "eval", "test": "test"}
_EVALUATION = re.compile(rf"({'|'.join(_SPLITS)})[_/](.+)", re.IGNORECASE)
_STANDARD_ERRORS = ("loss_stderr", "loss_se", "loss_standard_error")
_STEP_NAMES = {
    "lr": "learning_rate",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "gradient_norm": "grad_norm",
    "epoch": "epoch",
    "num_input_tokens_seen": "tokens",
    "num_tokens": "tokens",
    "tokens": "tokens",
    "loss_base": "loss_base",
    "loss_clean": "loss_clean",
    "loss_perturbed": "loss_perturbed",
}
"""The store's name of what a log calls so, wherever that stands: ``train/grad_norm`` too."""
_RESERVED = {"step", "split", "crc", "run_id"}
_SETTINGS = (
    *("learning_rate", "seed", "data_seed", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("lr_scheduler_type", "warmup_ratio", "bf16", "gradient_checkpointing"),
)
"""Keys that mean the same in transformers' TrainingArguments, which trackers log, and here."""
_ADAPTER = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "lora_dropout", "base_model_name_or_path": "model"}
"""Keys of a PEFT adapter's config."""


@dataclass(frozen=True)
class ImportedRun:
    """What became of one run of a log."""

    name: str
    run_id: str
    path: Path
    new: bool
    """False where the store held it already."""
    state: str
    step: int
    columns: Mapping[str, str]
    """The store's names, and the log's."""
    notes: tuple[str, ...]


@dataclass
class _Measured:
    """One run's values by step, on their way into the store."""

    records: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    resume_steps: set[float] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, curve: LogCurve, split: str, names: Iterable[str]) -> None:
        names = list(names)
        for step, value in zip(_whole(curve).tolist(), curve.values.tolist(), strict=True):
            row = self.records.setdefault((split, step), {"step": step, **({"split": split} if split else {})})
            row.update(dict.fromkeys(names, value))
        self.columns.update({f"{split} {name}".strip(): curve.column for name in names})
        self.resume_steps |= set(curve.resume_steps)
        self.notes += [note for note in curve.notes if note not in self.notes]

    def ordered(self) -> list[dict[str, Any]]:
        return [self.records[key] for key in sorted(self.records, key=lambda key: (key[1], key[0]))]


def import_log(
    log: Log,
    store: Store | str | Path,
    *,
    run: str | None = None,
    name: str | None = None,
    column: str = "loss",
    settings: Mapping[str, Any] | None = None,
    perturbed: bool = False,
) -> list[ImportedRun]:
    """Put the runs of a log into a store; those that it holds already are left as they are.

    Args:
        store: a store or the folder of one, created if it does not exist.
        run: only this run of the log.
        name: what it is called; by default as in the log. For one run only.
        column: the training loss.
        settings: config keys that the log does not hold; they go before what it holds.
        perturbed: the training loss was taken at perturbed weights (GGPO, MGPO, SAM), so it is not the clean loss.

    Raises:
        UsageError: a column that is no curve, no loss at all, steps that are no whole numbers, an unknown or wrong
            setting. Nothing has been written then.
        StoreError: the store cannot be written.
    """
    chosen = [one for one in log.runs if run in (None, one.name)]
    if not chosen:
        log.select(column, run)  # says which runs there are
    if name is not None and len(chosen) > 1:
        raise UsageError(f"--name: the log has {len(chosen)} runs; choose one with --run.")
    ready = []
    for one in chosen:
        found = one.match(column)
        if found is None and column != "loss":
            raise unknown("--column", column, one.columns)
        measured = _measure(one, found, perturbed)
        config, taken = _config(one, measured, settings or {}, name or one.name)
        ready.append((one, measured, config, taken))
    opened = store if isinstance(store, Store) else Store.create(store)
    source = {"source": log.path.name, "format": log.format, "sha256": checksum(log.files or (log.path,), log.path)}
    return [
        _write(opened, name or one.name, measured, config, source | {"run": one.name, "from_log": taken})
        for one, measured, config, taken in ready
    ]


def read_origin(run: Run) -> dict[str, Any] | None:
    """Where an imported run came from: source, format, sha256, run, columns, resume_steps, notes; None for others."""
    path = run.path / ORIGIN_FILE
    return read_json(path) if path.is_file() else None


def _measure(run: LogCurves, loss: str | None, perturbed: bool) -> _Measured:
    measured = _Measured()
    taken: set[tuple[str, str]] = set()
    # The loss first, so that it has its name before another column can take it.
    for column in sorted(run.columns, key=lambda name: name != loss):
        split, names = _names(column, column == loss, perturbed)
        names = [item for item in names if (split, item) not in taken] or [column]
        try:
            curve = run.curve(column)
        except UsageError as error:
            if column == loss:
                raise
            measured.notes.append(f"left out: {error}")
            continue
        taken |= {(split, item) for item in names}
        measured.add(curve, split, names)
    if not any("loss" in row or "loss_perturbed" in row for row in measured.records.values()):
        raise UsageError(
            f"run {run.name!r}: no training or evaluation loss among its columns ({', '.join(run.columns) or 'none'})."
        )
    return measured


def _names(column: str, is_loss: bool, perturbed: bool) -> tuple[str, list[str]]:
    """(split or nothing, the store's names) of a log's column."""
    found = _EVALUATION.fullmatch(column)
    if found:
        metric = found[2]
        return _SPLITS[found[1].lower()], ["standard_error" if metric in _STANDARD_ERRORS else metric]
    if is_loss:
        return "", ["loss_perturbed"] if perturbed else ["loss_clean", "loss_perturbed"]
    last = column.lower().rsplit("/", 1)[-1]
    if last.startswith("lr-"):
        last = "lr"
    name = _STEP_NAMES.get(last, column)
    return "", [f"logged_{name}" if name in _RESERVED else name]


def _whole(curve: LogCurve) -> np.ndarray:
    steps = curve.steps
    wrong = (steps != np.round(steps)) | (steps < 0) | (steps > 2**53)
    if wrong.any():
        raise UsageError(f"column {curve.column!r} of {curve.run}: step {steps[wrong][0]:g} is no whole number from 0.")
    return steps.astype(np.int64)


def _config(run: LogCurves, measured: _Measured, given: Mapping[str, Any], name: str) -> tuple[RunConfig, list[str]]:
    """The config, and which of its keys come from the log."""
    logged = _logged_settings(run.config, measured.notes)
    values = {**logged, **given, "max_steps": max(*(step for _, step in measured.records), 1)}
    if isinstance(values.get("alpha"), str):
        if values.get("rank") is None:
            raise UsageError(f"alpha: {values['alpha']!r} is a rule; it needs a rank (--set rank=16).")
        values["alpha"] = alpha_value(ImportedConfig.parse({"alpha": values["alpha"]}).alpha or "", values["rank"])
    if values.get("seed") is None:
        values["name"] = name
    return ImportedConfig.parse(values), sorted(logged.keys() - given.keys())


def _logged_settings(config: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Settings that a tracker or checkpoint recorded; what this package cannot read of them stays unknown."""
    found: dict[str, Any] = {}
    for key, value in flattened(config).items():
        *path, last = key.split("/")
        if last in _SETTINGS and not path:
            found[last] = value
        elif last in _ADAPTER and "peft_config" in path:
            found[_ADAPTER[last]] = value
        elif last == "_name_or_path" and not path and value:
            found.setdefault("model", value)
    valid = {}
    for key, value in found.items():
        if value is None:
            continue
        try:
            valid[key] = getattr(ImportedConfig.parse({key: value}), key)
        except UsageError:
            notes.append(f"{key}: {str(value)[:40]!r} of the log is not understood and stays unknown")
    return valid


def _write(store: Store, name: str, measured: _Measured, config: RunConfig, origin: Mapping[str, Any]) -> ImportedRun:
    records = measured.ordered()
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(b"".join([name.encode(), settings.encode(), *map(encode_line, records)])).hexdigest()
    run = store.add(config, f"imported-{_slug(name)}{digest[:10]}", {})
    status = run.status
    new = status.state not in _FINISHED
    if new:
        losses = [row["loss_perturbed"] for row in records if "loss_perturbed" in row]
        write_json(
            run.path / ORIGIN_FILE,
            {
                **origin,
                "columns": measured.columns,
                "resume_steps": sorted(measured.resume_steps),
                "notes": measured.notes,
            },
        )
        with run.begin_attempt() as attempt:
            for record in records:
                attempt.log(record)
        run.compact()
        diverged = bool(losses) and not math.isfinite(losses[-1])
        status = run.set_status(state="diverged" if diverged else "done", step=records[-1]["step"])
    return ImportedRun(name, run.id, run.path, new, status.state, status.step, measured.columns, tuple(measured.notes))


def _slug(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_+=-]+", "-", name).strip("-")[:60]
    return f"{plain}-" if plain else ""
