"""The wire format of Protocol Buffers: fields of a message by number, without its schema or any package.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = int | bytes


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of every field in the order written; strings and nested messages are bytes.

    Raises:
        ValueError: these bytes are no message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(message[at : at + width], "little"), at + width
        else:
            raise ValueError(f"wire type {kind}")
        if number == 0 or at > len(message):
            raise ValueError("a field is cut off")
        yield number, value


def last(message: bytes, number: int) -> Value | None:
    """The last value written for a field, which is the one that counts; None where it is absent."""
    found = None
    for other, value in fields(message):
        if other == number:
            found = value
    return found


def signed(value: int) -> int:
    """An int64 from its 64 unsigned bits."""
    return struct.unpack("<q", struct.pack("<Q", value & (1 << 64) - 1))[0]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off")
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return result, at
