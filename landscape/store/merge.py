"""Several stores into one: each run once, the better of two copies, and a word on every contradiction."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from landscape.errors import StoreError, UsageError
from landscape.store.atomic import sync_directory, write_error
from landscape.store.attempts import METRICS_FILE
from landscape.store.copying import copy_run
from landscape.store.metrics import read_records
from landscape.store.pack import copy_shared, is_write_error
from landscape.store.runs import Run, RunStatus
from landscape.store.store import Store

Action = Literal["copied", "replaced", "kept", "identical", "left out"]


@dataclass(frozen=True)
class MergedRun:
    """What became of one run of one source; ``remark`` says in what two copies differ, or why it was left out."""

    run_id: str
    source: Path
    action: Action
    remark: str = ""


@dataclass(frozen=True)
class Merging:
    """What a merge did; ``conflicts`` are remarks on runs, and on what runs share."""

    path: Path
    runs: tuple[MergedRun, ...]
    shared: tuple[str, ...] = ()

    @property
    def conflicts(self) -> list[str]:
        """One line each."""
        return [f"{item.run_id} of {item.source}: {item.remark}" for item in self.runs if item.remark] + [*self.shared]


@dataclass
class _Copy:
    """One copy of a run, as far as it is compared."""

    run: Run
    status: RunStatus
    digests: dict[str, str]
    records: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[str, dict[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> _Copy:
        _ = run.config
        copy = cls(run, run.status, run.digests)
        if copy.status.attempt:
            lines = read_records(run.attempt_dir() / METRICS_FILE).records
            copy.records = [{key: item for key, item in line.items() if key != "seconds"} for line in lines]
            readers = {stream: run.snapshots(stream) for stream in run.streams()}
            copy.snapshots = {
                stream: {step: reader.checksum(step) for step in reader.steps.tolist()}
                for stream, reader in readers.items()
            }
        return copy

    @property
    def rank(self) -> tuple[Any, ...]:
        """Greater is better: finished, further, with more snapshots, and then the one that changed last."""
        status = self.status
        finished = status.state in ("done", "diverged")
        snapshots = sum(map(len, self.snapshots.values()))
        return finished, status.step, len(self.records), snapshots, status.finished or status.updated


def merge(sources: Sequence[Store], target: Path, *, progress: Callable[[str], object] | None = None) -> Merging:
    """Copy every run of the sources into the store at ``target``, which is made if it is not there.

    Of two copies of a run the finished one stays, of two finished ones the longer, then the one with more snapshots,
    then the newer; analyses that only the other has come with it where both hold the same metrics. Where two copies
    contradict each other at a step that both have, that is said. Killed half-way, the same command goes on.

    Args:
        progress: told the id of each run before it is copied.

    Raises:
        UsageError: a source is the target.
        StoreError: the disk is full or refuses. A damaged run is left out and named.
    """
    for source in sources:
        if source.path.resolve() == target.resolve():
            raise UsageError(f"{target} is one of the stores to merge; name another with --into")
    into = Store.create(target)
    results, shared = [], []
    for source in sources:
        for run in source.runs():
            if progress is not None:
                progress(run.id)
            results.append(_merge_run(run, into, source.path))
        shared += copy_shared(source, into, {run.id for run in into.runs()})
    return Merging(target, tuple(results), tuple(shared))


def _merge_run(run: Run, into: Store, source: Path) -> MergedRun:
    try:
        return _compared(run, into, source)
    except StoreError as error:
        if is_write_error(error):
            raise
        return MergedRun(run.id, source, "left out", str(error))


def _compared(run: Run, into: Store, source: Path) -> MergedRun:
    path = into.run_path(run.id)
    new = _Copy.of(run)
    old = _Copy.of(Run(path, into.path)) if path.exists() else None
    if old is None:
        copy_run(run, path)
        return MergedRun(run.id, source, "copied")
    if new.digests != old.digests:
        return MergedRun(run.id, source, "left out", f"made from other data or another model than {path} was")
    if old.run.is_leased:
        return MergedRun(run.id, source, "left out", f"{path} is being trained")
    return MergedRun(run.id, source, *_choose(new, old))


def _choose(new: _Copy, old: _Copy) -> tuple[Action, str]:
    """The better of two copies stays; what only the other one measured comes with it where they agree."""
    remark = _contradiction(new, old)
    if not remark and (new.records, new.snapshots, new.status.state) == (old.records, old.snapshots, old.status.state):
        _bring_analyses(new.run, old.run)
        return "identical", ""
    if new.rank > old.rank:
        _replace(new.run, old.run, keep_analyses=not remark)
        return "replaced", remark
    if not remark:
        _bring_analyses(new.run, old.run)
    return "kept", remark


def _contradiction(new: _Copy, old: _Copy) -> str:
    """In what two copies differ at steps that both have; empty where one goes on from the other."""
    mine = {(line["step"], line.get("split")): line for line in new.records}
    yours = {(line["step"], line.get("split")): line for line in old.records}
    differing = sorted(key[0] for key in mine.keys() & yours.keys() if not _same(mine[key], yours[key]))
    words = []
    if differing:
        words.append(f"metrics differ from step {differing[0]} on ({len(differing)} lines)")
    for stream in sorted(new.snapshots.keys() & old.snapshots.keys()):
        a, b = new.snapshots[stream], old.snapshots[stream]
        if steps := sorted(step for step in a.keys() & b.keys() if a[step] != b[step]):
            words.append(f"snapshots {stream} differ from step {steps[0]} on ({len(steps)} records)")
    if not words:
        return ""
    before, after = old.status.environment, new.status.environment
    changed = [
        f"{key} {before.get(key)} and {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    return "; ".join(words) + (f"; they were made with {', '.join(changed)}" if changed else "")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """NaN is written as a word, so that equal lines are equal."""
    return all(one.get(key) == other.get(key) for key in one.keys() & other.keys())


def _bring_analyses(source: Run, target: Run) -> None:
    """Results that the target does not have."""
    folder = source.path / "analysis"
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        there = target.analysis_dir / path.name
        if path.name.startswith((".", "partial-")) or path.is_symlink() or not path.is_file() or there.exists():
            continue
        there.parent.mkdir(exist_ok=True)
        temporary = there.with_name(f".tmp-{secrets.token_hex(4)}-{there.name}")
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, there)
        except OSError as error:
            raise write_error(there, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def _replace(run: Run, old: Run, keep_analyses: bool) -> None:
    """The better copy in place of the other. Killed between the two renames the run is missing until the next merge."""
    aside = old.path.with_name(f".replaced-{old.id}-{secrets.token_hex(4)}")
    fresh = old.path.with_name(f".merged-{old.id}-{secrets.token_hex(4)}")
    try:
        copy_run(run, fresh)
        if keep_analyses:
            _bring_analyses(old, Run(fresh, old.root))
        os.replace(old.path, aside)
        os.replace(fresh, old.path)
        sync_directory(old.path.parent)
    except OSError as error:
        raise write_error(old.path, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.path.exists():
            shutil.rmtree(aside, ignore_errors=True)
