"""Which snapshots of a finished run to keep: policies such as ``every:10,last`` or ``events:20``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import StoreError, UsageError, nearest
from landscape.store.attempts import METRICS_FILE
from landscape.store.capture import log_spaced
from landscape.store.metrics import read_records
from landscape.store.tables import read_table

if TYPE_CHECKING:
    from landscape.store.runs import Run

EVENT_KEY = "episode_warning"
"""Of the metric line in which training saw that the loss had begun to rise: the step since when."""

_DEFAULTS = {"every": 10, "log": 100, "events": 50, "first": None, "last": None, "all": None, "none": None}


@dataclass(frozen=True)
class Policy:
    """Rules of which each keeps some steps, and together all that any of them keeps.

    ========== =====================================================================
    every:N    multiples of N (10), the first and the last
    log:N      N (100) steps, evenly spaced in the logarithm, the first and the last
    events:N   N (50) snapshots before and after each rebound, the first and the last
    first      the first alone
    last       the last alone
    all, none  every one, or none
    ========== =====================================================================
    """

    rules: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> Policy:
        """A policy from its spelling; `UsageError` names the nearest rule."""
        rules = []
        for item in (part.strip() for part in text.split(",") if part.strip()):
            name, _, number = item.partition(":")
            if name not in _DEFAULTS:
                allowed = ", ".join(_DEFAULTS)
                raise UsageError(f"--policy: {name!r} is not known; allowed: {allowed}.{nearest(name, _DEFAULTS)}")
            default = _DEFAULTS[name]
            if number and (default is None or not number.isdecimal() or not 0 < int(number) < 10**9):
                raise UsageError(f"--policy: {item!r}: write {name}{'' if default is None else f':{default}'}")
            rules.append((name, int(number) if number else default or 0))
        if not rules:
            raise UsageError("--policy: nothing given; write for example every:10,last")
        return cls(tuple(rules))

    def keeps(self, run: Run, steps: Sequence[int]) -> list[int]:
        """Those of the steps, ascending, that the policy keeps.

        Raises:
            StoreError: with ``events``, the run's metrics or its episodes are damaged.
        """
        kept: set[int] = set()
        for name, number in self.rules if steps else ():
            kept.update(self._rule(run, steps, name, number))
        return sorted(kept)

    def _rule(self, run: Run, steps: Sequence[int], name: str, number: int) -> Iterable[int]:
        ends = (steps[0], steps[-1])
        if name == "every":
            return [*ends, *(step for step in steps if step % number == 0)]
        if name == "log":
            return [*ends, *(_nearest(steps, wanted) for wanted in log_spaced(steps[-1], number))]
        if name == "events":
            return [*ends, *(step for event in event_steps(run) for step in _around(steps, event, number))]
        return {"first": ends[:1], "last": ends[1:], "all": steps, "none": ()}[name]


def event_steps(run: Run) -> list[int]:
    """Steps at which something happened: warnings of training, and onset, peak and recovery of detected episodes.

    Raises:
        StoreError: the metrics or the table of episodes are damaged.
    """
    found: set[int] = set()
    for record in read_records(run.attempt_dir() / METRICS_FILE).records:
        if EVENT_KEY in record:
            since = record[EVENT_KEY]
            found.update({record["step"], since if isinstance(since, int) else record["step"]})
    table = read_table(run.analysis_dir / "episodes.parquet")
    for row in table.to_pylist() if table is not None else ():
        found.update(int(row[key]) for key in ("onset", "peak", "recovery") if isinstance(row.get(key), int | float))
    return sorted(found)


def _nearest(steps: Sequence[int], wanted: int) -> int:
    return min(steps, key=lambda step: (abs(step - wanted), step))


def _around(steps: Sequence[int], event: int, number: int) -> list[int]:
    before = [step for step in steps if step < event]
    return [*before[-number:], *[step for step in steps if step >= event][:number]]


def folder_bytes(path: Path) -> int:
    """Of the plain files below a folder; 0 where there is none."""
    try:
        return sum(item.lstat().st_size for item in path.rglob("*") if item.is_file() and not item.is_symlink())
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
