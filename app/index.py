"""What the list of runs shows, read fast: a small file or two a run, each again only when it has changed.

`landscape.store.Run` validates every config. Those that the store wrote itself are complete and plain, so they are only
parsed here; one that looks otherwise goes the careful way.
"""

from __future__ import annotations

import math
import os
import re
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from stat import S_ISLNK
from typing import Any

import yaml

from landscape.config import RunConfig
from landscape.config.where import Where
from landscape.config.yaml_text import load_yaml
from landscape.errors import LandscapeError, StoreError
from landscape.store import Run, Store
from landscape.store.attempts import METRICS_FILE
from landscape.store.config_file import CHECKSUM_MARK
from landscape.store.files import read_plain
from landscape.store.lines import read_lines
from landscape.store.metrics import EVALUATION_COLUMNS, RESERVED_KEYS
from landscape.store.runs import CONFIG_FILE, PARQUET_FILE, STATUS_FILE, RunStatus

TAIL_BYTES = 24_576
"""Of the metrics: some 60 lines, the last evaluation among them at any usual cadence."""

URGENCY = ("damaged", "failed", "running", "interrupted", "queued", "diverged", "done")
"""States in the order in which somebody should look at them."""

_NOT_SCORES = frozenset((*EVALUATION_COLUMNS, *RESERVED_KEYS))
_NUMBERS = ("learning_rate", "rank", "seed", "max_steps")

Stamp = tuple[int, int] | None
"""Time of change and size of a file; None where it is not there."""


@dataclass(frozen=True)
class Tail:
    """The last numbers of a run: training loss, loss on the eval split with its standard error, seconds a step.

    ``scores`` are what the task measures besides the loss on the eval split, such as an accuracy: larger is better.
    """

    step: int = 0
    loss: float | None = None
    eval_step: int | None = None
    eval_loss: float | None = None
    eval_error: float | None = None
    seconds: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRow:
    """One run as the list shows it; a damaged one has a ``problem`` in place of what could not be read."""

    id: str
    config: Mapping[str, Any]
    status: RunStatus | None
    tail: Tail = Tail()
    problem: str | None = None

    @property
    def state(self) -> str:
        """Of the run, or ``damaged``."""
        return "damaged" if self.status is None or self.problem else self.status.state

    @property
    def step(self) -> int:
        """Optimizer steps done: what the status says, or its metrics if they are ahead."""
        return max(self.status.step if self.status else 0, self.tail.step)

    @property
    def max_steps(self) -> int:
        """Optimizer steps asked for."""
        return self.status.max_steps if self.status else 0

    @property
    def progress(self) -> float:
        """Share of its steps that are done, 0 to 1."""
        return min(1.0, self.step / self.max_steps) if self.max_steps else 0.0

    @property
    def seconds(self) -> float | None:
        """Wall time from first start to last stop, or until now."""
        if self.status is None or self.status.started is None:
            return None
        end = self.status.finished or (_now() if self.status.state == "running" else self.status.updated)
        try:
            passed = datetime.fromisoformat(end) - datetime.fromisoformat(self.status.started)
        except (ValueError, TypeError):
            return None
        return max(0.0, passed.total_seconds())

    @property
    def values(self) -> dict[str, Any]:
        """Config and status keys together, as `Where` reads them."""
        return {**self.config, "id": self.id, "state": self.state, "step": self.step}


