"""Draws the episode benchmark's result: false alarms, sensitivity, p-values, semi-real curves.

python experiments/benchmarks/episodes_figure.py results/episodes-test.json -o docs/images/episodes-benchmark.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from landscape.plots.style import GRID, INK, MUTED

OURS, ALPHA = "landscape", 0.05
COLORS = {
    OURS: "#0072b2", "find_peaks": "#e69f00", "find_peaks, smoothed": "#d55e00", "OLMo spike score": "#cc79a7",
    "EMA + argrelextrema": "#009e73", "ruptures": "#882255",
}  # fmt: skip
MARKERS = dict(zip(COLORS, "osDv^P", strict=True))
CONTROLS = {"raw": ("#d55e00", "o"), "base": ("#009e73", "s"), "sibling": ("#0072b2", "D")}

Rows = list[dict[str, Any]]


def style(detector: str) -> dict[str, Any]:
    """Color, marker and name of one detector."""
    label = "detect_episodes" if detector == OURS else detector
    return {"color": COLORS[detector], "marker": MARKERS[detector], "label": label, "markersize": 5}


def false_alarms(axes: Axes, rows: Rows) -> None:
    """Rates per confounder at documented settings; ours with its interval."""
    names = list(dict.fromkeys(row["group"] for row in rows))
    at = {name: i for i, name in enumerate(names)}
    for k, detector in enumerate(dict.fromkeys(row["detector"] for row in rows)):
        mine = [row for row in rows if row["detector"] == detector]
        x = np.array([at[row["group"]] for row in mine]) + 0.1 * (k - 2.5)
        axes.plot(x, [row["rate"] for row in mine], linestyle="none", **style(detector))
        if detector == OURS:
            axes.vlines(x, [r["low"] for r in mine], [r["upper"] for r in mine], color=COLORS[OURS], linewidth=2)
    axes.axhline(ALPHA, color=INK, linewidth=0.8, linestyle="--")
    axes.text(len(names) - 0.45, ALPHA * 1.1, "α", color=INK, ha="right", va="bottom", fontsize=9)
    axes.set_yscale("symlog", linthresh=0.05)
    axes.set_yticks([0, 0.05, 0.1, 0.2, 0.5, 1], ["0", "0.05", "0.1", "0.2", "0.5", "1"])
    axes.set_ylim(-0.004, 1.15)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set_title("False alarms: curves without an episode, documented settings", fontsize=10, loc="left")
    axes.set_ylabel("share of curves with a detection")


def cell_name(row: dict[str, Any]) -> str:
    """Amplitude and duration of a cell, and what is unusual of it."""
    extra = f"\n×{row['episodes']}" if row["episodes"] > 1 else ""
    kind = {1.0: extra, 0.5: "\npartial", 0.0: "\nnever\nback"}[row["recovered"]]
    return f"{row['amplitude']:g}\n{100 * row['duration']:g} %{kind}"


def sensitivity(axes: Axes, rows: Rows) -> None:
    """F1 per cell at equal false-positive rate."""
    rows = [row for row in rows if row["amplitude"] != "all"]
    names = list(dict.fromkeys(cell_name(row) for row in rows))
    for detector in dict.fromkeys(row["detector"] for row in rows):
        mine = [row for row in rows if row["detector"] == detector]
        width = 2.2 if detector == OURS else 1
        axes.plot(range(len(mine)), [row["f1"] for row in mine], linewidth=width, **style(detector))
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.set_title(
        "Sensitivity at a false-positive rate of 0.05: amplitude in noise units, duration", fontsize=10, loc="left"
    )
    axes.set_ylabel("F1 (IoU ≥ 0.3)")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.19), ncol=3, frameon=False)


def p_values(axes: Axes, rows: Rows) -> None:
    """P(p ≤ a) against a on curves without an episode."""
    rows = [row for row in rows if row["own"] or row["trend"] == "all"]
    a = np.geomspace(0.006, 1, 60)
    error = 2 * np.sqrt(a * (1 - a) / rows[0]["curves"])
    axes.fill_between(a, np.maximum(a - error, 1e-4), a + error, color=GRID, linewidth=0)
    axes.plot(a, a, color=INK, linewidth=0.8, linestyle="--")
    for k, row in enumerate(rows):
        share = np.arange(1, 200) / 200
        color = plt.get_cmap("tab10")(k)
        dash = "-" if row["own"] else (0, (3, 1))
        axes.plot(
            row["quantiles"], share, color=color, linestyle=dash, linewidth=1.4, label=row["noise"].replace("_", " ")
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.008, 1)
    axes.set_ylim(0.005, 1.1)
    axes.set_xlabel("a")
    axes.set_ylabel("share of curves with p ≤ a")
    axes.set_title(f"p-values without an episode, {rows[0]['curves']:,} curves each; ± 2 SE", fontsize=10, loc="left")
    axes.legend(fontsize=8, title="solid: in the null model", title_fontsize=8, loc="lower right")


def controls(axes: Axes, rows: Rows) -> None:
    """Recall over amplitudes at p ≤ α, raw and adjusted, with the false-positive rates."""
    null, *curves = (row for row in rows if isinstance(row["amplitude"], float | int))
    x = [row["amplitude"] for row in curves]
    for kind, (color, marker) in CONTROLS.items():
        label = ("raw" if kind == "raw" else f"adjusted by {kind}") + f" (without a rebound: {null[kind]:.2f})"
        axes.plot(x, [row[kind] for row in curves], color=color, marker=marker, markersize=5, label=label)
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [f"{v:g}" for v in x])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("amplitude, in the raw curve's noise units")
    axes.set_ylabel("recall (IoU ≥ 0.3)")
    title = f"Real residuals with injected rebounds, p ≤ {ALPHA:g}, {curves[0]['curves']} curves each"
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8, loc="upper left")


def main() -> None:
    """Draw one result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text(encoding="utf-8"))
    figure, grid = plt.subplots(2, 2, figsize=(12.5, 8.4), layout="constrained")
    false_alarms(grid[0, 0], result["false_positives"])
    sensitivity(grid[0, 1], result["sensitivity"])
    p_values(grid[1, 0], result["calibration"])
    controls(grid[1, 1], result["semi_real"])
    for axes in grid.flat:
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
