"""The table of config keys in docs/config.md, generated from the model that validates them."""

from __future__ import annotations

from landscape.config.identity import NOT_HASHED
from landscape.config.run import ALIASES, Capture, RunConfig


def config_table() -> str:
    """Markdown: key, default, whether it is part of a run's identity, meaning and other spellings."""
    rows = ["| key | default | identity | meaning |", "|---|---|---|---|"]
    spellings: dict[str, list[str]] = {}
    for short, full in ALIASES.items():
        spellings.setdefault(full, []).append(f"`{short}`")
    for key, field in RunConfig.model_fields.items():
        default = "auto" if isinstance(field.default, Capture) else _shown(field.default)
        meaning = field.description or ""
        if key in spellings:
            meaning = f"{meaning}{'; ' if meaning else ''}also {', '.join(spellings[key])}"
        rows.append(f"| `{key}` | `{default}` | {'' if key in NOT_HASHED else 'yes'} | {meaning} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
