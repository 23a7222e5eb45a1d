"""The methods as the README lists them."""

from __future__ import annotations

from landscape.methods.base import METHODS, Method
from landscape.methods.composition import compositions


def methods_table() -> str:
    """Markdown: adapters first, then what is laid over one; each with its arguments' defaults."""
    rows = [
        "| method | what it is | adapter | perturbs | passes a step | extra memory | arguments | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in sorted(METHODS.values(), key=lambda m: (m.composes, m.name)):
        cells = [
            f"`{method.name}`",
            method.summary,
            _adapter(method),
            method.perturbs,
            method.passes,
            method.extra_memory,
            _arguments(method),
            method.source,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _adapter(method: Method) -> str:
    if not method.composes:
        return method.adapter or "none"
    return ", ".join(f"`{name}`" for name in compositions(method))


def _arguments(method: Method) -> str:
    defaults = method.arguments().model_dump(mode="json")
    shown = {key: "null" if value is None else str(value).lower() for key, value in defaults.items()}
    return ", ".join(f"`{key}={value}`" for key, value in shown.items()) or "-"
