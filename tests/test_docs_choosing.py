"""docs/choosing.md: its commands run, its experiments hold every method, and its tables are those of the results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from landscape.cli import app
from landscape.config import read_yaml
from landscape.config.sweep import SweepConfig
from landscape.methods import METHODS
from landscape.reproduction import load_experiment, read_results

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/choosing.md").read_text()
TABLE_1 = {"full", "lora", "dora", "adalora", "pissa", "rslora", "lora-plus", "lora-ga", "lora-pro", "ggpo", "mgpo"}


def test_the_experiment_holds_every_method_alike() -> None:
    path = ROOT / "experiments/methods-tiny.yaml"
    found = SweepConfig.parse(read_yaml(path)).expand()
    assert {cell.method for cell in found} == set(METHODS)
    for method in METHODS:
        own = [cell for cell in found if cell.method == method]
        rates = {cell.learning_rate for cell in own}
        assert len(rates) >= 2
        assert {(cell.seed, cell.learning_rate) for cell in own} == {(s, r) for s in (0, 1) for r in rates}
    assert f"{len(found)} runs" in path.read_text()


def test_the_rows_of_table_1_are_one_experiment() -> None:
    cells = [cell for name in ("ggpo-table1", "mgpo-table1") for cell in load_experiment(name).cells("cpu")]
    seeds = {(cell.config.method, cell.config.seed) for cell in cells if cell.config.task == "mrpc"}
    assert seeds == {(method, seed) for method in TABLE_1 for seed in (0, 1)}


def test_the_figures_hold_every_method_twice() -> None:
    for name, count in (("methods-tiny", len(METHODS)), ("methods-minilm", len(TABLE_1))):
        table = pd.read_csv(ROOT / "docs/images" / f"{name}.csv").dropna(subset=["value"])
        assert (table["method"].nunique(), set(table["n"])) == (count, {2}), name


def test_the_scores_at_tuned_rates_are_the_committed_ones() -> None:
    [found] = [one for one in read_results(ROOT / "experiments/results") if one.experiment == "lr-tuning"]
    text = " ".join(PAGE.split())

    def score(variant: str, rate: float) -> str:
        own = [run.score for run in found.runs if (run.variant, run.learning_rate) == (variant, rate)]
        return f"{sum(own) / len(own):.2f}"

    assert f"LoRA-Pro at 3e-4 scores {score('LoRA-Pro', 3e-4)} %, AdaLoRA at 1e-2 {score('AdaLoRA', 1e-2)}" in text
    assert f"LoRA+ at 3e-4 {score('LoRA+', 3e-4)} and LoRA-GA" in text
    assert f"LoRA-GA at 1e-4, the lowest tried, {score('LoRA-GA', 1e-4)}, where" in text
    assert f"where LoRA at 1e-3 has {score('LoRA', 1e-3)} (six seeds; the others two)" in text
    *others, last = (score(name, 1e-3) for name in ("LoRA-Pro", "AdaLoRA", "LoRA+", "LoRA-GA"))
    assert f"the four have {', '.join(others)} and {last}" in text


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    lines = [line for block in re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    assert len(lines) >= 2
    for line in lines:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code) == ("landscape", 0), f"{line}\n{result.output}\n{result.exception!r}"
    assert (tmp_path / "out/figures/methods.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out/figures/methods.csv")) > 10
