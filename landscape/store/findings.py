"""What `verify` finds wrong in a store, and how much it looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from landscape.errors import StoreError

Kind = Literal["torn", "lost", "damaged", "stale", "leftover", "foreign", "unfinished"]
"""torn: a piece that was being written when its process died, and that nobody could read.
lost: a record whose end never reached the disk, though its index line did.
damaged: what was whole once and is not any more; it is reported, and never dropped.
stale: a copy made for reading that no longer says what it was made from; it can be made again.
leftover: temporary files of processes that died. foreign: links out of the store, pipes, names that no run has.
unfinished: a run that was just being made when its process died; the next one that wants it makes it."""

HARMLESS = ("leftover", "unfinished")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; ``file`` is below the store, ``record`` says which line, step or array of it."""

    kind: Kind
    file: str
    record: str
    problem: str
    run: str | None = None
    repairable: bool = False
    repaired: bool = False
    records_lost: int = 0
    bytes_lost: int = 0

    def __str__(self) -> str:
        place = f"{self.file}, {self.record}" if self.record else self.file
        return f"{self.kind}: {place}: {self.problem}{' (repaired)' if self.repaired else ''}"


@dataclass(frozen=True)
class Verification:
    """What was looked at, and what was found; ``unchecked`` files carry no checksum (of an older version)."""

    runs: int
    files: int
    records: int
    bytes: int
    unchecked: int
    findings: tuple[Finding, ...]
    busy: tuple[str, ...] = ()
    """Runs that somebody is at work on: their ends were not judged, and nothing of them was repaired."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong any more."""
        return all(item.repaired or item.kind in HARMLESS for item in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind."""
        return dict(sorted(Counter(item.kind for item in self.findings).items()))


@dataclass
class Ledger:
    """Where the checks of one store write down what they saw."""

    root: Path
    repair: bool
    findings: list[Finding] = field(default_factory=list)
    run: str | None = None
    files: int = 0
    records: int = 0
    bytes: int = 0
    unchecked: int = 0

    def saw(self, path: Path, records: int = 0) -> None:
        """Count a file as looked at."""
        self.files += 1
        self.records += records
        self.bytes += path.lstat().st_size

    def found(
        self,
        kind: Kind,
        path: Path,
        problem: str,
        record: str = "",
        mend: Callable[[], object] | None = None,
        records_lost: int = 0,
        bytes_lost: int = 0,
    ) -> None:
        """Write down a finding, and mend it where that was asked for and is possible; `StoreError` where it fails."""
        if self.repair and mend is not None:
            try:
                mend()
            except OSError as error:
                raise StoreError(f"cannot repair {path}: {error.strerror}") from error
        self.findings.append(
            Finding(
                kind=kind,
                file=path.relative_to(self.root).as_posix(),
                record=record,
                problem=problem,
                run=self.run,
                repairable=mend is not None,
                repaired=self.repair and mend is not None,
                records_lost=records_lost,
                bytes_lost=bytes_lost,
            )
        )
