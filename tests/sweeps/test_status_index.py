"""The index of statuses changes how long a look takes, and never what is seen."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from landscape.config import RunConfig
from landscape.store import Store
from landscape.store.atomic import read_json, write_checked_json
from landscape.sweeps import overview, status_index
from landscape.sweeps.overview import read_lines

STATES = ("done", "failed", "queued", "diverged", "interrupted", "running")


@pytest.fixture(autouse=True)
def _small_stores_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "FEWEST", 2)
    monkeypatch.setattr(status_index, "FEWEST", 2)
    monkeypatch.setattr(status_index, "LATE_SECONDS", -1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "store")
    for number in range(12):
        run = store.add(RunConfig.parse({"alpha": 8, "max_steps": 20, "seed": number}), f"run-{number:02}", {})
        state = STATES[number % 6]
        run.set_status(state=state, step=number, error="no luck" if state == "failed" else None)
    return store


def looked(store: Store) -> list[tuple]:
    return [(line.run.id, line.state, line.step, line.updated, line.error) for line in read_lines(store.runs())]


def truth(store: Store) -> list[tuple]:
    rows = []
    for run in store.runs():
        status = run.status
        rows.append((run.id, status.state, status.step, status.updated, status.error))
    return rows


def index(store: Store) -> Path:
    return store.path / ".cache" / "status.json"


def test_the_second_look_reads_no_status(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = looked(store)
    assert first == truth(store)
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *args: opened.append(str(path)) or real(path, *args))
    assert looked(store) == first
    read = {Path(path).parent.name for path in opened if path.endswith("status.json")} - {".cache"}
    assert read == {"run-05", "run-11"}, "those that run are looked at each time"


def test_whatever_changes_is_seen(store: Store) -> None:
    draw = random.Random(0)
    for step in range(40):
        run = draw.choice(store.runs())
        match draw.randrange(4):
            case 0:
                run.set_status(state=draw.choice(STATES), step=step)
            case 1:  # in place, by an editor
                path = run.path / "status.json"
                values = {**read_json(path), "step": step}
                path.write_text(json.dumps(values))
            case 2:  # another run's file in its place, with its times
                other = draw.choice(store.runs())
                shutil.copy2(other.path / "status.json", run.path / "status.json")
            case 3:
                shutil.rmtree(run.path) if len(store.runs()) > 4 else None
        assert looked(store) == truth(store)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"done", b"lost", 1)),
    "no json": lambda path: path.write_bytes(b"0\n"),
    "other": lambda path: path.write_bytes(sealed(b'{"version": 1, "runs": {"run-00": 5, "run-01": [[1], []]}}')),
    "list": lambda path: path.write_bytes(sealed(b'{"version": 1, "runs": [1, 2]}')),
    "version": lambda path: path.write_bytes(sealed(b'{"version": 2, "runs": {}}')),
    "deep": lambda path: path.write_bytes(sealed(b"[" * 100_000)),
    "kinds": lambda path: path.write_bytes(sealed(path.read_bytes().partition(b"\n")[2].replace(b'"done"', b"[1]"))),
    "fields": lambda path: path.write_bytes(sealed(path.read_bytes().partition(b"\n")[2].replace(b'"done",', b""))),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "file": lambda path: (shutil.rmtree(path.parent), path.parent.write_text("x")),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


def sealed(body: bytes) -> bytes:
    import zlib

    return b"%d\n%b" % (zlib.crc32(body), body)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_again(store: Store, damage: str) -> None:
    looked(store)
    DAMAGES[damage](index(store))
    assert looked(store) == truth(store)
    assert looked(store) == truth(store)


def test_it_is_not_followed_out_of_the_store(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (store.path / ".cache").symlink_to(elsewhere)
    assert looked(store) == truth(store)
    assert list(elsewhere.iterdir()) == []


def test_an_index_from_elsewhere_says_nothing(store: Store, tmp_path: Path) -> None:
    looked(store)
    moved = tmp_path / "moved"
    shutil.copytree(store.path, moved)
    path = moved / "runs" / "run-00" / "status.json"
    before = path.stat()
    write_checked_json(path, {**read_json(path), "step": 7})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert looked(Store.open(moved)) == truth(Store.open(moved))


def test_a_small_store_has_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "FEWEST", 500)
    looked(store)
    assert not index(store).exists()
