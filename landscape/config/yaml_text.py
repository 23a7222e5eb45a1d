"""YAML as configs use it: plain values, numbers such as ``2e-4`` as numbers, and no more of them than a config has."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 100_000
"""Values that a document may stand for; aliases count as often as they are used, or a kilobyte would fill a memory."""
MOST_LEVELS = 64

MOST_CHARACTERS, MOST_BRACKETS = 1 << 22, 10_000

_PLAIN = tuple(f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge"))
_TIMESTAMP, _STRING = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:str"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """The document in a text as plain values: mappings, lists, strings, numbers, true, false and null.

    Raises:
        yaml.YAMLError: it is no YAML, or has a tag, an alias of something that it is part of, or too much in it.
    """
    if len(text) > MOST_CHARACTERS or text.count("[") + text.count("{") > MOST_BRACKETS:
        raise yaml.YAMLError(f"more than {MOST_CHARACTERS} characters, or {MOST_BRACKETS} brackets")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, 0, 0)
        return loader.construct_document(node)
    except (ValueError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read ({error})") from error
    finally:
        loader.dispose()


def _count(node: Any, before: int, level: int) -> int:
    """Values so far with this node and everything below it."""
    total = before + 1
    if total > MOST_NODES or level > MOST_LEVELS:
        raise yaml.YAMLError(f"it stands for more than {MOST_NODES} values, or more than {MOST_LEVELS} levels of them")
    if node.tag == _TIMESTAMP:
        node.tag = _STRING  # a revision or a name, never a date
    if node.tag not in _PLAIN:
        raise yaml.YAMLError(f"could not determine a constructor for the tag {node.tag!r}")
    if isinstance(node, yaml.ScalarNode):
        return total
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):
            total = _count(part, total, level + 1)
    return total
