"""Reading files that somebody else may have made: plain ones, of bounded size, and none outside the store."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from landscape.errors import StoreError

MOST_TEXT = 1 << 24
"""Bytes of a config, a status or a layout; the layout of a model with 10,000 tensors takes one megabyte."""

_FLAGS = os.O_RDONLY
for _name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY", "O_NOFOLLOW"):
    _FLAGS |= getattr(os, _name, 0)


def open_plain(path: Path) -> int:
    """The descriptor of a regular file, open for reading; a pipe or a device is refused instead of waited for.

    A store has no links among its files, so one that is there was put there, and may lead anywhere.

    Raises:
        FileNotFoundError: nothing is there.
        StoreError: it is a link or no regular file, or cannot be read.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a link, and links are not followed" if os.path.islink(path) else error.strerror
        raise StoreError(f"cannot read {path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"cannot read {path}: it is no plain file")
    return descriptor


def read_plain(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        StoreError: nothing is there, it is no regular file, it is larger, or cannot be read.
    """
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > most:
        raise StoreError(f"{path} is larger than the {most} bytes that such a file may have")
    return content


def refuse_outside(path: Path, root: Path) -> None:
    """`StoreError` where a symbolic link leads from below ``root`` out of it; costs a system call a folder."""
    place, below = str(root), os.path.relpath(path, root)
    for part in below.split(os.sep):
        place = os.path.join(place, part)  # ten times as fast as Path, and asked of every run
        if os.path.islink(place):
            break
    else:
        return
    try:
        outside = not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a link that leads in a circle
        outside = True
    if outside:
        raise StoreError(f"{path} leads out of the store {root}: links are not followed")
