"""How the runs of a store stand, read fast enough to be looked at while ten thousand of them are there."""

from __future__ import annotations

import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from landscape.errors import StoreError
from landscape.store import Run, Store
from landscape.store.attempts import METRICS_FILE
from landscape.store.files import MOST_TEXT, open_plain
from landscape.store.lines import is_intact
from landscape.store.runs import STATUS_FILE, State
from landscape.sweeps.status_index import FEWEST, StatusIndex, stamp_of

STATES = frozenset(get_args(State))
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_TAIL_BYTES = 1 << 16
_RATE_LINES = 50
_CLOSED = ("done", "diverged", "failed", "damaged")
_NEEDED = ("state", "step", "max_steps", "attempt", "updated")


@dataclass(frozen=True)
class RunLine:
    """What the status of one run says.

    Attributes:
        state: as in the status, but ``interrupted`` where it says running and its process is known to be gone;
            ``damaged`` where it cannot be read.
        overrides: config keys in which its attempts depart from its config.
    """

    run: Run
    state: str
    step: int = 0
    max_steps: int = 0
    attempt: int = 0
    updated: str = ""
    error: str | None = None
    overrides: Mapping[str, Any] | None = None

    @property
    def steps_left(self) -> int:
        """Optimizer steps still to be taken; none of a run that has ended."""
        return 0 if self.state in _CLOSED else max(0, self.max_steps - self.step)


def read_lines(runs: Iterable[Run]) -> list[RunLine]:
    """One line a run of a store, in their order."""
    listed = list(runs)
    index = StatusIndex(listed[0].root) if len(listed) >= FEWEST else None
    lines = [_read_line(run, index) for run in listed]
    if index is not None:
        index.save()
    return lines


def _read_line(run: Run, index: StatusIndex | None) -> RunLine:
    try:
        line = _glance(run, index)
        if line is not None and line.state != "running":
            return line
        status = run.status
        state = status.state
        if state == "running" and not _may_be_running(run):
            state = "interrupted"
    except StoreError as error:
        return RunLine(run, "damaged", error=str(error))
    return RunLine(
        run, state, status.step, status.max_steps, status.attempt, status.updated, status.error, status.overrides
    )


def _glance(run: Run, index: StatusIndex | None) -> RunLine | None:
    """The status as its file says, a fifth of the time of `Run.status`; None where only that can tell what is wrong.

    Neither its checksum nor the folder of attempts is looked at: a process that has lost its lease could show here, for
    the seconds until its successor's next word.
    """
    path = f"{run.path}/{STATUS_FILE}"
    try:
        if index is not None:
            stamp = stamp_of(os.lstat(path))
            if (known := index.get(run.id, stamp)) is not None and _is_status(*known):
                return RunLine(run, *known)
        descriptor = os.open(path, _FLAGS)
        try:
            held = os.fstat(descriptor)
            if not stat.S_ISREG(held.st_mode) or held.st_size > MOST_TEXT:
                return None
            values = json.loads(os.read(descriptor, held.st_size))
        finally:
            os.close(descriptor)
        fields = [values[key] for key in _NEEDED] + [values.get("error"), values.get("overrides")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not _is_status(*fields):
        return None
    if index is not None and fields[0] != "running":
        index.put(run.id, stamp_of(held), fields)
    return RunLine(run, *fields)


def _is_status(state: Any, step: Any, max_steps: Any, attempt: Any, updated: Any, error: Any, overrides: Any) -> bool:
    """Whether the fields of a `RunLine` are what they should be."""
    whole = all(isinstance(number, int) and 0 <= number < 1 << 62 for number in (step, max_steps, attempt))
    words = isinstance(updated, str) and (error is None or isinstance(error, str))
    named = isinstance(state, str) and state in STATES
    return whole and words and named and (overrides is None or isinstance(overrides, dict))


def _may_be_running(run: Run) -> bool:
    """A run without any lease may be somebody else's trainer's, which takes none."""
    claim = run.last_claim
    return claim is None or claim.is_open


@dataclass(frozen=True)
class Overview:
    """All runs together.

    Attributes:
        counts: runs by state.
        steps: taken, of `max_steps` wanted; of a run that has ended only those that it took count.
        rate: optimizer steps a second of all that run now; None: not known.
    """

    counts: dict[str, int]
    steps: int
    max_steps: int
    steps_left: int
    rate: float | None

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None where nothing runs."""
        return self.steps_left / self.rate if self.rate else None


def summarize(lines: Sequence[RunLine], rate: float | None) -> Overview:
    """Counts and sums."""
    counts = dict(sorted(Counter(line.state for line in lines).items()))
    left = sum(line.steps_left for line in lines)
    steps = sum(line.step for line in lines)
    return Overview(counts, steps, steps + left, left, rate)


def last_errors(lines: Sequence[RunLine], count: int) -> list[RunLine]:
    """The newest failures, newest first."""
    failed = [line for line in lines if line.state in ("failed", "damaged") and line.error]
    return sorted(failed, key=lambda line: line.updated, reverse=True)[:count]


class RateMeter:
    """Steps a second: at the first look what the runs under way say of their own last steps, then what is seen."""

    def __init__(self) -> None:
        self._seen: tuple[float, dict[str, int]] | None = None

    def measure(self, lines: Sequence[RunLine]) -> float | None:
        """Of all runs together; None where none is under way."""
        now, steps = time.monotonic(), {line.run.id: line.step for line in lines}
        before, self._seen = self._seen, (now, steps)
        running = [line for line in lines if line.state == "running"]
        if before is not None and now - before[0] >= 1:
            taken = sum(max(0, step - before[1].get(run_id, step)) for run_id, step in steps.items())
            if taken:
                return taken / (now - before[0])
        rates = [rate for line in running if (rate := _own_rate(line)) is not None]
        return sum(rates) if rates else None


def _own_rate(line: RunLine) -> float | None:
    try:
        records = tail_of_metrics(line)[-_RATE_LINES:]
    except StoreError:  # its row says so
        return None
    seconds = [record["seconds"] for record in records if isinstance(record.get("seconds"), (int, float))]
    return len(seconds) / sum(seconds) if sum(seconds) > 0 else None


def last_loss(line: RunLine) -> float | None:
    """The last finite loss at the unperturbed weights, or of what was differentiated where that was not measured.

    Raises:
        StoreError: as `tail_of_metrics`.
    """
    records = tail_of_metrics(line)
    for column in ("loss_clean", "loss_perturbed"):
        for record in reversed(records):
            value = record.get(column)  # nan and infinities are words in the file
            if isinstance(value, (int, float)) and abs(value) < 1e300:
                return float(value)
    return None


def tail_of_metrics(line: RunLine) -> list[dict[str, Any]]:
    """The newest step records, in their order, from the end of the file alone; evaluations are left out.

    Raises:
        StoreError: a complete line is damaged, or the attempt is missing.
    """
    if not line.attempt:
        return []
    path = line.run.attempt_dir() / METRICS_FILE
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES)
            file.seek(start)
            data = file.read()
    except OSError:
        return []
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
    records = []
    for text in lines[1:] if start else lines:  # the first may be half a one
        if not is_intact(text):
            raise StoreError(f"{path} is damaged (landscape verify says where)")
        record = json.loads(text)
        if record.get("split") is None:
            records.append(record)
    return records


def overview_of(store: Store) -> tuple[list[RunLine], Overview]:
    """Every run of a store, and all together."""
    lines = read_lines(store.runs())
    return lines, summarize(lines, RateMeter().measure(lines))
