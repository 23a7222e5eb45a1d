"""The curvature benchmark's results as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from .measure import OURS
from .peers import PEERS

GOALS = {("trained", "right"): 4.0, ("trained", "certified"): 4.0, ("untrained", "certified"): 2.0}
"""Times faster than the best peer, by weights and stop."""
STOPS = ("right", "certified")
TRAJECTORY_GOAL, PRODUCT_GOAL = 12.0, 1.5


def stops_of(rounds: Iterable[dict[str, Any]], weights: str, stop: str) -> list[dict[str, Any] | None]:
    """One stop over the rounds."""
    return [one["weights"][weights]["stops"].get(stop) for one in rounds]


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Median and range."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}-{high}]"


def speedups(rounds: dict[str, list[Any]], weights: str, stop: str) -> list[tuple[float, str]]:
    """Round by round: the fastest peer's seconds over ours, and who that is; rounds without an answer are left out."""
    ratios = []
    for number, own in enumerate(stops_of(rounds.get(OURS, []), weights, stop)):
        others = {
            tool: stop_of["seconds"]
            for tool, results in rounds.items()
            if tool != OURS and (stop_of := stops_of(results, weights, stop)[number]) is not None
        }
        if own and others:
            best = min(others, key=lambda tool: others[tool])
            ratios.append((others[best] / own["seconds"], best))
    return ratios


def show_snapshot(part: dict[str, Any]) -> None:
    """Print the tables of every shape and kind of weights."""
    for shape, result in part.items():
        first, last = result["training"]["loss"]
        print(f"\n{shape}: trained for {result['training']['steps']} steps, loss {first:.3f} -> {last:.3f}")
        for weights, truths in result["truths"].items():
            print(f"\n{shape} {weights}: largest {truths['largest']:.6g} (sought), smallest {truths['smallest']:.6g}")
            print(
                f"  {'tool':12s} {'stop':11s} {'seconds':>22s} {'products':>14s} {'true error':>12s} {'residual':>9s}"
            )
            for tool, rounds in result["rounds"].items():
                for stop in (*STOPS, "own target", "own stop"):
                    show_stop(tool, stop, stops_of(rounds, weights, stop))
            for stop in STOPS:
                if ratios := speedups(result["rounds"], weights, stop):
                    goal = f", goal {GOALS[weights, stop]:g}" if (weights, stop) in GOALS else ""
                    best = statistics.mode(name for _, name in ratios)
                    print(f"  {stop}: {spread([ratio for ratio, _ in ratios])} times faster than {best}{goal}")
        show_costs(result["rounds"])


def show_stop(tool: str, stop: str, found: list[dict[str, Any] | None]) -> None:
    """One row, or why there is none."""
    kept = [one for one in found if one]
    if not kept:
        if stop == "right":
            print(f"  {tool:12s} {stop:11s} n/a: it seeks the largest magnitude, which is another eigenvalue")
        elif stop == "certified":
            print(f"  {tool:12s} {stop:11s} n/a: it has no residual")
        return
    products = spread([one["products"] for one in kept], "{:.0f}")
    error = statistics.median(one["error"] for one in kept)
    residuals = [one["residual"] for one in kept if one["residual"] is not None]
    residual = f"{statistics.median(residuals):.1e}" if residuals else "none"
    missed = f"  ({len(kept)} of {len(found)} rounds)" if len(kept) < len(found) else ""
    missed += "  (error against its own target)" if stop == "own target" else ""
    seconds = spread([one["seconds"] for one in kept])
    print(f"  {tool:12s} {stop:11s} {seconds:>22s} {products:>14s} {error:12.1e} {residual:>9s}{missed}")


def show_costs(rounds: dict[str, list[Any]]) -> None:
    """Product over gradient of the same process, and memory."""
    for tool, results in rounds.items():
        ratios = [
            statistics.median(case["product_seconds"]) / statistics.median(case["gradient_seconds"])
            for one in results
            for case in one["weights"].values()
        ]
        goal = f" (goal {PRODUCT_GOAL})" if tool == OURS else ""
        peak, floor = (statistics.median(one[key] for one in results) for key in ("peak_mib", "floor_mib"))
        stops = [stop for one in results for case in one["weights"].values() for stop in case["stops"].values() if stop]
        busy = max(stop["seconds"] / stop["cpu_seconds"] for stop in stops)
        memory = f"peak {peak:.0f} MiB, {peak - floor:.0f} above imports"
        print(f"  {tool:12s} product/gradient {spread(ratios)}{goal}; {memory}; clock/processor time up to {busy:.2f}")


def show_trajectory(part: dict[str, Any]) -> None:
    """Costs a snapshot, at the snapshots where the peers were measured too."""
    rows, gradient = part["snapshots"], part["gradient_seconds"]
    print(f"\n{len(rows)} consecutive snapshots at {part['shape']}; one gradient {gradient:.3f} s")
    tracked = [row[OURS]["seconds"] for row in rows]
    products = spread([row[OURS]["products"] for row in rows], "{:.0f}")
    gradients = sum(tracked) / len(tracked) / gradient
    print(f"  {OURS}, tracked: {spread(tracked)} s, {products} products, {gradients:.1f} gradients a snapshot")
    checked = [row for row in rows if row["truth"] is not None]
    for row in checked:
        own = f"{row[OURS]['seconds']:.2f} s, error {row[OURS]['error']:.1e}"
        others = [f"from scratch {row[f'{OURS}, from scratch']['seconds']:.2f}"]
        others += [
            f"{name} {stop} {seconds:.2f}" for stop in STOPS for name, seconds in peer_seconds(row, stop).items()
        ]
        print(f"  step {row['step']:3d} truth {row['truth']:9.5g}: {own}; {', '.join(others)}")
    for stop in STOPS:
        best = [min(found.values()) for row in checked if (found := peer_seconds(row, stop))]
        if best:
            ratio = statistics.mean(best) / statistics.mean(tracked)
            goal = f"goal {TRAJECTORY_GOAL:g}"
            print(f"  best peer ({stop}) {statistics.mean(best):.2f} s a snapshot, {ratio:.1f} times ours ({goal})")


def peer_seconds(row: dict[str, Any], stop: str) -> dict[str, float]:
    """By peer, where it has an answer at this stop."""
    return {name: row[name][stop]["seconds"] for name in PEERS if name in row and row[name].get(stop)}


def show_tiny_run(part: dict[str, Any]) -> None:
    """The cost of every snapshot beside that of the steps before it."""
    print(f"\n{part['settings']['max_steps']} steps of tiny; probe {part['probe']}; tol {part['tol']}")
    for row, steps in zip(part["snapshots"], [0.0, *part["seconds_of_the_steps_between_snapshots"]], strict=False):
        print(f"  step {row['step']:4d} {row['value']:10.4g} {row['num_matvecs']:4d} products {row['seconds']:6.2f} s; "
              f"the steps before it {steps:.2f} s")  # fmt: skip
    seconds, whole, steps = (part[key] for key in ("sharpness_seconds", "training_seconds", "step_seconds"))
    print(f"  sharpness {seconds:.1f} s: {seconds / whole:.2f} of the training's {whole:.1f} s (goal 1), "
          f"{seconds / steps:.2f} of the {steps:.1f} s in its steps alone")  # fmt: skip
