"""The methods as `landscape methods` and the README list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from landscape.methods.base import METHODS, Method
from landscape.methods.composition import adapters, compositions

COLUMNS = {
    "name": "method",
    "summary": "what it is",
    "adapter": "adapter",
    "perturbs": "perturbs",
    "passes": "passes a step",
    "extra_memory": "extra memory",
    "arguments": "arguments",
    "source": "source",
}
"""Keys of `method_rows` that the tables show, with their titles."""


def method_rows() -> list[dict[str, Any]]:
    """One row a method, adapters first and then what is laid over one.

    Keys: ``name``, ``summary``, ``adapter`` (how the adapted layers compute; None trains every weight, and what is laid
    over an adapter has that of the default), ``composes_with`` (the adapters that it may be laid over, or for an
    adapter what may be laid over it), ``perturbs``, ``passes``, ``extra_memory``, ``arguments`` (defaults), ``source``.
    """
    return [
        {
            "name": method.name,
            "summary": method.summary,
            "adapter": method.adapter,
            "composes_with": compositions(method) if method.composes else _above(method),
            "perturbs": method.perturbs,
            "passes": method.passes,
            "extra_memory": method.extra_memory,
            "arguments": method.arguments().model_dump(mode="json"),
            "source": method.source,
        }
        for method in sorted(METHODS.values(), key=lambda method: (method.composes, method.name))
    ]


def method_cells(row: dict[str, Any], columns: Mapping[str, str] = COLUMNS, quote: str = "") -> list[str]:
    """These columns of one row as text; ``quote`` goes around names and arguments."""
    texts = {
        "name": f"{quote}{row['name']}{quote}",
        "adapter": _adapter(row, quote),
        "arguments": ", ".join(f"{quote}{key}={_spell(value)}{quote}" for key, value in row["arguments"].items())
        or "-",
    }
    return [texts.get(key) or str(row[key]) for key in columns]


def methods_table() -> str:
    """The table as Markdown."""
    titles = list(COLUMNS.values())
    lines = [titles, ["---"] * len(titles), *(method_cells(row, quote="`") for row in method_rows())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _above(adapter: Method) -> list[str]:
    return sorted(m.name for m in METHODS.values() if m.composes and adapter.name in compositions(m))


def _adapter(row: dict[str, Any], quote: str) -> str:
    if not METHODS[row["name"]].composes:
        return row["adapter"] or "none"
    every, over = adapters(), row["composes_with"]
    without = [name for name in every if name not in over]
    if not without:
        return "any"
    if len(without) < len(over):
        return f"any but {_listed(without, quote)}"
    return _listed(over, quote)


def _listed(names: Sequence[str], quote: str) -> str:
    return ", ".join(f"{quote}{name}{quote}" for name in names)


def _spell(value: Any) -> str:
    return "null" if value is None else str(value).lower()
