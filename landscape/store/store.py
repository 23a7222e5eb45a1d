"""The store: a folder of runs, readable while it is being written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from landscape.config import SCHEMA_VERSION, RunConfig
from landscape.errors import StoreError, nearest
from landscape.store.atomic import read_json, write_json
from landscape.store.files import refuse_outside
from landscape.store.names import check_run_id, is_run_id
from landscape.store.runs import CONFIG_FILE, Run, create_run

STORE_FILE = "store.json"
_FOLDERS = ("runs", "orders", "base_loss", "analysis", "sweeps", "queue")


class Store:
    """A folder of runs. Open it with `Store.open`, or `Store.create` where it may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """The store at ``path``, made if there is none.

        Raises:
            StoreError: the path is a file, a folder with other things in it, or a store of a newer schema.
        """
        path = Path(path)
        store = cls.open(path) if (path / STORE_FILE).is_file() else cls._make(path)
        # For old stores too: version control and some archives leave empty folders behind.
        try:
            for folder in (store._runs_dir, store.orders_dir, store.base_loss_dir):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write to the store {path}: {error.strerror}") from error
        return store

    @classmethod
    def _make(cls, path: Path) -> Self:
        try:
            path.mkdir(parents=True, exist_ok=True)
            foreign = sorted(item.name for item in path.iterdir() if not item.name.startswith("."))
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"{path} is a file: a store is a folder") from None
        except OSError as error:
            raise StoreError(f"cannot create a store at {path}: {error.strerror}") from error
        # Another process may have made the store in the meantime.
        if foreign and STORE_FILE not in foreign:
            raise StoreError(f"{path} is no store (no {STORE_FILE}) and not empty: it holds {foreign[0]!r}")
        write_json(path / STORE_FILE, {"format": "landscape-store", "schema_version": SCHEMA_VERSION})
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The existing store at ``path``.

        Raises:
            StoreError: there is none, it is damaged, one of its folders is a link that leads out of it, or its schema
                is newer than this version of the package.
        """
        path = Path(path)
        if not (path / STORE_FILE).is_file():
            what = "does not exist" if not path.exists() else f"is no store: it has no {STORE_FILE}"
            raise StoreError(f"{path} {what}")
        version = read_json(path / STORE_FILE).get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise StoreError(f"{path / STORE_FILE} is damaged: schema_version is {version!r}")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema version {version} (in {STORE_FILE}), this package reads up to version "
                f"{SCHEMA_VERSION}: upgrade it"
            )
        for name in _FOLDERS:
            refuse_outside(path / name, path)
        return cls(path)

    @property
    def orders_dir(self) -> Path:
        """Data orders, shared by runs."""
        return self.path / "orders"

    @property
    def base_loss_dir(self) -> Path:
        """Base-model losses, shared by runs."""
        return self.path / "base_loss"

    @property
    def _runs_dir(self) -> Path:
        return self.path / "runs"

    def run_path(self, run_id: str) -> Path:
        """Where the run of this id lies, or would."""
        return self._runs_dir / check_run_id(run_id)

    def add(self, config: RunConfig, run_id: str, digests: Mapping[str, str]) -> Run:
        """The run of this id, made with status ``queued`` if there is none; an existing one is left as it is.

        Raises:
            UsageError: the id is not a plain name.
            StoreError: the existing run was made from other data or another model, or the disk is full.
        """
        path = self._runs_dir / check_run_id(run_id)
        refuse_outside(path, self.path)
        if not (path / CONFIG_FILE).is_file():
            return create_run(path, self.path, config, digests)
        run = Run(path, self.path)
        if run.digests != dict(digests):
            raise StoreError(f"run {run_id} exists with other digests: {run.digests} instead of {dict(digests)}")
        return run

    def runs(self) -> list[Run]:
        """Every run, sorted by id."""
        folder = self._runs_dir
        return [Run(folder / run_id, self.path) for run_id in self._run_ids()]

    def find(self, run_id: str) -> Run | None:
        """The run of exactly this id, or None."""
        path = self._runs_dir / check_run_id(run_id)
        refuse_outside(path, self.path)
        return Run(path, self.path) if (path / CONFIG_FILE).is_file() else None

    def get(self, run_id: str) -> Run:
        """The run of this id, or the only one whose id starts so.

        Raises:
            StoreError: there is none (the nearest is named), or several start so.
        """
        ids = self._run_ids()
        matches = [run_id] if run_id in ids else [known for known in ids if run_id and known.startswith(run_id)]
        if len(matches) == 1:
            return Run(self._runs_dir / matches[0], self.path)
        if matches:
            shown = ", ".join(matches[:3]) + (", ..." if len(matches) > 3 else "")
            raise StoreError(f"run {run_id!r} is ambiguous in {self.path}: {len(matches)} ids start so: {shown}")
        raise StoreError(f"{self.path} has no run {run_id!r} among its {len(ids)}.{nearest(run_id, ids)}")

    def _run_ids(self) -> list[str]:
        # A folder without a config is a run that is just being made, or was when its process died.
        # A link is nobody's run: `landscape merge` copies runs from elsewhere.
        try:
            with os.scandir(self._runs_dir) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read {self._runs_dir}: {error.strerror}") from error
        runs = str(self._runs_dir)
        return sorted(name for name in names if is_run_id(name) and os.path.lexists(f"{runs}/{name}/{CONFIG_FILE}"))
