"""Dropping snapshots that are not needed any more. Killed at any moment, a run has all of them or those to be kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

from landscape.store.atomic import read_json, sync_directory, write_error, write_json
from landscape.store.attempts import ATTEMPT_FILE
from landscape.store.copying import copy_attempt
from landscape.store.keeping import Policy, folder_bytes
from landscape.store.runs import PARQUET_FILE, Run


@dataclass(frozen=True)
class Pruning:
    """What pruning a run does, or did.

    Attributes:
        steps: snapshots that it has, by stream; ``kept``: those that stay.
        freed_bytes: of snapshots, of the checkpoint where it goes, and of superseded attempts.
        skipped: why nothing is done; null where something is.
    """

    run_id: str
    steps: dict[str, int]
    kept: dict[str, list[int]]
    freed_bytes: int
    checkpoint_bytes: int
    old_attempts_bytes: int
    skipped: str | None = None


def plan_pruning(run: Run, policy: Policy, *, keep_checkpoint: bool = True) -> Pruning:
    """What `prune` would do.

    Raises:
        StoreError: the run is damaged.
    """
    status = run.status
    nothing = Pruning(run.id, {}, {}, 0, 0, 0)
    if run.is_leased or status.is_held or status.state == "running":
        return _skipping(nothing, "it is running")
    if not status.attempt:
        return _skipping(nothing, "it was never started")
    held = {stream: run.snapshots(stream) for stream in run.streams()}
    steps = {stream: reader.steps.tolist() for stream, reader in held.items()}
    kept = {stream: policy.keeps(run, found) for stream, found in steps.items()}
    dropped = sum(
        (len(steps[stream]) - len(kept[stream])) * reader.layout.record_bytes for stream, reader in held.items()
    )
    checkpoint = 0 if keep_checkpoint else folder_bytes(run.checkpoint_dir)
    attempts = run.path / "attempts"
    old = sum(folder_bytes(path) for path in attempts.iterdir() if path.name != str(status.attempt))
    counts = {stream: len(found) for stream, found in steps.items()}
    result = Pruning(run.id, counts, kept, dropped + checkpoint + old, checkpoint, old)
    return result if result.freed_bytes else _skipping(result, "there is nothing to drop")


def prune(run: Run, policy: Policy, *, keep_checkpoint: bool = True) -> Pruning:
    """Drop the snapshots that the policy does not keep, and what superseded attempts left.

    What stays is copied to a new attempt, each record compared with its checksum; the run's status then names it, in
    one atomic replacement, and the old attempt is removed. Without a checkpoint a run can no longer be lengthened.

    Raises:
        LeaseHeldError: somebody is at work on the run.
        StoreError: a snapshot to be kept is damaged, or the disk is full; the run is then as it was.
    """
    plan = plan_pruning(run, policy, keep_checkpoint=keep_checkpoint)
    if plan.skipped is not None:
        return plan
    with run.claim() as lease:
        mine, status = run.under(lease), run.status
        attempts = run.path / "attempts"
        target = attempts / str(lease.number)
        try:
            copy_attempt(run, run.attempt_dir(), target, steps=plan.kept, checkpoint=keep_checkpoint, link=True)
            sync_directory(attempts)
            mine.set_status(state=status.state, attempt=lease.number, finished=status.finished)
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise write_error(target, error) from error
        except BaseException:
            if run.status.attempt != lease.number:
                shutil.rmtree(target, ignore_errors=True)
            raise
        origin = {"resumed_from": status.attempt, "resume_step": status.step, "pruned": True}
        write_json(target / ATTEMPT_FILE, {**_before(run, status.attempt), **origin})
        if (run.path / PARQUET_FILE).exists():
            mine.compact()
        if not keep_checkpoint:
            shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
        run.remove_old_attempts()
    return plan


def _before(run: Run, attempt: int) -> dict[str, object]:
    """What the pruned attempt said of itself: the overrides that it was trained with stay true."""
    path = run.path / "attempts" / str(attempt) / ATTEMPT_FILE
    return dict(read_json(path)) if path.is_file() else {}


def _skipping(plan: Pruning, reason: str) -> Pruning:
    return replace(plan, freed_bytes=0, skipped=reason)
