"""The numbers of docs/episodes.md are those of the committed results, and its code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from landscape.episodes.goals import goals
from tests.benchmark_scripts import BENCHMARKS, load_benchmark

PAGE = Path(__file__).resolve().parents[2] / "docs" / "episodes.md"
RESULTS = [BENCHMARKS / "results" / name for name in ("episodes-test.json", "watch-test.json")]


def test_the_tables_are_those_of_the_committed_results() -> None:
    script, text = load_benchmark("episodes_tables"), PAGE.read_text()
    found = script.tables(RESULTS)
    assert sorted(re.findall(r"<!-- table (\w+) -->", text)) == sorted(found)
    assert script.filled(text, found) == text
    broken = text.replace("| watch: runs", "| watch: rums")
    assert broken != text
    assert script.filled(broken, found) == text


def test_every_recorded_count_is_that_of_its_table() -> None:
    result = json.loads(RESULTS[0].read_text())
    counts = result["setting"]["curves"]
    for prefix in ("", "other_"):
        rows = [row for row in result[f"{prefix}false_positives"] if row["group"] != "all"]
        assert {row["curves"] for row in rows} == {counts[f"{prefix}false_positives"]["group"]}
        rows = [row for row in result[f"{prefix}sensitivity"] if row["amplitude"] != "all"]
        assert {row["curves"] for row in rows} == {counts[f"{prefix}sensitivity"]["cell"]}
    family, flat = counts["calibration"]["family"], counts["calibration"]["foreign_flat"]
    assert [row["curves"] for row in result["calibration"]] == [family] * 7 + [flat] * 4
    assert {row["curves"] for row in result["semi_real"][1:-1]} == {counts["semi_real"]["amplitude"]}
    assert result["semi_real"][0]["curves"] == counts["semi_real"]["without"]


def test_goals_that_are_missed_are_named_as_missed() -> None:
    result = json.loads(RESULTS[0].read_text()) | json.loads(RESULTS[1].read_text())
    known = goals(result)
    assert len(known) >= 15
    text = PAGE.read_text()
    for goal in known:
        assert f"| {goal.name} | {goal.measured} | {goal.bound} | {'yes' if goal.met else '**no**'} |" in text


def test_the_code_runs() -> None:
    [block, *_] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    steps = np.arange(600)
    losses = 2 * np.exp(-steps / 80) + 0.5 * np.exp(-(((steps - 400) / 20) ** 2))
    losses += 0.03 * np.random.default_rng(0).standard_normal(600)
    printed: list[tuple] = []
    session = {"steps": steps, "losses": losses, "rates": np.full(600, 1e-3), "print": lambda *row: printed.append(row)}
    exec(compile(block, "docs/episodes.md", "exec"), session)
    [row] = printed
    assert row[0] == "episode"
    assert 340 < row[1] < row[2] < row[3] < 460
