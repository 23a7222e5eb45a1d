"""Leases: which process may work on a run now, agreed upon through files alone.

Any number of workers on any number of machines share a store, perhaps over a network file system whose locks nobody
trusts. Two things are relied on: ``O_EXCL`` (of all who create a file exactly one succeeds) and the atomic rename of
`landscape.store.atomic.replacing`. No clocks are compared.

**Claim.** ``leases/<n>.json`` in the run's folder is lease n, and who creates it with ``O_EXCL`` holds it. The highest
number counts; a lease may be claimed only as the successor of one that was released, that expired, or whose process is
known to be dead. Files are never deleted, so that a number is given out once, ever: who works from an old listing
creates a file that exists, and fails.

**Renew.** The second line of the file is a counter that the holder overwrites in place every few seconds (no new block,
so that a full disk does not end a lease). A torn write does no harm: it is a change, and only change counts.

**Expire.** A watcher remembers the line that it read last, and when by its own monotonic clock. A lease has expired
once its line has not changed for as long as the lease itself says (`LEASE_SECONDS`). So clocks may be wrong by years,
a watcher that slept sees nothing amiss (a living holder's counter has moved on), and a new watcher waits one full term.
On the machine of the holder nobody waits: the process table says whether it lives (pid, start time and boot, so that
neither a pid used again nor a namesake host misleads).

**Release.** The holder writes ``done`` in place of ``beat``.

**Fence.** A holder that was suspended may not know that it has lost its lease; nothing can stop its late writes, so
they must not matter. Its attempt is the folder ``attempts/<n>`` with n the number of its lease: what it still writes,
checkpoints included, lands there, and readers follow the highest attempt that was begun, which is its successor's. The
one file that it could still replace is ``status.json``; it looks for a successor first, and where it was paused just
after looking, its status names its own attempt, by which readers know it for outdated.

**Give up.** Each claim counts the claims just before it that ended without release at the same checkpoint. A run whose
process died `MOST_DEATHS` times without getting any further is failed rather than let loose on the next worker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from landscape.errors import StoreError
from landscape.store.atomic import sync_directory, write_error
from landscape.store.files import read_plain

LEASE_SECONDS = 60.0
"""A lease that has not been renewed for so long is taken over; ``LANDSCAPE_LEASE_SECONDS`` sets another term."""
MOST_DEATHS = 5
FOLDER = "leases"

Mark = tuple[int, str]
"""A lease's number and heartbeat at one moment: what a watcher has seen expire is claimed only if it is still so."""

_RENEWALS = 6
"""In the time after which a lease expires."""
_MOST_BYTES = 1 << 14


class LeaseHeldError(StoreError):
    """Somebody else is at work on the run, as far as anybody here can know."""


class LeaseLostError(StoreError):
    """The lease was taken over while its holder was away; its successor goes on from the checkpoint."""


@dataclass(frozen=True)
class Claim:
    """A lease as others see it.

    Attributes:
        seconds: without a heartbeat after which it expires.
        machine, pid, birth: of the process that holds it; ``machine`` tells boots and process namespaces apart.
        step: of the checkpoint from which its holder went on.
        deaths: how many claims in a row before this one ended without release at the same step.
        released: in order.
        line: the heartbeat as it stands in the file.
    """

    number: int
    seconds: float = LEASE_SECONDS
    host: str | None = None
    pid: int | None = None
    machine: str | None = None
    birth: str | None = None
    step: int = 0
    deaths: int = 0
    released: bool = False
    line: bytes = b""

    @property
    def is_here(self) -> bool:
        """Whether its process is, or was, one of this machine's, so that the process table tells."""
        return self.machine == machine_identity()

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to be gone; False where only waiting can tell."""
        return self.is_here and (self.pid is None or process_birth(self.pid) != self.birth)

    @property
    def is_open(self) -> bool:
        """Not released, and its process not known to be dead."""
        return not self.released and not self.is_dead

    @property
    def mark(self) -> Mark:
        """Changes whenever the lease is renewed."""
        return self.number, self.line.decode("latin-1")

    @property
    def holder(self) -> str:
        """``process 17 on node3``."""
        return f"process {self.pid} on {self.host}" if self.host else "a process that has not said its name"


class LeaseWatch:
    """Notices leases that have expired; keep one for as long as you look.

    Args:
        clock: seconds from any origin; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, tuple[Mark, float]] = {}

    def look(self, run: Path) -> tuple[bool, Mark | None]:
        """Whether the lease on this run folder can be claimed now, and its mark; look again every few seconds."""
        claim = latest_claim(run)
        if claim is None or not claim.is_open:
            return True, claim and claim.mark
        now, seen = self._clock(), self._seen.get(run)
        if seen is None or seen[0] != claim.mark:
            seen = self._seen[run] = (claim.mark, now)
        return now - seen[1] >= claim.seconds, claim.mark


def latest_claim(run: Path) -> Claim | None:
    """The highest lease on a run folder, or None where there never was one."""
    number = max(_numbers(run), default=0)
    return _read(run / FOLDER / f"{number}.json", number) if number else None


