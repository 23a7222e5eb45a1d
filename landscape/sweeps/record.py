"""What a sweep was to be, kept in the store: ``sweeps/<hash>.json``, written before its first run is made.

With it `resume` and `worker` know the cells of a sweep whose driver was killed before it had made all run folders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.config import RunConfig
from landscape.errors import StoreError, UsageError
from landscape.store import Store
from landscape.store.atomic import read_json, write_json

FOLDER = "sweeps"


@dataclass(frozen=True)
class RecordedCell:
    """A run that a sweep wants; ``config`` is resolved."""

    run_id: str
    config: RunConfig
    digests: dict[str, str]


def write_record(store: Path, cells: Sequence[RecordedCell]) -> Path:
    """Keep the cells of a sweep; the same sweep again is the same file.

    Raises:
        StoreError: the disk is full or refuses.
    """
    configs = [cell.config.model_dump(mode="json") for cell in cells]
    base = configs[0] if configs else {}
    digests: list[dict[str, str]] = []
    entries = []
    for cell, config in zip(cells, configs, strict=True):
        if cell.digests not in digests:
            digests.append(cell.digests)
        changes = {key: value for key, value in config.items() if value != base[key]}
        entries.append({"run_id": cell.run_id, "digests": digests.index(cell.digests), "config": changes})
    record = {"base": base, "digests": digests, "cells": entries}
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    path = store / FOLDER / f"{digest}.json"
    if not path.exists():
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create {path.parent}: {error.strerror}") from error
        write_json(path, record)
    return path


def read_records(store: Path) -> Iterator[RecordedCell]:
    """The cells of every sweep that was begun in a store.

    Raises:
        StoreError: a record is damaged.
    """
    for path in sorted((store / FOLDER).glob("*.json")):
        if not path.name.startswith("."):
            yield from _cells(path, read_json(path))


def add_missing_runs(store: Store) -> int:
    """Make the run folders that a killed driver did not get to; returns how many."""
    added = 0
    known = {run.id for run in store.runs()}
    for cell in read_records(store.path):
        if cell.run_id not in known:
            store.add(cell.config, cell.run_id, cell.digests)
            known.add(cell.run_id)
            added += 1
    return added


def _cells(path: Path, record: Mapping[str, Any]) -> Iterator[RecordedCell]:
    try:
        for entry in record["cells"]:
            config = RunConfig.parse({**record["base"], **entry["config"]})
            yield RecordedCell(str(entry["run_id"]), config, dict(record["digests"][entry["digests"]]))
    except (KeyError, TypeError, IndexError, UsageError) as error:
        raise StoreError(f"{path} is damaged: {error!r}") from error
