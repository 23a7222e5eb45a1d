"""What is asked of lm-eval and what is kept of its answer, by a stand-in."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from landscape.evaluation import stored_scores
from landscape.evaluation.harness import read_scores
from landscape.store import Run
from tests.command_line import invoke, payload
from tests.evaluation.harness_stub import RESULTS, install


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of the stand-in."""
    return install(monkeypatch)


def test_the_scores_of_an_answer() -> None:
    first, second = read_scores(RESULTS)
    assert (first.name, first.value, first.standard_error, first.num_examples) == ("arc_easy/acc", 0.25, 0.1, 4)
    assert first.details == {"version": 1.0}
    assert (second.name, second.value, second.num_examples) == ("gsm8k/exact_match:strict-match", 0.5, 2)
    assert math.isnan(second.standard_error)


def test_snapshots_are_asked_once(store: Path, run: Run, asked: list[dict[str, Any]]) -> None:
    arguments = ["evaluate", store, "--harness", "arc_easy, gsm8k", "--steps", "0,2", "--limit", 4, "--num-fewshot", 1]
    result = invoke(*arguments, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert "lm-eval: 2 tasks at 2 snapshots of 1 runs" in result.stderr
    assert "step 2: arc_easy/acc 0.25 ± 0.1 (4 problems)" in result.stdout
    assert [(call["tasks"], call["limit"], call["num_fewshot"]) for call in asked] == [
        (["arc_easy", "gsm8k"], 4, 1)
    ] * 2
    assert {asked[0][f"{name}_seed"] for name in ("random", "numpy_random", "torch_random", "fewshot_random")} == {7}
    assert "confirm_run_unsafe_code" not in asked[0]
    given = asked[0]["model"].options
    assert (given["backend"], given["batch_size"]) == ("causal", run.config.per_device_eval_batch_size)
    assert given["pretrained"].training is False
    assert len(stored_scores(run)) == 4
    again = payload(invoke(*arguments, "--seed", 7, "--json"))
    assert len(asked) == 2
    assert [row["value"] for row in again["results"][run.id]] == [0.25, 0.5] * 2


USAGE = [
    (["arc_eazy"], "lm-eval knows no task 'arc_eazy'; `lm-eval ls tasks` lists them. Did you mean 'arc_easy'?"),
    ([","], "name at least one task"),
    (["gsm8k", "--limit", "0"], "--limit: 0; allowed: at least 1"),
    (["gsm8k", "--num-fewshot", "-1"], "--num-fewshot: -1; allowed: at least 0"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_usage(trained_store: Path, asked: list[dict[str, Any]], arguments: list[str], message: str) -> None:
    result = invoke("evaluate", trained_store, "--harness", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not asked


def test_without_lm_eval_it_says_how_to_get_it(trained_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = invoke("evaluate", trained_store, "--harness", "arc_easy")
    assert result.exit_code == 2
    assert "lm-eval is not installed; pip install 'lora-landscape[lm-eval]'" in result.stderr


def test_an_lm_eval_without_its_dependencies(
    trained_store: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules["lm_eval.tasks"], "TaskManager")
    result = invoke("evaluate", trained_store, "--harness", "arc_easy")
    assert result.exit_code == 2
    assert "lm-eval cannot be imported (cannot import name 'TaskManager'" in result.stderr
