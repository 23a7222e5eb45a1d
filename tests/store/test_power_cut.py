"""Any prefix of any file, and any flipped byte: a store then reads as what was written, or says what is damaged.

A run's files are changed one at a time, and everything of the run is read. What is read must be what was written, or
the beginning of it where a file is cut; or else the reader says which file, and which line or step of it, is damaged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landscape.errors import StoreError
from landscape.store import Run, Store
from landscape.store.arrays import read_arrays, read_order
from landscape.store.slices import read_slice
from landscape.store.tables import read_table
from landscape.store.verify import verify
from tests.store.full_runs import add, contents, fill_shared

APPENDED = ("metrics.jsonl", ".bin", ".idx")
"""Files that grow: a prefix of them is a shorter run. All others are replaced as a whole."""
QUICK, LONG = 300, 10_000


@pytest.fixture(scope="module", params=["done", "interrupted"])
def original(request, tmp_path_factory) -> Path:
    store = Store.create(tmp_path_factory.mktemp("original") / "store")
    run = add(store, state=request.param, steps=6)
    fill_shared(store, run)
    return store.path


def readings(store: Store, run_id: str) -> dict[str, Callable[[], Any]]:
    """Everything that a store hands out of a run, by the file that it lies in most of all."""
    run = Run(store.path / "runs" / run_id, store.path)
    parts: dict[str, Callable[[], Any]] = {
        "open": lambda: Store.open(store.path).path.name,
        "runs": lambda: [item.id for item in store.runs()],
        "config": lambda: str(run.config.to_yaml()),
        "digests": lambda: run.digests,
        "status": lambda: dict(run.status.model_dump()),
        "metrics": run.metrics,
        "evaluations": run.evaluations,
        "base": lambda: {name: value.tolist() for name, value in run.snapshots().base_tensors().items()},
        "sharpness": lambda: read_table(run.analysis_dir / "sharpness.parquet").to_pydict(),
        "slice": lambda: plain(read_slice(run.analysis_dir / "slice1d-x.npz")),
        "joint": lambda: plain(read_slice(store.path / "analysis" / "slice1d-joint.npz")),
        "order": lambda: read_order(store.orders_dir / "n8-seed0.npy").tolist(),
        "base_loss": lambda: plain(read_arrays(store.base_loss_dir / "abc.npz")),
    }
    for stream in ("params", "adam_v"):
        parts[stream] = lambda stream=stream: run.snapshots(stream).steps.tolist()
        for step in range(7):
            parts[f"{stream} {step}"] = lambda stream=stream, step=step: plain(run.snapshots(stream).tensors(step))
    return parts


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: repr(item.tolist()) for name, item in value.items()}
    return repr({name: item.tolist() if isinstance(item, np.ndarray) else item for name, item in vars(value).items()})


def outcome(read: Callable[[], Any]) -> Any:
    """What was read, or the error that a user sees; anything else is a failure of the test."""
    try:
        return read()
    except StoreError as error:
        return error


def is_right(found: Any, expected: Any, cut: bool) -> bool:
    """Whether what was read is what was written, or, of a file that was cut, its beginning."""
    if isinstance(expected, pd.DataFrame):
        if len(found) == len(expected) or not cut:
            return found.equals(expected)
        shown = expected.head(len(found)).reset_index(drop=True)
        return all(found[name].equals(shown[name]) for name in shown if name in found and found[name].notna().any())
    if isinstance(expected, list) and cut:
        return found == expected[: len(found)]
    return found == expected


def check(store: Store, run_id: str, expected: dict[str, Any], changed: Path, cut: bool) -> int:
    """Read everything; returns how many readings failed, each with a message that names the file that was changed."""
    failures = 0
    name = changed.relative_to(store.path).as_posix()
    grows = cut and name.endswith(APPENDED)
    for part, read in readings(store, run_id).items():
        found = outcome(read)
        if not isinstance(found, StoreError):
            assert is_right(found, expected[part], grows), f"{name}: {part} reads {found!r}, not {expected[part]!r}"
            continue
        failures += 1
        message = str(found)
        near = changed.with_suffix(".bin").name if grows else changed.name
        run_named = run_id in message and changed.name in ("status.json", "config.yaml")
        assert changed.name in message or near in message or run_named, f"{name}: {part}: {message}"
        if changed.name in ("metrics.jsonl", "snapshots-params.idx", "snapshots-adam_v.idx"):
            assert grows or ", line " in message or "step" in message, message
    return failures


def cases(files: dict[str, bytes], count: int, seed: int) -> list[tuple[str, int, int | None]]:
    """Name, place, and the mask of a flipped byte or None for a cut there; small files as often as large ones."""
    random = np.random.default_rng(seed)
    names = sorted(name for name, content in files.items() if content)
    chosen = []
    for _ in range(count):
        name = names[random.integers(len(names))]
        place = int(random.integers(len(files[name])))
        chosen.append((name, place, None if random.random() < 0.4 else int(random.integers(1, 256))))
    return chosen


def fuzz(original: Path, folder: Path, count: int, seed: int) -> None:
    shutil.copytree(original, folder)
    store = Store(folder)
    files = contents(folder)
    (run,) = store.runs()
    expected = {part: outcome(read) for part, read in readings(store, run.id).items()}
    assert not any(isinstance(value, StoreError) for value in expected.values())
    silent = 0
    for name, place, mask in cases(files, count, seed):
        path, content = folder / name, bytearray(files[name])
        if mask is None:
            del content[place:]
        else:
            content[place] ^= mask
        path.write_bytes(content)
        failures = check(store, run.id, expected, path, mask is None)
        verdict = verify(store) if name != "store.json" else None
        if verdict is not None and not failures and not name.endswith("attempt.json"):
            silent += not verdict.findings
        path.write_bytes(files[name])
    assert contents(folder) == files, "reading changes nothing"
    assert silent < count / 10, "nearly every change is noticed by verify: the rest is white space and comments"


def test_a_few_hundred_changes(original, tmp_path):
    fuzz(original, tmp_path / "store", QUICK // 2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(5))
def test_ten_thousand_changes(original, tmp_path, part):
    fuzz(original, tmp_path / "store", LONG // 10, seed=1 + part)


@pytest.mark.parametrize("name", ["metrics.jsonl", "snapshots-params.bin", "snapshots-params.idx"])
def test_a_cut_run_is_mended_and_continued(original, tmp_path, name):
    """Every tenth prefix: verify mends it, nothing but the end is lost, and a new attempt goes on from there."""
    files = contents(original)
    key = next(key for key in files if key.endswith(name))
    for size in range(0, len(files[key]), max(len(files[key]) // 10, 1)):
        folder = tmp_path / str(size)
        shutil.copytree(original, folder)
        (folder / key).write_bytes(files[key][:size])
        store = Store(folder)
        found = verify(store, repair=True)
        assert found.is_sound, [str(item) for item in found.findings]
        assert verify(store).is_sound
        (run,) = store.runs()
        steps = run.snapshots().steps.tolist()
        assert steps == list(range(len(steps)))
        with run.begin_attempt(1 if len(steps) > 1 else 0) as attempt:
            known = run.metrics()["step"].tolist()
            attempt.log({"step": (known[-1] if known else 0) + 1, "loss_clean": 1.0})
        assert verify(store).counts.keys() <= {"stale"}
