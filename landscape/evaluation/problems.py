"""Where a benchmark's problems are read from: the user's files, the run's own data folder, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.data.tables import SUFFIXES, Table, read_table
from landscape.errors import UsageError, nearest
from landscape.evaluation.base import HubSet
from landscape.hub import unreachable

if TYPE_CHECKING:
    from landscape.config import RunConfig

_SPLIT = "test"


def read_problems(name: str, hub: HubSet, data: str | None, config: RunConfig) -> tuple[Table, str]:
    """The table of a benchmark and the name of its split.

    Args:
        name: of the benchmark, and of its folder.
        data: a Parquet or JSONL file, or a folder with ``test.parquet`` or ``<name>/test.parquet``. Default: the run's
            ``data_dir`` where that holds the benchmark, else the hub.

    Raises:
        UsageError: there is none, it cannot be read, or the hub cannot be reached.
    """
    if data is not None:
        path = Path(data).expanduser()
        found = path if path.is_file() else _in_folder(path, name, alone=True)
        if found is None:
            raise _nothing_there(path, name)
        return read_table(found), found.stem
    found = _in_folder(Path(config.data_dir).expanduser(), name, alone=False) if config.data_dir else None
    if found is not None:
        return read_table(found), found.stem
    return _from_hub(name, hub), hub.split


def _in_folder(folder: Path, name: str, *, alone: bool) -> Path | None:
    """``alone``: a file without the benchmark's name above it will do."""
    names = dict.fromkeys((name, name.replace("-", "_")))
    places = [folder / one for one in names] + ([folder] if alone or folder.name in names else [])
    files = (place / f"{_SPLIT}{suffix}" for place in places for suffix in SUFFIXES)
    return next((path for path in files if path.is_file()), None)


def _nothing_there(path: Path, name: str) -> UsageError:
    if not path.exists():
        return UsageError(f"--data: {path} does not exist")
    inside = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    return UsageError(
        f"--data: {path} holds neither {_SPLIT}.parquet nor {name}/{_SPLIT}.parquet (or .jsonl, .csv); it holds: "
        f"{', '.join(inside[:12]) or 'nothing'}.{nearest(name, inside)}"
    )


def _from_hub(name: str, hub: HubSet) -> Table:
    import datasets

    offline = unreachable()
    try:
        if offline:
            raise ConnectionError(offline)
        rows: Any = datasets.load_dataset(hub.path, hub.config, split=hub.split)
    except Exception as error:  # the library raises a different type for each layer that can fail
        cause = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--data: {name} cannot be loaded from the hub set {hub.path!r} ({cause}); give a Parquet or JSONL file, "
            f"or a folder with {name}/{_SPLIT}.parquet"
        ) from error
    return Table(f"{hub.path} {hub.split}", rows[:], f"hub:{hub.path}/{hub.config or 'default'}@main")
