"""Reading files that somebody else made: plain ones, of bounded size, and none outside the folder that was given."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from landscape.errors import UsageError

MAX_BYTES = 1 << 30
"""A larger file is refused: a log of a million steps with a dozen columns is a quarter of it."""


def read_bytes(path: Path) -> bytes:
    """The content of a plain file.

    Raises:
        UsageError: it is a device, a pipe or a folder, larger than `MAX_BYTES`, or cannot be read.
        FileNotFoundError: nothing is there.
    """
    check_plain(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None


def check_plain(path: Path) -> None:
    """`UsageError` unless it is a plain file of at most `MAX_BYTES`; `FileNotFoundError` where nothing is."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path}: not a plain file (a device, a pipe or a folder).")
    if status.st_size > MAX_BYTES:
        size = f"{status.st_size / 1e9:.1f} GB"
        raise UsageError(f"{path}: {size}; logs of up to {MAX_BYTES / 1e9:.1f} GB are read. Export the columns wanted.")


def inside(folder: Path, paths: Iterable[Path], notes: list[str]) -> list[Path]:
    """Those paths that lie in the folder once links are followed; the others are left out, and said in ``notes``."""
    root = folder.resolve()
    kept, outside = [], []
    for path in paths:
        try:
            (kept if path.resolve().is_relative_to(root) else outside).append(path)
        except (OSError, RuntimeError):  # a link that leads in a circle
            outside.append(path)
    if outside:
        first = outside[0].relative_to(folder).as_posix()
        notes.append(f"{len(outside)} links out of the folder, first {first}, were not followed")
    return kept


def checksum(files: Sequence[Path], root: Path) -> str:
    """SHA-256 of a file; of several, of their names under ``root`` and their checksums, in order of name."""
    if len(files) == 1:
        return _sha256(files[0])
    named = sorted((path.relative_to(root).as_posix(), _sha256(path)) for path in files)
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in named).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
