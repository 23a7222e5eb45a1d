"""Errors that a user can act on; every message names the key, the value, what is allowed and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LandscapeError(Exception):
    """Anything that the toolkit refuses or cannot do; the message is one line and meant to be read by the user."""


class UsageError(LandscapeError, ValueError):
    """Bad configuration or arguments, found before anything is loaded where that is possible (exit code 2)."""


class StoreError(LandscapeError):
    """A store or run folder that is damaged, of a newer schema, full, or held by somebody else."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """``" Did you mean 'lora'?"`` or the empty string; appended to messages about unknown names."""
    matches = difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def unknown(key: str, value: object, allowed: Iterable[str]) -> UsageError:
    """The error for a value that is not one of a closed list of names."""
    names = sorted(allowed)
    return UsageError(f"{key}: {value!r} is not known; allowed: {', '.join(names)}.{nearest(str(value), names)}")
