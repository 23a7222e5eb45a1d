"""Which runs and which of their snapshots a command works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.config.where import Where
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.store import Run


def select_runs(store: Path, where: str | None) -> list[Run]:
    """The runs of a store that an expression means; all without one, also those whose files are damaged.

    Raises:
        UsageError: a bad expression (found before the store is opened), or no run that matches.
        StoreError: no store there.
    """
    from landscape.store import Store

    expression = Where.parse(where) if where is not None else None
    runs = Store.open(store).runs()
    if expression is None:
        return runs
    chosen = [run for run in runs if (values := run_values(run)) and expression.matches(values)]
    if not chosen:
        raise UsageError(f"--where {where!r}: none of the {len(runs)} runs in {store} matches")
    return chosen


def run_values(run: Run) -> dict[str, Any] | None:
    """Config and status keys together, as `Where` reads them; None where a file is damaged."""
    try:
        config, status = run.config, run.status
    except StoreError:
        return None
    return {**config.model_dump(), "id": run.id, "state": status.state, "step": status.step}


def choose_steps(available: Sequence[int], every: int | None, wanted: Sequence[int] | None, default: int) -> list[int]:
    """Snapshot steps to analyze.

    Args:
        available: steps that have a snapshot, ascending.
        every: multiples of this, and the last one.
        wanted: exactly these; the nearest snapshot's step where one is missing is not taken, it is an error.
        default: how many, spread evenly from first to last, when neither is given.

    Raises:
        UsageError: a wanted step without a snapshot, or both ways at once.
    """
    if every is not None and wanted is not None:
        raise UsageError("--every and --steps are two ways to say the same; give one")
    from landscape.sweeps.analyses import spread

    steps = [int(step) for step in available]
    if wanted is not None:
        for step in wanted:
            if step not in steps:
                near = min(steps, key=lambda other: abs(other - step)) if steps else None
                raise UsageError(f"--steps: no snapshot at step {step}; the nearest is {near}")
        return sorted(set(wanted))
    if every is not None:
        return [step for step in steps if step % every == 0 or step == steps[-1]]
    return spread(steps, default)
