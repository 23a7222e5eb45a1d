"""``trainer_state.json``, which every Hugging Face and TRL Trainer writes into its checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from landscape.errors import UsageError
from landscape.importers.curves import Log, LogCurves
from landscape.importers.files import inside, read_bytes
from landscape.importers.tables import flattened, numbers_of_records

FILE_NAME = "trainer_state.json"


def runs_of_state(state: dict[str, Any], path: Path) -> tuple[list[LogCurves], list[str]]:
    """The run of a trainer's state: its ``log_history``, an entry a logging or evaluation.

    Raises:
        UsageError: no list of entries with a step each, or an empty one.
    """
    history = state["log_history"]
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UsageError(f"{path}: log_history is not a list of entries.")
    if not history:
        raise UsageError(f"{path}: log_history is empty; the Trainer has logged nothing yet (logging_steps).")
    records = [(number, flattened(entry)) for number, entry in enumerate(history, 1)]
    return numbers_of_records(records, "entry", path.parent.name or path.stem)


def find_state(folder: Path) -> tuple[Path | None, list[str]]:
    """The state in a checkpoint's folder, or in the last checkpoint of an output folder; and which it is."""
    if (folder / FILE_NAME).is_file():
        return folder / FILE_NAME, []
    states = [path for path in folder.glob(f"checkpoint-*/{FILE_NAME}") if path.parent.name[11:].isdigit()]
    if not states:
        return None, []
    last = max(states, key=lambda path: int(path.parent.name[11:]))
    return last, [f"the log of {last.parent.name}, the last of {len(states)} checkpoints"]


def with_adapter_config(log: Log) -> Log:
    """The log with what the PEFT adapter beside it says of its rank, alpha and base model.

    ``training_args.bin`` would say more; it is pickled, and nothing is ever unpickled here.
    """
    folder = log.path.parent
    path = folder / "adapter_config.json"
    if not path.is_file() or not inside(folder, [path], []):
        return log
    try:
        adapter = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        return replace(log, notes=(*log.notes, f"{path.name} is not JSON and was left out"))
    runs = tuple(replace(run, config={**run.config, "peft_config": {"default": adapter}}) for run in log.runs)
    return replace(log, runs=runs)
