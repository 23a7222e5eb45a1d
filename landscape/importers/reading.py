"""`read_log`: which importer reads a file or folder, told by its content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from landscape.errors import UsageError, nearest
from landscape.importers import mlflow, wandb_offline
from landscape.importers.curves import Log, LogCurves
from landscape.importers.files import inside, read_bytes
from landscape.importers.tables import flattened, numbers_of_records, read_csv, read_jsonl
from landscape.importers.tensorboard import event_files, is_event_file, read_events
from landscape.importers.trainer_state import FILE_NAME, find_state, runs_of_state, with_adapter_config
from landscape.importers.wandb import split_name

KNOWN = (
    f"CSV, JSONL, {FILE_NAME} or a folder with one, a TensorBoard folder, a CSV that W&B exported, W&B's offline run "
    "folders, MLflow's mlruns or mlflow.db"
)

Runs = tuple[list[LogCurves], list[str]]


def read_log(path: str | Path) -> Log:
    """Read a training log; nothing in it is executed or unpickled, and no file outside a folder is opened.

    Args:
        path: CSV, JSONL or a JSON list of records; ``trainer_state.json``, or a folder of the Trainer's; TensorBoard
            event files, or a folder of them; a CSV that W&B exported; W&B's run folders, or the ``wandb`` folder that
            holds them; MLflow's ``mlruns``, an experiment or run in it, or ``mlflow.db``.

    Raises:
        UsageError: not there, none of these, too large, or damaged; the message names the line.
    """
    path = Path(path)
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except FileNotFoundError:
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"{path}: no such file or folder.{nearest(path.name, siblings)}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None


def _read_file(path: Path) -> Log:
    data = read_bytes(path)
    if is_event_file(data):
        return _log(path, "TensorBoard", read_events([path], path.parent))
    if wandb_offline.is_run_file(data):
        return _log(path, "W&B run", wandb_offline.read_runs([path]))
    if mlflow.is_database(data):
        return _log(path, "MLflow", mlflow.read_database(path))
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
    notes: list[str] = []
    state, chosen = find_state(folder)
    if state is not None and inside(folder, [state], notes):
        log = with_adapter_config(_read_file(state))
        return Log(log.path, log.format, log.runs, (*chosen, *log.notes))
    logs = wandb_offline.run_files(folder, notes)
    if logs:
        return _log(folder, "W&B runs", wandb_offline.read_runs(logs), logs, notes)
    folders = mlflow.run_folders(folder, notes)
    if folders:
        runs, files = mlflow.read_folders(folders, notes)
        return _log(folder, "MLflow", (runs, []), files, notes)
    files = inside(folder, event_files(folder), notes)
    if files:
        return _log(folder, "TensorBoard", read_events(files, folder), files, notes)
    if (folder / "mlflow.db").is_file() and inside(folder, [folder / "mlflow.db"], notes):
        return _read_file(folder / "mlflow.db")
    said = "".join(f" {note}." for note in notes)
    raise UsageError(f"{folder}: no {FILE_NAME} and no TensorBoard events in this folder; known: {KNOWN}.{said}")


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
    except (RecursionError, ValueError):  # nested without end, or a number of thousands of digits
        raise UsageError(
            f"{path}: JSON that is nested too deeply for a log, or has a number that is too long."
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
    except (ValueError, RecursionError):
        return False


def _log(path: Path, kind: str, found: Runs, files: Sequence[Path] = (), notes: Sequence[str] = ()) -> Log:
    runs, more = found
    return Log(path, kind, tuple(runs), (*notes, *more), tuple(files))
