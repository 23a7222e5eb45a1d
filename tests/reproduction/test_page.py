"""The page of the documentation and the dashboard's table: from packed results, and up to date."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from landscape.errors import StoreError
from landscape.reproduction import names, read_results
from landscape.reproduction.page import page
from landscape.reproduction.results import TABLE, Result, verdicts, write_result, write_table
from tests.command_line import invoke
from tests.reproduction.builders import record

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "experiments" / "results"


def result(**changes: object) -> Result:
    losses = {"final_eval": 1.0, "p_value": 0.6, "q_value": 0.6, "rise": 0.1, "task": "gsm8k"}
    runs = [
        record(variant, seed, rank=rank, place={"rank": rank}, **{**losses, "final_eval": 1.0 + seed - better})
        for variant, better in (("LoRA", 0.0), ("LoRA-MGPO", 0.1))
        for seed in range(2)
        for rank in (16, 128)
    ]
    values = {
        "experiment": "mgpo2", "scale": "cpu", "about": "A small model.", "planned": 8, "runs": runs,
        "settings": {"model": "smollm2-135m", "task": "gsm8k", "max_steps": 100, "learning_rate": 5e-3},
        "grid": {"rank": [16, 128]}, "environment": {"device": "cpu", "torch": "2.13.0"},
    }  # fmt: skip
    return Result(**{**values, **changes})  # type: ignore[arg-type]


def test_the_committed_page_and_table_are_current() -> None:
    """`python experiments/build_reproduction.py` writes both."""
    results = read_results(RESULTS)
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert text == page(results, RESULTS, "../experiments/results")
    table = ROOT / "experiments" / TABLE
    assert table.is_file() == bool(results)


def test_the_committed_table_is_the_results(tmp_path: Path) -> None:
    if results := read_results(RESULTS):
        write_table([row for one in results for row in verdicts(one)], tmp_path / TABLE)
        assert (tmp_path / TABLE).read_text() == (ROOT / "experiments" / TABLE).read_text()


def test_committed_verdicts_follow_from_their_runs() -> None:
    for path in sorted(RESULTS.glob("*-*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert [row.plain() for row in verdicts(Result.from_plain(stored))] == stored["rows"], path.name
        assert path.stat().st_size < 500_000


def test_the_page_says_what_was_run_and_what_came_out(tmp_path: Path) -> None:
    write_result(result(figures=("mgpo2-cpu.png", "mgpo2-cpu.svg")), tmp_path)
    (tmp_path / "mgpo2-cpu.png").touch()
    text = page(read_results(tmp_path), tmp_path, "results")
    assert "## LoRA-MGPO, Figure 2: Training loss" in text
    assert "![Training loss of LoRA, LoRA-MGPO and full fine-tuning by rank, cpu scale](results/mgpo2-cpu.png)" in text
    assert "`learning_rate` 0.005" in text
    assert "| LoRA-MGPO ends at a lower held-out loss, nats | – | -0.1 ± " in text
    assert "**undecided**" in text
    assert "2 seeds: no paired test can give a p-value below 0.5" in text
    for name in names():
        assert f"| `{name}` |" in text
    # In words, without the units of the table.
    assert "- **LoRA-MGPO, Figure 2** (cpu: smollm2-135m, gsm8k, 100 steps, 2 seeds). Not confirmed: LoRA's" in text
    assert "LoRA-MGPO ends at a lower training loss; LoRA-MGPO ends at a lower held-out loss; full fine-" in text
    # What the paper says stands beside what was run.
    assert "`learning_rate` 0.005 (paper 0.0005)" in text
    assert "`max_steps` 100 (paper 3125)" in text
    assert "**Notes.** Stated: LLaMA-2-7B, MetaMathQA" in text
    # A figure that is not there is not linked.
    (tmp_path / "mgpo2-cpu.png").unlink()
    assert "![" not in page(read_results(tmp_path), tmp_path, "results")


def test_what_a_scale_leaves_out_is_said_and_not_judged(tmp_path: Path) -> None:
    text = page([result(experiment="mgpo3")], tmp_path, ".")
    assert "Not run at this scale, so not judged: Full FT." in text
    quantities = [row.quantity for row in verdicts(result(experiment="mgpo-table2"))]
    # There are no scores in these runs, and none of rank 128.
    assert quantities == ["LoRA-MGPO has a lower held-out loss than LoRA, nats"]


@pytest.mark.parametrize(("rates", "rows"), [((1e-3,), 2), ((1e-3, 3e-3), 4)])
def test_best_rates_are_asked_where_there_are_several(rates: tuple[float, ...], rows: int) -> None:
    runs = [
        record(variant, seed, learning_rate=rate, width=1.0, final_eval=1.0)
        for variant in ("LoRA", "LoRA-MGPO")
        for seed in range(2)
        for rate in rates
    ]
    quantities = [row.quantity for row in verdicts(result(experiment="flatness", runs=runs))]
    assert sum(quantity.startswith("LoRA-MGPO is flatter") for quantity in quantities) == rows


def test_every_method_at_its_best_rate_and_at_a_shared_one(tmp_path: Path) -> None:
    losses = {"LoRA": {1e-3: 0.5, 1e-2: 0.9}, "LoRA-MGPO": {1e-3: 0.7, 1e-2: 0.4}, "PiSSA": {1e-4: 0.6, 1e-3: 0.3}}
    runs = [
        record(variant, seed, learning_rate=rate, task="sst2", final_eval=loss + 0.1 * seed, lambda_max=1000 * rate)
        for variant, found in losses.items()
        for rate, loss in found.items()
        for seed in range(1 if variant == "PiSSA" else 2)
    ]
    text = page([result(experiment="flatness", runs=runs)], tmp_path, ".")
    best, fixed = text.split("All at 0.001:")
    assert "| method (seeds) | learning rate | held-out loss, nats | λmax |" in best
    assert "| LoRA (2) | 0.001 | 0.55 ± 0.071 | 1 ± 0 |" in best
    assert "| LoRA-MGPO (2) | 0.01 | 0.45 ± 0.071 | 10 ± 0 |" in best
    assert "| PiSSA (1) | 0.001 | 0.3 | 1 |" in best
    assert "| LoRA-MGPO (2) | 0.001 | 0.75 ± 0.071 | 1 ± 0 |" in fixed
    assert "2 seeds (1 of PiSSA): no paired test" in text
    assert "| method (seeds) |" not in page([result()], tmp_path, ".")


def test_the_papers_gain_is_over_the_same_tasks() -> None:
    def gain(task: str) -> float | None:
        runs = [record(v, seed, task=task, score=70.0 + seed) for v in ("LoRA", "LoRA-GGPO") for seed in range(2)]
        rows = {row.quantity: row for row in verdicts(result(experiment="ggpo-table1", runs=runs))}
        return rows["LoRA-GGPO scores higher than LoRA, points"].paper_value

    assert gain("mrpc") == pytest.approx(86.78 - 68.38)
    assert gain("arithmetic") is None


def test_runs_that_serve_twice_are_counted(tmp_path: Path) -> None:
    text = page([result(), result(experiment="mgpo1")], tmp_path, ".")
    assert "The rows are not independent: 8 of 8 runs serve more than one experiment." in text
    assert "not independent" not in page([result()], tmp_path, ".")


def test_runs_that_end_worse_than_they_began_are_counted(tmp_path: Path) -> None:
    def run(variant: str, seed: int, end: float) -> Any:
        return record(variant, seed, place={"rank": 8}, final_eval=end, curve=((0, 2.0), (50, 5.0), (100, end)))

    diverged = replace(run("LoRA", 1, math.nan), state="diverged")
    runs = [run("LoRA", 0, 3.0), diverged, run("LoRA-MGPO", 0, 1.0), run("LoRA-MGPO", 1, 2.5)]
    text = page([result(runs=runs)], tmp_path, ".")
    assert text.count("before training (LoRA at rank 8 2 of 2; LoRA-MGPO at rank 8 1 of 2): training them") == 2
    assert "before training" not in page([result()], tmp_path, ".")
    many = [replace(run("LoRA", seed, 3.0), place={"rank": 2**rank}) for rank in range(7) for seed in range(2)]
    assert "before training (LoRA 14 of 14): training" in page([result(runs=many)], tmp_path, ".")


def test_scores_of_another_scale_stand_in_one_table(tmp_path: Path) -> None:
    runs = [record(v, seed, task="mrpc", score=70.0 + seed) for v in ("LoRA", "LoRA-GGPO") for seed in range(2)]
    scored = result(experiment="ggpo-table1", runs=runs)
    text = page([scored], tmp_path, ".")
    assert "| LoRA | 70.50 (2); paper 68.38 |" in text
    assert "not comparable** |" not in text.split("## Overview")[1]
    assert [row.quantity for row in verdicts(scored)].count("score of LoRA, mean over mrpc") == 1


def test_the_page_says_where_a_classifier_answers_alike(tmp_path: Path) -> None:
    runs = [record("LoRA", seed, task="mrpc", metrics={"matthews_correlation": 0.2 * seed}) for seed in range(3)]
    text = page([result(runs=runs)], tmp_path, ".")
    assert "In 1 of 3 runs on mrpc every held-out example got the same answer" in text
    assert "same answer" not in page([result()], tmp_path, ".")


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page([], RESULTS, "results")
    lines = [line for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    assert len(lines) == 2
    monkeypatch.chdir(tmp_path)
    for line in lines:
        result = invoke(*shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert (tmp_path / "out/reproduce/reproduction/mgpo2-smoke.png").is_file()


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    first = result()
    path = write_result(first, tmp_path)
    [again] = read_results(tmp_path)
    assert write_result(again, tmp_path).read_bytes() == path.read_bytes()
    assert [row.plain() for row in verdicts(again)] == [row.plain() for row in verdicts(first)]
    assert first.sentence() == "cpu: smollm2-135m, gsm8k, 100 steps, 2 seeds"
    assert result(planned=12).sentence().endswith("8 of 12 runs")


@pytest.mark.parametrize("content", ["{", "[]", '{"experiment": "mgpo2"}'])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mgpo2-cpu.json").write_text(content)
    with pytest.raises(StoreError, match=r"mgpo2-cpu.json is no result of landscape reproduce"):
        read_results(tmp_path)


def test_the_dashboard_reads_the_table(tmp_path: Path) -> None:
    from app.verdicts import COLUMNS, read_verdicts

    write_table(verdicts(result()), tmp_path / TABLE)
    table = read_verdicts(tmp_path / TABLE)
    assert set(COLUMNS) <= set(table.columns)
    assert set(table["verdict"]) <= {"undecided", "not confirmed"}
