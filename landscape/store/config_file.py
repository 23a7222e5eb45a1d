"""``config.yaml``: plain YAML whose last line is a comment with the checksum of the lines above it."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import zlib
from pathlib import Path
from typing import Any

from landscape.config import RunConfig
from landscape.config.run import parse_yaml
from landscape.errors import StoreError, UsageError
from landscape.store.atomic import write_bytes
from landscape.store.files import read_plain

CONFIG_NAME = "config.yaml"
_KEYS = re.compile(r"^(?=[a-z_])", re.MULTILINE)
_LAST_KEY = "report_to"
CHECKSUM_MARK = b"# crc32 of the lines above: "


def write_config(path: Path, config: RunConfig) -> None:
    """Replace the file atomically.

    Raises:
        StoreError: the disk is full or refuses.
    """
    lines = config.to_yaml().encode()
    write_bytes(path, b"%b%b%d\n" % (lines, CHECKSUM_MARK, zlib.crc32(lines)))


def read_config_values(path: Path) -> dict[str, Any]:
    """The mapping in the file, not yet validated.

    Raises:
        StoreError: the file is missing, no YAML, not a mapping, or its checksum is wrong; one without (of an older
            version, or edited by somebody who removed it) is not checked.
    """
    content = read_plain(path)
    lines, mark, checksum = content.rpartition(CHECKSUM_MARK)
    if mark and checksum.strip() != b"%d" % zlib.crc32(lines):
        raise StoreError(
            f"{path} is damaged: its checksum does not match its content (if you changed it, remove its last line)"
        )
    if mark:  # the store wrote it, one key after the other
        with contextlib.suppress(UsageError, UnicodeDecodeError):
            blocks = _KEYS.split(lines.decode())
            return {key: copy.deepcopy(value) for block in blocks for key, value in _parsed(block)}
    try:
        values = parse_yaml(content, path)
    except UsageError as error:
        raise StoreError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    # What was cut off would read as a config with other values: the defaults of the keys that are gone.
    if not mark and _LAST_KEY not in values:
        raise StoreError(f"{path} is damaged: it ends before its last key, {_LAST_KEY}")
    return values


@functools.lru_cache(maxsize=4096)
def _parsed(lines: str) -> tuple[tuple[str, Any], ...]:
    """Keys and values of some lines; nearly all lines of a sweep's configs are those of many runs."""
    return tuple(parse_yaml(lines.encode(), CONFIG_NAME).items()) if lines.strip() else ()


def has_checksum(path: Path) -> bool:
    """Whether the file carries one."""
    return CHECKSUM_MARK in read_plain(path)
