"""The checksums of a folder that is written once, in a file of its own: checkpoints have one."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from landscape.errors import StoreError
from landscape.store.atomic import read_json, sync_directory, write_checked_json
from landscape.store.files import open_plain

MANIFEST_FILE = "checksums.json"
_CHUNK = 1 << 24


def seal(folder: Path) -> None:
    """Sync every file of a folder to disk and write down its CRC-32; what is renamed into place next is whole.

    Raises:
        OSError, StoreError: the disk is full or refuses.
    """
    checksums = {}
    for path in sorted(folder.iterdir()):
        checksums[path.name] = _checksum(path, sync=True)
    write_checked_json(folder / MANIFEST_FILE, {"crc32": checksums})
    sync_directory(folder)


def check_sealed(folder: Path) -> None:
    """Compare every checksum; a folder without a manifest, of an older version, is taken as it is.

    Raises:
        StoreError: a file is missing, damaged, or not in the manifest; names it.
    """
    manifest = folder / MANIFEST_FILE
    if not manifest.exists():
        return
    checksums = read_json(manifest).get("crc32")
    if not isinstance(checksums, dict):
        raise StoreError(f"{manifest} is damaged: it has no checksums")
    found = {path.name for path in folder.iterdir()} - {MANIFEST_FILE}
    if odd := sorted(found ^ checksums.keys()):
        raise StoreError(f"{folder / odd[0]} is {'not in its manifest' if odd[0] in found else 'missing'}")
    for name, checksum in checksums.items():
        if _checksum(folder / name) != checksum:
            raise StoreError(f"{folder / name} is damaged: its checksum does not match its content")


def _checksum(path: Path, sync: bool = False) -> int:
    result = 0
    with os.fdopen(open_plain(path), "rb") as file:
        while piece := file.read(_CHUNK):
            result = zlib.crc32(piece, result)
        if sync:
            os.fsync(file.fileno())
    return result
