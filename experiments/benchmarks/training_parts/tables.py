"""The training benchmark's results as a page's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .variants import METHOD_ARGS

NOTES = {"entropy-sgd": f"L = {METHOD_ARGS['entropy-sgd']['inner_steps']}; its default is 20", "adalora": "pruning"}


def cost_table(timed: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> str:
    """What each method costs over LoRA, cheapest first, in Markdown.

    Args:
        timed: what ``training.py --methods --no-memory`` wrote.
        measured: what ``training.py --no-time`` wrote, in parts; a part's methods are held against its own LoRA.

    Raises:
        KeyError: a method without a memory.
    """
    memory = {
        name: (peak / part["memory_mib"]["lora"], peak - part["memory_mib"]["lora"])
        for part in measured
        for name, peak in part["memory_mib"].items()
    }
    lines = ["| method / `lora` | time a step | peak memory |", "|---|---|---|"]
    for row in sorted(timed["ratios"], key=lambda row: row["ratio"]):
        name, (low, high), (times, more) = row["variant"], row["range"], memory[row["variant"]]
        label = f"`{name}`" + (f" ({NOTES[name]})" if name in NOTES else "")
        added = f"{more:+.0f} MiB".replace("-", "−")
        lines.append(f"| {label} | {row['ratio']:.2f} [{low:.2f}, {high:.2f}] | {times:.2f} ({added}) |")
    return "\n".join(lines)
