"""`read_log`: which importer reads a file or folder, told by its content."""

from __future__ import annotations

import json
from pathlib import Path

from landscape.errors import UsageError, nearest
from landscape.importers.curves import Log, LogCurves
from landscape.importers.tables import flattened, numbers_of_records, read_csv, read_jsonl
from landscape.importers.tensorboard import event_files, is_event_file, read_events
from landscape.importers.trainer_state import FILE_NAME, find_state, runs_of_state
from landscape.importers.wandb import split_name

KNOWN = f"CSV, JSONL, {FILE_NAME} or a folder with one, a TensorBoard folder, a CSV that W&B exported"

Runs = tuple[list[LogCurves], list[str]]


def read_log(path: str | Path) -> Log:
    """Read a training log.

    Args:
        path: CSV, JSONL or a JSON list of records; ``trainer_state.json``, or a folder of the Trainer's; TensorBoard
            event files, or a folder of them; a CSV that W&B exported.

    Raises:
        UsageError: not there, none of these, or damaged; the message names the line.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path)
        data = path.read_bytes()
    except FileNotFoundError:
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"{path}: no such file or folder.{nearest(path.name, siblings)}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None
    if is_event_file(data):
        return _log(path, "TensorBoard", read_events([path], path.parent))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{path}: a binary file (or text that is not UTF-8); known: {KNOWN}.")
    if not text.strip():
        raise UsageError(f"{path}: the file is empty.")
    if text.lstrip()[0] in "{[":
        return _read_json(text, path)
    runs = read_csv(text, path)
    first = text.lstrip().split("\n", 1)[0]
    wandb = any(split_name(cell.strip('" \r')) for cell in first.split(","))
    return _log(path, "W&B CSV" if wandb else "CSV", runs)


def _read_folder(folder: Path) -> Log:
    state, notes = find_state(folder)
    if state is not None:
        log = read_log(state)
        return Log(log.path, log.format, log.runs, (*notes, *log.notes))
    files = event_files(folder)
    if files:
        return _log(folder, "TensorBoard", read_events(files, folder))
    raise UsageError(f"{folder}: no {FILE_NAME} and no TensorBoard events in this folder; known: {KNOWN}.")


def _read_json(text: str, path: Path) -> Log:
    """One JSON document if the file is one, else an object a line."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[0] == "{" and _is_object(text.lstrip().split("\n", 1)[0]):
            return _log(path, "JSONL", read_jsonl(text, path))
        raise UsageError(
            f"{path}: JSON that is cut off or damaged ({error.msg} at line {error.lineno}, column {error.colno})."
        ) from None
    if isinstance(whole, dict) and "log_history" in whole:
        return _log(path, FILE_NAME, runs_of_state(whole, path))
    if isinstance(whole, dict) and text.strip().count("\n") == 0:
        return _log(path, "JSONL", read_jsonl(text, path))
    if isinstance(whole, list) and whole and all(isinstance(entry, dict) for entry in whole):
        records = [(number, flattened(entry)) for number, entry in enumerate(whole, 1)]
        return _log(path, "JSON", numbers_of_records(records, "entry", path.stem))
    keys = f"keys {', '.join(list(whole)[:6])}" if isinstance(whole, dict) else "a list"
    raise UsageError(f"{path}: JSON with {keys}, which is no log; known: {KNOWN}.")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _log(path: Path, kind: str, found: Runs) -> Log:
    runs, notes = found
    return Log(path, kind, tuple(runs), tuple(notes))
