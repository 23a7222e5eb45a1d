"""Names that become parts of paths, checked before they do."""

from __future__ import annotations

import re

from landscape.errors import UsageError

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
_STREAM = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")


def check_run_id(run_id: str) -> str:
    """The id itself; `UsageError` unless it is letters, digits and ``._+=-``, starting with a letter or digit."""
    if not is_run_id(run_id):
        raise UsageError(f"run id: {run_id!r} is not a plain name of letters, digits and . _ + = - (at most 200)")
    return run_id


def is_run_id(name: str) -> bool:
    """Whether the name of a folder can be a run's; others are not listed, whatever is in them."""
    return _RUN_ID.fullmatch(name) is not None and ".." not in name


def check_stream(stream: str) -> str:
    """The name itself; `UsageError` unless it is lower-case letters, digits and underscores."""
    if not _STREAM.fullmatch(stream):
        raise UsageError(f"snapshot stream: {stream!r} is not a plain name such as params or adam_v")
    return stream
