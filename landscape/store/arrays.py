"""NumPy files of the store, read within bounds: nothing unpickled, and no more memory than the file can fill."""

from __future__ import annotations

import io
import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import StoreError
from landscape.store.files import open_plain, read_plain

if TYPE_CHECKING:
    import numpy as np

MOST_BYTES = 1 << 29
"""Of all arrays of a file together, unpacked; ten surfaces of 1000 by 1000 points are half of it."""
MOST_ARRAYS = 10_000
_END_BYTES = 22
"""Of the record that ends a ZIP file: signature, ..., number of entries at byte 10, ..., no comment."""

_DAMAGES = (
    *(ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, OverflowError, MemoryError),
    *(SyntaxError, tokenize.TokenError),  # of NumPy, where a header is no Python
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name; the checksum of each is compared.

    Raises:
        StoreError: the file is missing or damaged, holds objects, or unpacks to more than `MOST_BYTES`.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with os.fdopen(open_plain(path), "rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            file.seek(-_END_BYTES, os.SEEK_END)
            end = file.read(_END_BYTES)
            # A flipped byte can make one entry of the directory swallow the next, which nobody else would miss.
            if not end.startswith(b"PK\5\6") or int.from_bytes(end[10:12], "little") != len(members):
                raise ValueError("its directory does not list as many arrays as it says")
            if len(members) > MOST_ARRAYS or sum(member.file_size for member in members) > MOST_BYTES:
                raise StoreError(f"{path}: {len(members)} arrays unpack to more than the {MOST_BYTES} bytes allowed")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"the array {name!r} is there twice")
                arrays[name] = _array(archive.read(member))
    except FileNotFoundError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except (*_DAMAGES, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    return arrays


def read_array(path: Path) -> np.ndarray:
    """The array of an ``.npy`` file.

    Raises:
        StoreError: the file is missing or damaged, holds objects, or is larger than `MOST_BYTES`.
    """
    content = read_plain(path, MOST_BYTES)
    try:
        return _array(content)
    except _DAMAGES as error:
        raise _damaged(path, error) from error


def read_order(path: Path) -> np.ndarray:
    """An order of training examples, (epochs · examples,) int64: one permutation after the other.

    It needs no checksum: of so many examples as the file's name says, every epoch has each once.

    Raises:
        StoreError: the file is missing or damaged.
    """
    import numpy as np

    order = read_array(path)
    size = path.stem.partition("-")[0].removeprefix("n")
    length = int(size) if size.isdecimal() and len(size) < 12 else 0
    if order.ndim != 1 or order.dtype.kind != "i" or not length or len(order) % length:
        raise StoreError(f"{path} is damaged: no order of {size} examples")
    for epoch, block in enumerate(np.sort(order.reshape(-1, length), axis=1)):
        if not np.array_equal(block, np.arange(length)):
            raise StoreError(f"{path} is damaged: epoch {epoch} does not have every example once")
    return order


def _array(content: bytes) -> np.ndarray:
    from numpy.lib import format as npy

    file = io.BytesIO(content)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
    if read_header is None:
        raise ValueError("an array of an unknown version")
    shape, _, dtype = read_header(file)
    # Before anything is allocated: a header of a hundred bytes can declare any shape.
    if dtype.hasobject or math.prod(shape) * max(dtype.itemsize, 1) > len(content) - file.tell():
        what = "Object arrays cannot be loaded" if dtype.hasobject else "its values are not all there"
        raise ValueError(f"{what}: {dtype} {shape}"[:200])
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


def _damaged(path: Path, error: BaseException) -> StoreError:
    return StoreError(f"{path} is damaged ({' '.join(str(error).split())[:200] or type(error).__name__})")
