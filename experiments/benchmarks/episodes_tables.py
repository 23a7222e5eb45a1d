"""Prints the tables of `docs/episodes.md` from results of the benchmark and of the watch's, or writes them there.

    python experiments/benchmarks/episodes_tables.py results/episodes-test.json results/watch-test.json
    python experiments/benchmarks/episodes_tables.py results/*-test.json --docs docs/episodes.md

In the page a line ``<!-- table NAME -->`` stands before each of them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from landscape.episodes.benchmark_tables import AS_IT_IS, NO_ERRORS, OURS
from landscape.episodes.goals import goals

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
    names = ordered(rows, "group")
    at = {(row["detector"], row["group"]): row for row in rows}
    body = [[f"{NAME}, p ≤ 0.05", *(f"{at[OURS, c]['rate']:.4f} (≤ {at[OURS, c]['upper']:.3f})" for c in names)]]
    body += [
        [name, *(f"{at[name, c]['rate']:.2f}; tuned {at[name, c]['rate_tuned']:.3f}" for c in names)]
        for name in ordered(rows, "detector")[1:]
    ]
    return markdown(["detector", *(c.replace("_", " ") for c in names)], body)


def cell(row: dict[str, Any]) -> str:
    """Amplitude and duration, and what is unusual."""
    kind = {1.0: "", 0.5: ", half lost", 0.0: ", never back"}[row["recovered"]]
    ends = dict.fromkeys((min(row["lengths"], default=0), max(row["lengths"], default=0)))
    points = f"; {' to '.join(map(str, ends))} points" if row["lengths"] else ""
    several = f", ×{row['episodes']}" if row["episodes"] > 1 else ""
    return f"{row['amplitude']:g}, {100 * row['duration']:g} %{kind}{several}{points}"


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


def of_family(rows: Rows, family: str) -> Rows:
    """The rows of one kind of curves."""
    return [row for row in rows if row["family"] == family]


def other_false_alarms(rows: Rows) -> str:
    """Ours on gradient norms and evaluations, on the raw curve and otherwise; the rivals tuned, over all groups."""
    body = []
    for family, other, said in (
        ("gradient norm", AS_IT_IS, ("its logarithm", "as it is")),
        ("evaluation", NO_ERRORS, ("standard errors given", "not given")),
    ):
        at = {(row["detector"], row["group"]): row for row in of_family(rows, family)}
        for group in ordered(of_family(rows, family), "group"):
            cells = [f"{said[k]}: {_rate(at[f'{OURS}{suffix}', group])}" for k, suffix in enumerate(("", other))]
            body.append([family, group.replace("_", " "), f"{at[OURS, group]['curves']:,}", *cells])
    return markdown(["kind", "group", "curves", NAME, "and"], body)


def _rate(row: dict[str, Any]) -> str:
    return f"{row['rate']:.4f} (≤ {row['upper']:.3f})"


def other_sensitivity(rows: Rows) -> str:
    """One line a cell: ours both ways, and the best of the rivals; † where ours is significantly behind it."""
    body = []
    for family, other in (("gradient norm", AS_IT_IS), ("evaluation", NO_ERRORS)):
        mine = of_family(rows, family)
        cells: Rows = [row | {"cell": cell(row) if row["amplitude"] != "all" else "all"} for row in mine]
        for name in ordered(cells, "cell"):
            here = {row["detector"]: row for row in cells if row["cell"] == name}
            best = max((row for key, row in here.items() if not key.startswith(OURS)), key=lambda row: row["f1"])
            dagger = "†" if best["behind_high"] < 0 else ""
            body.append(
                [
                    family, name, f"**{here[OURS]['f1']:.3f}**",
                    f"{here[OURS]['precision']:.3f} / {here[OURS]['recall']:.3f}",
                    f"{here[f'{OURS}{other}']['f1']:.3f}", f"{best['f1']:.3f}{dagger} ({best['detector']})",
                ]
            )  # fmt: skip
    head = ["kind", "amplitude, duration", NAME, "precision / recall", "as it is; without errors"]
    return markdown([*head, "best rival, tuned"], body)


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


def false_warnings(rows: Rows) -> str:
    """The watch's false alarms by what is logged and what confounds."""
    names = ordered(rows, "confounder")
    body = []
    for every in ordered(rows, "logging_steps"):
        cells = []
        for name in names:
            told = {row["told"]: row for row in rows if (row["logging_steps"], row["confounder"]) == (every, name)}
            untold = f"; not told {told[False]['rate']:.3f}" if False in told else ""
            cells.append(f"{told[True]['rate']:.3f} (≤ {told[True]['upper']:.3f}){untold}")
        body.append([str(every), *cells])
    return markdown(["`logging_steps`", *(name.replace("_", " ") for name in names)], body)


