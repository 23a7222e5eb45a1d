"""Files that are never half written: whole replacements, and appends that take a torn piece back."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from landscape.errors import StoreError
from landscape.store.files import read_plain

_WRITE_CHUNK = 1 << 26
"""One system call writes at most this much: macOS refuses 2 GiB and more, Linux silently writes less."""

_flush_data = getattr(os, "fdatasync", os.fsync)


@contextlib.contextmanager
def replacing(path: Path, confirm: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced to disk and takes the place of ``path``.

    Readers see the old content or the new, never a mixture, also after a power failure. The temporary name keeps the
    extension, because ``np.savez`` and others add one where it is missing.

    Args:
        confirm: called last, when only the rename is left; what it raises leaves ``path`` as it was.

    Raises:
        StoreError: the disk is full or refuses; ``path`` is then as it was.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        confirm()
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, confirm: Callable[[], None] = lambda: None) -> None:
    """Replace the content of a file atomically, as `replacing`; `StoreError` when the disk is full or refuses."""
    with replacing(path, confirm) as temporary, temporary.open("wb", buffering=0) as file:
        _write_fully(file.fileno(), memoryview(content))


def write_json(path: Path, value: Mapping[str, Any], confirm: Callable[[], None] = lambda: None) -> None:
    """Replace a JSON file atomically, as `replacing`; indented for people, strict (no NaN literals)."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), confirm)


def write_checked_json(path: Path, value: Mapping[str, Any], confirm: Callable[[], None] = lambda: None) -> None:
    """`write_json` with a last member ``crc``: the CRC-32 of the object without it, as canonical JSON."""
    write_json(path, {**value, "crc": _checksum(value)}, confirm)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without the checksum that `write_checked_json` gave it.

    Raises:
        StoreError: the file is missing, unreadable, too large, not JSON, not an object, or its checksum is wrong.
    """
    content = read_plain(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged: it holds a {type(value).__name__} instead of an object")
    if "crc" in value and value.pop("crc") != _checksum(value):
        raise StoreError(f"{path} is damaged: its checksum does not match its content")
    return value


def _checksum(value: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sync_directory(folder: Path) -> None:
    """Make renames and new files in a folder survive a power failure, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError, written: int | None = None, needed: int | None = None) -> StoreError:
    """What went wrong while writing, with how much was written, how much was needed and how much is free."""
    amounts = [] if written is None or needed is None else [f"{written} of {needed} bytes written"]
    with contextlib.suppress(OSError):
        amounts.append(f"{shutil.disk_usage(path.parent).free} bytes free")
    detail = f" ({', '.join(amounts)})" if amounts else ""
    return StoreError(f"cannot write {path}: {error.strerror or error}{detail}")


def _write_fully(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view[:_WRITE_CHUNK]) :]


class AppendFile:
    """A file of one writer that grows by whole pieces.

    A piece that cannot be written entirely (full disk, Ctrl-C) is cut off again, so that a later piece never follows
    half a one. Every piece is visible to readers as soon as `append` returns; `sync` makes it survive a power failure.

    Args:
        path: created if absent.
        valid_bytes: an existing file is cut to this length first; null keeps all of it.

    Raises:
        StoreError: from every method, when the disk is full or refuses.
    """

    def __init__(self, path: Path, valid_bytes: int | None = None) -> None:
        self.path = path
        self._descriptor: int | None = None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(path, flags, 0o666)
            if valid_bytes is not None and valid_bytes < self.size:
                os.ftruncate(self._descriptor, valid_bytes)
        except OSError as error:
            self.close()
            raise write_error(path, error) from error

    @property
    def size(self) -> int:
        """Bytes in the file, asked of the system: a counter could be left stale by an interrupt."""
        return os.fstat(self._open_descriptor()).st_size

    def append(self, piece: bytes | memoryview) -> int:
        """Write all of ``piece`` or nothing of it; returns the offset where it starts."""
        descriptor, view = self._open_descriptor(), memoryview(piece).cast("B")
        offset = self.size
        try:
            _write_fully(descriptor, view)
        except OSError as error:
            written = self.size - offset
            self.truncate(offset)
            raise write_error(self.path, error, written, len(view)) from error
        except BaseException:
            self.truncate(offset)
            raise
        return offset

    def truncate(self, size: int) -> None:
        """Cut the file; where even that fails the file is closed, so that nothing is appended to a torn piece."""
        try:
            os.ftruncate(self._open_descriptor(), size)
        except OSError as error:
            self.close()
            raise write_error(self.path, error) from error

    def sync(self) -> None:
        """Wait until everything appended has reached the disk."""
        try:
            _flush_data(self._open_descriptor())
        except OSError as error:
            raise write_error(self.path, error) from error

    @property
    def closed(self) -> bool:
        """Whether nothing can be appended any more."""
        return self._descriptor is None

    def close(self) -> None:
        """Close the file; harmless when it is closed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise StoreError(f"{self.path} is closed: nothing can be appended")
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
