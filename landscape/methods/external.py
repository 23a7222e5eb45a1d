"""Methods of other packages, found by their entry points."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points

from landscape.methods.base import METHODS, Method

GROUP = "landscape.methods"

logger = logging.getLogger(__name__)


def load_entry_points() -> list[str]:
    """Register what installed packages offer under the group ``landscape.methods``; returns the new names.

    An entry point is a `Method`, or a module that registers some when it is imported. One that fails is logged and
    skipped: somebody else's package must not keep ours from working.
    """
    before = set(METHODS)
    for point in entry_points(group=GROUP):
        try:
            found = point.load()
            if isinstance(found, Method) and found.name not in METHODS:
                METHODS.add(found)
        except Exception as error:
            logger.warning("entry point %s of group %s cannot be loaded: %s", point.name, GROUP, error)
    return sorted(set(METHODS) - before)
