import errno
import os
from collections.abc import Callable, Iterator

import pytest

from landscape.config import RunConfig
from landscape.store import Run, Store, atomic

DIGESTS = {"data": "d" * 16, "model": "m" * 16}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture
def run(store) -> Run:
    return store.add(RunConfig.parse({"max_steps": 20, "alpha": 16}), "lora-r8-s0-0123456789", DIGESTS)


class Disk:
    """Stands for a disk that takes so many more bytes, and then a part of the next write, as real ones do."""

    def __init__(self, write: Callable[[int, bytes], int]) -> None:
        self._write = write
        self.room: int | None = None

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room is None:
            return self._write(descriptor, data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch) -> Iterator[Disk]:
    disk = Disk(os.write)
    monkeypatch.setattr(atomic.os, "write", disk.write)
    yield disk
    disk.room = None
