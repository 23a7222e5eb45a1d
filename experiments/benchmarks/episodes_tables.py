"""Prints the tables of `docs/episodes.md` from a result of the episode benchmark.

python experiments/benchmarks/episodes_tables.py results/episodes-test.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OURS = "landscape"
NAME = "`detect_episodes`"

Rows = list[dict[str, Any]]


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ordered(rows: Rows, key: str) -> list[Any]:
    """Values of a key in the order of their first row."""
    return list(dict.fromkeys(row[key] for row in rows))


def false_alarms(rows: Rows) -> str:
    """Rates per confounder, documented and tuned."""
    names = ordered(rows, "confounder")
    at = {(row["detector"], row["confounder"]): row for row in rows}
    body = [[f"{NAME}, p ≤ 0.05", *(f"{at[OURS, c]['rate']:.4f} (≤ {at[OURS, c]['upper']:.3f})" for c in names)]]
    body += [
        [name, *(f"{at[name, c]['rate']:.2f}; tuned {at[name, c]['rate_tuned']:.3f}" for c in names)]
        for name in ordered(rows, "detector")[1:]
    ]
    return markdown(["detector", *(c.replace("_", " ") for c in names)], body)


def cell(row: dict[str, Any]) -> str:
    """Amplitude and duration, and what is unusual."""
    kind = {1.0: "", 0.5: ", half lost", 0.0: ", never back"}[row["recovered"]]
    return f"{row['amplitude']:g}, {100 * row['duration']:g} %{kind}" + (
        f", ×{row['episodes']}" if row["episodes"] > 1 else ""
    )


def sensitivity(rows: Rows) -> str:
    """One line a cell: ours in full, the rivals' F1; † where ours is significantly behind."""
    cells = [row for row in rows if row["amplitude"] != "all"]
    names = ordered(cells, "detector")
    body = []
    for name in ordered([row | {"cell": cell(row)} for row in cells], "cell"):
        mine = {row["detector"]: row for row in cells if cell(row) == name}
        ours = mine[OURS]
        body.append(
            [name, f"**{ours['f1']:.3f}**", f"{ours['precision']:.3f} / {ours['recall']:.3f}", f"{ours['f1_half']:.3f}"]
            + [f"{100 * ours['onset_error']:.2f}"]
            + [f"{mine[n]['f1']:.3f}" + ("†" if mine[n]["behind_high"] < 0 else "") for n in names[1:]]
        )
    whole = {row["detector"]: row for row in rows if row["amplitude"] == "all"}
    body.append(
        ["all", f"**{whole[OURS]['f1']:.3f}**", f"{whole[OURS]['precision']:.3f} / {whole[OURS]['recall']:.3f}", "", ""]
        + [f"{whole[n]['f1']:.3f}" + ("†" if whole[n]["behind_high"] < 0 else "") for n in names[1:]]
    )
    return markdown(
        ["amplitude, duration", NAME, "precision / recall", "F1, IoU ≥ 0.5", "onset error, %", *names[1:]], body
    )


def p_values(rows: Rows) -> str:
    """P(p ≤ α) and the tests of uniformity."""
    levels = ("0.01", "0.05", "0.1")
    body = [
        [row["noise"].replace("_", " "), row["trend"], f"{row['curves']:,}"]
        + [f"{row[f'p<={a}']:.4f}" + ("" if row[f"within {a}"] else " ✗") for a in levels]
        + [f"{row['ks_distance']:.3f} (p {row['ks_p']:.2g})", f"{row['ks_excess']:.3f} (p {row['ks_excess_p']:.2g})"]
        for row in rows
    ]
    return markdown(["noise", "trends", "curves", *(f"P(p ≤ {a})" for a in levels), "KS", "KS, excess"], body)


def controls(rows: Rows) -> str:
    """Recall raw and adjusted, at p ≤ 0.05 and at equal rate."""
    kinds = ("raw", "base", "sibling")
    body = [
        [
            f"{row['amplitude']:g}",
            *(f"{row[k]:.2f}; {row[f'{k}, equal rate']:.2f}" for k in kinds),
            f"{row['false, sibling has it']:.2f}",
        ]
        for row in rows[:-1]
    ]
    half = (rows[-1][f"{k}, equal rate"] for k in kinds)
    body.append(["half found at", *("" if value is None else f"{value:.2g}" for value in half), ""])
    return markdown(["amplitude", "raw", "by base", "by sibling", "no episode, but the sibling has one"], body)


def speed(rows: Rows) -> str:
    """Milliseconds without and with an episode."""
    points = ordered(rows, "points")
    times = [" / ".join(f"{row['ms']:.0f}" for row in rows if row["points"] == n) for n in points]
    return markdown(["points", *(f"{n:,}" for n in points)], [["ms", *times]])


TABLES = {
    "false_positives": false_alarms, "sensitivity": sensitivity, "calibration": p_values, "semi_real": controls,
    "speed": speed,
}  # fmt: skip


def main() -> None:
    """Print all tables that the result has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    result = json.loads(parser.parse_args().result.read_text(encoding="utf-8"))
    for name, table in TABLES.items():
        if result.get(name):
            print(f"\n{name}\n\n{table(result[name])}")


if __name__ == "__main__":
    main()
