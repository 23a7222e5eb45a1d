"""Analyses that wait in a store for whoever has time: ``queue/<id>/`` holds a job, the leases on it, and its answer.

The id is a hash of the function and its arguments, so that the same question is in the queue once, however often it is
asked. Who works on it is agreed upon as for runs (`landscape.store.leases`). Only the functions of `CELLS` are called,
whatever a store's files say.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.store import LeaseHeldError, LeaseWatch, Store
from landscape.store.atomic import read_json, write_bytes, write_error, write_json
from landscape.store.files import read_plain, refuse_outside
from landscape.store.leases import MOST_DEATHS, claim_lease
from landscape.store.pack import is_write_error
from landscape.sweeps.analyses import CELLS
from landscape.sweeps.engines.base import Job, call, describe

FOLDER, JOB_FILE, ANSWER_FILE = "queue", "job.json", "answer.json"
_NAME = re.compile(r"[0-9a-f]{16}")
_MOST_ANSWER = 1 << 28


def put(store: Store, job: Job) -> Path:
    """Have a job in the queue; returns its folder.

    Raises:
        StoreError: the disk is full or refuses.
    """
    content = {"key": job.key, "function": job.function, "arguments": _portable(job.arguments)}
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = store.path / FOLDER / identity
    refuse_outside(folder, store.path)
    if not (folder / JOB_FILE).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        write_json(folder / JOB_FILE, content)
    return folder


def _portable(arguments: dict[str, Any]) -> dict[str, Any]:
    """Without what is another one's elsewhere: the place of the store, and who watches."""
    return {key: value for key, value in arguments.items() if key not in ("store", "progress")}


def is_taken(folder: Path) -> bool:
    """Whether somebody has begun to work on the job."""
    return (folder / "leases").is_dir()


def answer_of(folder: Path) -> dict[str, Any] | None:
    """``result`` or ``error`` of a job; None while nobody has answered.

    Raises:
        StoreError: the answer is damaged.
    """
    path = folder / ANSWER_FILE
    if not os.path.lexists(path):
        return None
    try:
        answer = json.loads(read_plain(path, _MOST_ANSWER))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("error"), str | None):
        raise StoreError(f"{path} is damaged: no answer")
    return answer


def remove(folder: Path) -> None:
    """Take a job whose answer was read out of the queue."""
    shutil.rmtree(folder, ignore_errors=True)


class QueueHunt:
    """Looks through a store's queue for jobs that are free, for one worker."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watch = LeaseWatch()
        self._passed_over: set[str] = set()
        self.left = 0
        """Jobs without an answer, as last seen."""

    def take_one(self) -> tuple[str, str, str | None] | None:
        """Answer one job: its folder's name, its key, and what went wrong; None where none is free.

        Raises:
            StoreError: the disk is full or refuses.
        """
        self.left = 0
        taken = None
        for folder in self._folders():
            answered = os.path.lexists(folder / ANSWER_FILE) or not os.path.lexists(folder / JOB_FILE)
            if answered or folder.name in self._passed_over:
                continue
            if taken is None:
                taken = self._try(folder)
                self.left += taken is None
            else:
                self.left += 1
        return taken

    def _try(self, folder: Path) -> tuple[str, str, str | None] | None:
        try:
            free, mark = self._watch.look(folder)
            if not free:
                return None
            with claim_lease(folder, expired=mark) as lease:
                if os.path.lexists(folder / ANSWER_FILE):
                    return None
                if lease.deaths >= MOST_DEATHS:
                    key, answer = folder.name, {"error": f"killed its worker {lease.deaths} times"}
                else:
                    key, answer = self._answer(folder)
                lease.check()
                write_bytes(folder / ANSWER_FILE, json.dumps(answer, default=str).encode())
        except LeaseHeldError:
            return None
        except StoreError as error:
            if is_write_error(error) and folder.is_dir():
                raise
            self._passed_over.add(folder.name)  # removed in the meantime, or somebody's trick
            return None
        return folder.name, key, answer.get("error")

    def _answer(self, folder: Path) -> tuple[str, dict[str, Any]]:
        key = folder.name
        try:
            content = read_json(folder / JOB_FILE)
            function, arguments = content.get("function"), content.get("arguments")
            if not isinstance(function, str) or function not in CELLS or not isinstance(arguments, dict):
                raise StoreError(f"{folder / JOB_FILE} asks for what is no analysis: {str(function)[:80]!r}")
            key = str(content.get("key"))[:200]
            place = {"store": str(self._store.path.absolute())}
            return key, {"result": call(Job(key, function, {**arguments, **place}))}
        except Exception as error:
            return key, {"error": describe(error)}

    def _folders(self) -> list[Path]:
        root = self._store.path / FOLDER
        with contextlib.suppress(OSError), os.scandir(root) as entries:
            names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
            return [root / name for name in sorted(names) if (root / name).is_dir() and not (root / name).is_symlink()]
        return []