def claim_lease(
    run: Path, *, expired: Mark | None = None, above: int = 0, step: int = 0, seconds: float | None = None
) -> Lease:
    """Claim the lease on a run folder.

    Args:
        expired: a mark that a `LeaseWatch` has seen for long enough.
        above: the new lease's number is higher than this, too: of the attempts made without a lease.
        step: of the checkpoint from which the run will go on.
        seconds: see `LEASE_SECONDS`.

    Raises:
        LeaseHeldError: somebody has it, or was faster.
        StoreError: the disk is full or refuses.
    """
    last = latest_claim(run)
    if last is not None and last.is_open and last.mark != expired:
        raise LeaseHeldError(f"run {run.name} is being worked on by {last.holder}")
    deaths = last.deaths + 1 if last is not None and not last.released and last.step == step else 0
    number = max(last.number if last else 0, above) + 1
    return Lease(run, number, step=step, deaths=deaths, seconds=seconds or lease_seconds())


def lease_seconds() -> float:
    """`LEASE_SECONDS`, or what the environment says; at least a second."""
    try:
        return max(1.0, float(os.environ.get("LANDSCAPE_LEASE_SECONDS", LEASE_SECONDS)))
    except ValueError:
        return LEASE_SECONDS


class Lease:
    """A lease held by this process, renewed by a thread of its own until it is released.

    Raises:
        LeaseHeldError: somebody else made this file first.
        StoreError: the disk is full or refuses.
    """

    def __init__(self, run: Path, number: int, *, step: int = 0, deaths: int = 0, seconds: float) -> None:
        self.run = run
        self.number = number
        self.step = step
        self.deaths = deaths
        self.seconds = seconds
        self._lock = threading.Lock()
        self._beat = 0
        self._lost = self._released = False
        self._renewed = time.monotonic()
        self._make()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease-{run.name}", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether nobody has taken over, as far as this file system shows already."""
        if not self._lost and max(_numbers(self.run), default=0) > self.number:
            self._lost = True
        return not self._lost

    def check(self) -> None:
        """Raises `LeaseLostError` once somebody has taken over."""
        if not self.is_current:
            raise LeaseLostError(f"run {self.run.name} was taken over: its lease {self.number} had expired")

    def renew(self) -> None:
        """Show that the holder lives.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._lock:
            if not self._released:
                self._beat += 1
                self._write(b"beat")
                self._renewed = time.monotonic()

    def advance(self) -> None:
        """Go over to the next number: for a further attempt by the same holder.

        Raises:
            LeaseLostError: somebody else has it.
        """
        with self._lock:
            old, self.number = self.number, self.number + 1
            try:
                self._make()
            except LeaseHeldError:
                self.number, self._lost = old, True
        self.check()

    def release(self) -> None:
        """Let the next one have it; harmless when repeated, and after it was lost."""
        self._ended.set()
        with self._lock, contextlib.suppress(StoreError):
            if not self._released:
                self._released = True
                self._write(b"done")

    def _make(self) -> None:
        folder = self.run / FOLDER
        content = {
            "number": self.number,
            "seconds": self.seconds,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": machine_identity(),
            "birth": process_birth(os.getpid()),
            "step": self.step,
            "deaths": self.deaths,
        }
        head = json.dumps(content).encode() + b"\n"
        self._path, self._offset = folder / f"{self.number}.json", len(head)
        try:
            if folder.is_symlink():
                raise StoreError(f"{folder} is a link: leases are not followed out of the run")
            folder.mkdir(exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.write(descriptor, head + self._line(b"beat"))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_directory(folder)
        except FileExistsError:
            raise LeaseHeldError(f"run {self.run.name}: another process has just claimed it") from None
        except OSError as error:
            raise write_error(self._path, error) from error

    def _line(self, word: bytes) -> bytes:
        return b"%b %010d\n" % (word, self._beat)

    def _write(self, word: bytes) -> None:
        try:
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                os.lseek(descriptor, self._offset, os.SEEK_SET)
                os.write(descriptor, self._line(word))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_error(self._path, error) from error

    def _keep_renewing(self) -> None:
        while not self._ended.wait(self.seconds / _RENEWALS):
            with contextlib.suppress(StoreError):  # the next one may succeed
                self.renew()
            if not self.is_current:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


@functools.cache
def machine_identity() -> str:
    """This boot of this machine, and this namespace of process ids, as far as the system names them."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process_birth(pid: int) -> str | None:
    """When a process of this machine began, in whatever unit; None for one that is dead, or dead and not yet buried."""
    try:
        if Path("/proc/self/stat").exists():
            # proc(5): the name in parentheses may hold anything; behind it state is field 3 and start time field 22.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZXx" else fields[19]
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except (OSError, IndexError, psutil.Error):
        return None


def _numbers(run: Path) -> list[int]:
    if os.path.islink(run / FOLDER):
        raise StoreError(f"{run / FOLDER} is a link: leases are not followed out of the run")
    try:
        names = os.listdir(run / FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"cannot read {run / FOLDER}: {error.strerror}") from error
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return [int(stem) for stem in stems if stem.isdecimal() and len(stem) < 10]


def _read(path: Path, number: int) -> Claim:
    """A file that is empty, torn or foreign is a lease that somebody holds: it expires like any other."""
    head, _, line = read_plain(path, _MOST_BYTES).partition(b"\n")
    try:
        values: dict[str, Any] = json.loads(head)
        seconds = float(values["seconds"])
        return Claim(
            number=number,
            seconds=seconds if 0 < seconds < 86400 else LEASE_SECONDS,
            host=str(values["host"]),
            pid=int(values["pid"]),
            machine=str(values["machine"]),
            birth=None if values["birth"] is None else str(values["birth"]),
            step=int(values["step"]),
            deaths=int(values["deaths"]),
            released=line.startswith(b"done"),
            line=line,
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return Claim(number, line=head + line)
