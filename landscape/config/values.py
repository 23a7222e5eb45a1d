"""How values are spelled on the command line and in sweep files: ``8,32,128``, ``0..4``, ``log:1e-5:1e-3:5``."""

from __future__ import annotations

import re
from typing import Any

import yaml

from landscape.errors import UsageError

_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def parse_scalar(text: str) -> Any:
    """One value as YAML reads it, except that ``2e-4`` is a number (PyYAML reads it as a string)."""
    if _FLOAT.fullmatch(text.strip()):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"cannot read the value {text!r}: {' '.join(str(error).split())}") from error


def parse_values(text: str, key: str = "value") -> list[Any]:
    """A list of values from one string.

    ``8,32,128`` is a list, ``0..4`` counts from 0 to 4 inclusive, ``log:1e-5:1e-3:5`` is five values spaced evenly in
    the logarithm. The forms can be joined by commas.

    Raises:
        UsageError: an empty list, a range that runs backwards, or a malformed ``log:`` range.
    """
    values: list[Any] = []
    for item in _split(text):
        if match := _RANGE.fullmatch(item):
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise UsageError(f"{key}: the range {item!r} runs backwards; write {last}..{first}")
            values.extend(range(first, last + 1))
        elif item.startswith("log:"):
            values.extend(_log_range(item, key))
        else:
            values.append(parse_scalar(item))
    if not values:
        raise UsageError(f"{key}: no value given; write for example 8,32,128 or 0..4 or log:1e-5:1e-3:5")
    return values


def _split(text: str) -> list[str]:
    """Split at commas outside brackets, so that ``{rho: 0.1, beta: 0.9},{}`` is two values."""
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            items.append(text[start:position])
            start = position + 1
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def _log_range(item: str, key: str) -> list[float]:
    try:
        low, high, count = (float(part) for part in item.removeprefix("log:").split(":"))
        if low <= 0 or high <= 0 or count < 2 or count != int(count):
            raise ValueError
    except ValueError:
        raise UsageError(f"{key}: {item!r} is not log:LOW:HIGH:COUNT with positive ends and COUNT >= 2") from None
    ratio = (high / low) ** (1 / (count - 1))
    # Twelve digits keep 1e-4 from becoming 9.999999999999999e-05, which would be another run.
    return [float(f"{low * ratio**i:.12g}") for i in range(int(count))]
