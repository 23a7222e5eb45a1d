"""The tables that the slice benchmark prints."""

from __future__ import annotations

import statistics
from typing import Any

GOALS = {("cost 16x64", "landscape, adapter"): 1.02, ("cost 4x32, 2 threads", "landscape, adapter"): 0.75}
"""Of the cost of a point over a bare forward pass."""
SHARE_GOAL, ERROR_GOAL = 0.25, 0.01


def show(name: str, part: Any) -> None:
    """A part's result as it is measured."""
    print(f"\n{name}")
    kinds = {"cost": show_cost, "correctness": lambda _, part: show_correctness(part), "adaptive": show_adaptive}
    kinds[name.split(maxsplit=1)[0]](name, part)


def show_cost(name: str, part: dict[str, Any]) -> None:
    """Ratios of a point to a bare forward pass."""
    print(f"  bare no_grad forward pass with the model's loss: {1000 * part['bare_seconds']:.1f} ms")
    for tool, ratios in part["ratios"].items():
        goal = f"  goal {GOALS[name, tool]}" if (name, tool) in GOALS else ""
        facts = part["ours"].get(tool.removeprefix("landscape, "), None) if tool.startswith("landscape, ") else None
        way = f"  {facts['way']}; prepared in {facts['prepare_seconds']:.1f} s" if facts else ""
        print(f"  {tool:34s} {statistics.median(ratios):6.3f}  [{min(ratios):.3f}, {max(ratios):.3f}]{goal}{way}")


def show_correctness(part: dict[str, Any]) -> None:
    """What the tools do to a model; shares of the surface's range."""
    header = ("error", "center error", "drift (steps)", "frozen share", "left behind", "state kept")
    print(f"  {'tool':34s}" + "".join(f"{name:>15s}" for name in header))
    for tool, row in part.items():
        if "failed" in row:
            print(f"  {tool:34s} {row['failed']}")
            continue
        values = [row[key] for key in ("error", "center_error", "drift", "frozen_share", "left")]
        print(f"  {tool:34s}" + "".join(f"{value:15.2g}" for value in values) + f"{row['state_kept']!s:>15s}")


def show_adaptive(name: str, part: list[dict[str, Any]]) -> None:
    """Costs over as many bare forward passes, and errors as shares of the range."""
    print(f"  goals: share of the cost {SHARE_GOAL}, error at held-out points {ERROR_GOAL:.0%} of the range")
    for row in part:
        held = "confirmed" if row["error"] <= row["bound"] else "MISSED"
        print(
            f"  {row['space']:8s} seed {row['seed']}: {row['evaluations']:4d} evaluations, {row['seconds']:.1f} s = "
            f"{row['share']:.3f} of {row['forwards_seconds']:.1f} s; error at {row['held_out_points']} points "
            f"{100 * row['error']:.2f} %, bound {100 * row['bound']:.2f} % ({held}); {row['way']}"
        )
