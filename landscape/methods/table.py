"""The methods as the README lists them."""

from __future__ import annotations

from landscape.methods.base import METHODS, Method


def methods_table() -> str:
    """Markdown: unperturbed methods first, each with its arguments' defaults."""
    rows = [
        "| method | what it is | perturbs | passes a step | extra memory | arguments | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in sorted(METHODS.values(), key=lambda m: (m.perturbation is not None, m.name)):
        cells = [
            f"`{method.name}`",
            method.summary,
            method.perturbs,
            method.passes,
            method.extra_memory,
            _arguments(method),
            method.source,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _arguments(method: Method) -> str:
    defaults = method.arguments().model_dump(mode="json")
    shown = {key: "null" if value is None else str(value).lower() for key, value in defaults.items()}
    return ", ".join(f"`{key}={value}`" for key, value in shown.items()) or "-"