class RunIndex:
    """The rows of all runs of a store; `rows` looks at file times and reads what is new. For several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._root = store.path.resolve()
        self._known: dict[str, tuple[tuple[Stamp, ...], RunRow]] = {}
        self._lock = threading.Lock()

    def rows(self) -> tuple[RunRow, ...]:
        """Every run, those that need a look first.

        Raises:
            StoreError: the store is gone.
        """
        with self._lock:
            try:
                names = sorted(entry.name for entry in os.scandir(self.store.path / "runs") if entry.is_dir())
            except FileNotFoundError:
                Store.open(self.store.path)  # says what is wrong with it, if anything is
                names = []
            known = {}
            for name in names:
                found = self._row(name)
                if found is not None:
                    known[name] = found
            self._known = known
            return tuple(sorted((row for _, row in known.values()), key=_order))

    def stamps(self, run_id: str) -> tuple[Stamp, ...]:
        """What changes when the run's config, status or metrics do."""
        return _looked_at(_files(str(self.store.path / "runs" / run_id)))[0]

    def _row(self, name: str) -> tuple[tuple[Stamp, ...], RunRow] | None:
        place = f"{self.store.path}/runs/{name}"
        old = self._known.get(name)
        files = _files(place)
        stamps, linked = _looked_at(files)
        if stamps[0] is None or name.startswith("."):
            return None
        if old is not None and old[0] == stamps and not linked and not os.path.islink(place):
            return old
        folder = Path(place)
        if away := next((p for p in (folder, *map(Path, files)) if leads_outside(p, self._root)), None):
            return stamps, RunRow(name, {}, None, problem=f"{away} leads out of the store and is not read")
        if old is not None and old[0] == stamps:
            return old
        run = Run(folder, self.store.path)
        config = old[1].config if old is not None and old[0][0] == stamps[0] and old[1].config else None
        return stamps, _read(run, config)


def filtered(rows: Iterable[RunRow], expression: str | None) -> list[RunRow]:
    """The rows that an expression such as ``rank>=64 and lr==5e-4`` means; all without one.

    Raises:
        UsageError: it cannot be read; names the nearest key.
    """
    if not expression or not expression.strip():
        return list(rows)
    where = Where.parse(expression)
    return [row for row in rows if where.matches(row.values)]


def differing_keys(rows: Sequence[RunRow]) -> list[str]:
    """Config keys that the rows do not all share, in the config's order."""
    keys = dict.fromkeys(key for row in rows for key in row.config)
    return [key for key in keys if len({_spelled(row.config.get(key)) for row in rows}) > 1]


def _spelled(value: Any) -> str:
    return repr(sorted(value.items())) if isinstance(value, dict) else repr(value)


def _order(row: RunRow) -> tuple[int, str]:
    return URGENCY.index(row.state), row.id


def leads_outside(path: Path, root: Path) -> bool:
    """Whether this is a link to something that does not lie below the (resolved) root."""
    try:
        return path.is_symlink() and not path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link that leads in a circle
        return True


def _files(folder: str) -> tuple[str, ...]:
    """Config, status, compacted metrics, and the metrics of the newest attempt.

    Strings, as paths would take longer to make than the files to look at, a thousand runs every few seconds.
    """
    newest = _newest_attempt(f"{folder}/attempts")
    return f"{folder}/{CONFIG_FILE}", f"{folder}/{STATUS_FILE}", f"{folder}/{PARQUET_FILE}", f"{newest}/{METRICS_FILE}"


def _looked_at(files: Iterable[str]) -> tuple[tuple[Stamp, ...], bool]:
    """Time and size of each file, and whether one is a link."""
    stamps: list[Stamp] = []
    linked = False
    for path in files:
        try:
            status = os.lstat(path)
            if S_ISLNK(status.st_mode):
                status, linked = os.stat(path), True
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_size))
    return tuple(stamps), linked


def _newest_attempt(attempts: str) -> str:
    """By number; nearly always the first, which needs no listing."""
    if not os.path.exists(f"{attempts}/2"):
        return f"{attempts}/1"
    numbers = [int(entry.name) for entry in os.scandir(attempts) if entry.name.isdigit()]
    return f"{attempts}/{max(numbers, default=1)}"


def _read(run: Run, config: Mapping[str, Any] | None) -> RunRow:
    problem = None
    if config is None:
        try:
            config = read_config(run)
        except LandscapeError as error:
            config, problem = {}, str(error)
    try:
        status = run.status
    except LandscapeError as error:
        return RunRow(run.id, config, None, problem=problem or str(error))
    row = RunRow(run.id, config, status, problem=problem)
    try:
        return replace(row, tail=read_tail(run, status))
    except (LandscapeError, OSError) as error:
        return replace(row, problem=problem or str(error))