def delays(rows: Rows) -> str:
    """Episodes noticed before they ended, and the median delay as a share of the episode."""
    shown = [row | {"cell": f"{row['amplitude']:g}, {100 * row['duration']:g} %"} for row in rows]
    names = ordered(shown, "cell")
    at = {(row["logging_steps"], row["cell"]): row for row in shown}
    body = [
        [str(every), *(f"{at[every, n]['noticed']:.2f}, {100 * at[every, n]['delay']:.0f} %" for n in names)]
        for every in ordered(shown, "logging_steps")
    ]
    return markdown(["`logging_steps`", *names], body)


def real_runs(rows: Rows) -> str:
    """Real runs: what is found of those with a rebound, and said of those without."""
    body = [
        [
            row["detector"] if row["detector"] != OURS else NAME, "known" if row["warmup_steps"] else "not known",
            f"{row['found']} of {row['with']} ({row['placed']})", f"{row['false']} of {row['without']}",
            f"{row['precision']:.2f} / {row['recall']:.2f}", f"{row['auc']:.3f}", str(row["unclear"]),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["detector", "warm-up", "rebounds found (placed)", "false", "precision / recall", "AUC", "unclear"]
    return markdown(head, body)


def goal_table(whole: dict[str, Any]) -> str:
    """What was aimed at and what was measured."""
    body = [[goal.name, goal.measured, goal.bound, "yes" if goal.met else "**no**"] for goal in goals(whole)]
    return markdown(["goal", "measured", "bound", "met"], body)


PARTS = {
    "false_positives": false_alarms, "sensitivity": sensitivity, "other_false_positives": other_false_alarms,
    "other_sensitivity": other_sensitivity, "calibration": p_values, "semi_real": controls, "speed": speed,
    "real": real_runs,
    "false_alarms": false_warnings, "delays": delays,
}  # fmt: skip
"""Tables by the part of a result that they show."""


def tables(results: Sequence[Path]) -> dict[str, str]:
    """All tables that the results have, by name."""
    whole: dict[str, Any] = {}
    for path in results:
        whole |= json.loads(path.read_text(encoding="utf-8"))
    found = {name: table(whole[name]) for name, table in PARTS.items() if whole.get(name)}
    return {"goals": goal_table(whole), **found}


def filled(text: str, found: dict[str, str]) -> str:
    """The page with its tables replaced."""
    for name, table in found.items():
        pattern = re.compile(rf"(<!-- table {name} -->\n\n)(?:\|.*\n)*\n?")
        text = pattern.sub(lambda match, table=table: match.group(1) + table + "\n", text)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables that the results have, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--docs", type=Path, help="page to write them into")
    options = parser.parse_args(arguments)
    found = tables(options.results)
    if options.docs:
        options.docs.write_text(filled(options.docs.read_text(encoding="utf-8"), found), encoding="utf-8")
        return
    for name, table in found.items():
        print(f"\n{name}\n\n{table}")


if __name__ == "__main__":
    main()
