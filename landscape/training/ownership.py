"""A run belongs to one process at a time: how it is claimed, and what its owner does when memory runs out."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.store import Attempt, Lease, LeaseHeldError, LeaseWatch, Run
from landscape.store.attempts import CHECKPOINT_FOLDER
from landscape.store.leases import MOST_DEATHS, Mark
from landscape.training.checkpoint import latest_checkpoint
from landscape.training.processes import world

_POLL_SECONDS = 1.0
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextlib.contextmanager
def owned(run: Run, expired: Mark | None = None) -> Iterator[Run]:
    """The run under a lease of this process; of several processes of one run the first holds it.

    Raises:
        LeaseHeldError: another process is at work on it.
        StoreError: processes died at it again and again without getting any further; it is marked as failed.
    """
    if not world().is_main_process:
        yield run
        return
    with _claim(run, expired) as lease:
        mine = run.under(lease)
        if lease.deaths >= MOST_DEATHS:
            reason = f"its process died {lease.deaths} times in a row at step {lease.step} (out of memory?)"
            mine.set_status(state="failed", error=reason)
            raise StoreError(f"run {run.id}: {reason}")
        yield mine


def _claim(run: Run, expired: Mark | None) -> Lease:
    """At once, or once the lease of another machine's process is seen to expire; one that lives shows it soon."""
    checkpoint = latest_checkpoint(run.checkpoint_dir)
    step = checkpoint[1] if checkpoint else 0
    try:
        return run.claim(expired=expired, step=step)
    except LeaseHeldError:
        claim = run.last_claim
        if claim is None or claim.is_here:
            raise
    watch = LeaseWatch()
    first = watch.look(run.path)[1]
    while True:
        time.sleep(_POLL_SECONDS)
        free, mark = watch.look(run.path)
        if free or mark != first:  # somebody lives, or was faster: then this raises
            return run.claim(expired=mark if free else None, step=step)


def begin(run: Run, *, resume: bool, overrides: dict[str, Any]) -> tuple[Attempt, Path | None]:
    """A new attempt from the newest checkpoint, and where that checkpoint lies in it; from nothing unless resumed."""
    tries = 3  # a superseded process may still be replacing its checkpoints
    while True:
        tries -= 1
        checkpoint, step = (latest_checkpoint(run.checkpoint_dir) if resume else None) or (None, 0)
        try:
            attempt = run.begin_attempt(step, checkpoint=checkpoint, overrides=overrides)
        except StoreError:
            if checkpoint is None or checkpoint.is_dir() or not tries:
                raise
            continue
        return attempt, checkpoint and attempt.path / CHECKPOINT_FOLDER / checkpoint.name


def halved(config: RunConfig, error: BaseException) -> dict[str, int] | None:
    """What to change after this error: half the micro-batch, twice the accumulation, so the same effective batch.

    None where it would not help: another error, a micro-batch that has no half, or several processes, of which the
    others would wait for this one.
    """
    batch = config.per_device_train_batch_size
    if not is_out_of_memory(error) or batch % 2 or world().num_processes > 1:
        return None
    return {
        "per_device_train_batch_size": batch // 2,
        "gradient_accumulation_steps": 2 * config.gradient_accumulation_steps,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left for an allocation."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def release_memory() -> None:
    """Give back what an attempt that failed has left, once nothing refers to its model any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