def read_config(run: Run) -> dict[str, Any]:
    """The run's config as plain values.

    Raises:
        StoreError: it is damaged or gone.
    """
    try:
        content = read_plain(run.path / CONFIG_FILE)
        lines, mark, checksum = content.rpartition(CHECKSUM_MARK)
        if mark and checksum.strip() != b"%d" % zlib.crc32(lines):
            return run.config.model_dump(mode="json")  # says what is wrong
        if mark:  # so the store wrote it, one key after the other
            values = {key: value for block in _KEYS.split(lines.decode()) for key, value in _parsed(block)}
        else:
            values = dict(_parsed(content.decode()))
    except (StoreError, ValueError, yaml.YAMLError):
        return run.config.model_dump(mode="json")
    plain = not RunConfig.model_fields.keys() - values.keys()
    if plain and not any(isinstance(values[key], str) for key in _NUMBERS):
        return values
    return run.config.model_dump(mode="json")


_KEYS = re.compile(r"^(?=[a-z_])", re.M)


@lru_cache(maxsize=20_000)
def _parsed(text: str) -> tuple[tuple[str, Any], ...]:
    """Keys and values of some lines; most of a sweep's runs share most of their lines."""
    values = load_yaml(text) if text.strip() else {}
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    return tuple(values.items())


def read_tail(run: Run, status: RunStatus) -> Tail:
    """The last numbers of a run from the end of its metrics, without reading the rest.

    Raises:
        StoreError: a damaged line.
    """
    if not status.attempt:
        return Tail()
    path = run.path / "attempts" / str(status.attempt) / METRICS_FILE
    if not path.is_file():
        return _tail_of_tables(run)
    tail = Tail(step=status.step)
    seconds = []
    for record in read_lines(path, _line_start(path)).records:
        step = record.get("step", 0)
        if record.get("split") == "eval":
            error = _number(record.get("standard_error"))
            tail = replace(
                tail, eval_step=step, eval_loss=_number(record.get("loss")), eval_error=error, scores=_scores(record)
            )
        elif "split" not in record:
            clean, perturbed = _number(record.get("loss_clean")), _number(record.get("loss_perturbed"))
            loss = perturbed if clean is None else clean
            tail = replace(tail, step=max(step, tail.step), loss=tail.loss if loss is None else loss)
            seconds.append(_number(record.get("seconds")) or 0.0)
    return replace(tail, seconds=sum(seconds) / len(seconds) if seconds else None)


def _tail_of_tables(run: Run) -> Tail:
    """Of a run that was packed: its lines are gone, its table is there."""
    metrics, evaluations = run.metrics(), run.evaluations()
    evaluations = evaluations[evaluations["split"] == "eval"]
    losses = metrics["loss_clean"].dropna()
    last = evaluations.iloc[-1] if len(evaluations) else {}
    return Tail(
        step=int(metrics["step"].iloc[-1]) if len(metrics) else 0,
        loss=float(losses.iloc[-1]) if len(losses) else None,
        eval_step=int(last["step"]) if len(last) else None,
        eval_loss=_number(last.get("loss")),
        eval_error=_number(last.get("standard_error")),
        seconds=_number(metrics["seconds"].mean()) if len(metrics) else None,
        scores=_scores(dict(last)),
    )


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    named = {key: _number(value) for key, value in record.items() if key not in _NOT_SCORES}
    return {key: value for key, value in named.items() if value is not None and math.isfinite(value)}


def _line_start(path: Path) -> int:
    """Offset of a line near the end of the file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= TAIL_BYTES:
                return 0
            file.seek(size - TAIL_BYTES)
            return size - TAIL_BYTES + len(file.readline())
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def _number(value: Any) -> float | None:
    """What a line holds, with NaN and infinities spelled out, as a float."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat()
