"""Evaluations of a snapshot: scores of scripted replies, and going on after an interruption."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from landscape.analysis.restored import RestoredRun
from landscape.errors import StoreError, UsageError
from landscape.evaluation import Evaluation, EvaluationSettings, stored_scores
from landscape.evaluation.base import Reply
from landscape.evaluation.generation import Generator
from landscape.evaluation.judge import JudgeError
from landscape.store import Run
from tests.evaluation.benchmarks import ScriptedModel, options
from tests.evaluation.judge_stub import Answer, judge_server


def evaluation(run: Run, sets: Path, metric: str = "gsm8k", **more: Any) -> Evaluation:
    return Evaluation(run, EvaluationSettings(**options(metric, sets, **more)), device="cpu")


def words(n: int) -> str:
    return f"Tom has {n} apples"


WORKED = {
    words(1): "#### 2",
    words(2): "so 4",
    words(3): "#### 7",
    words(4): "#### 8\nQ: more?\nA: #### 9",
    words(5): "-",
}


def test_exact_match_of_scripted_replies(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel(monkeypatch, WORKED)
    (row,) = evaluation(run, sets).at(2)
    assert model.prompts[0] == "Q: Tom has 1 apples and buys 1 more. How many has he?\nA:"
    assert (row["metric"], row["name"], row["step"], row["split"]) == ("gsm8k", "exact_match", 2, "test")
    assert (row["value"], row["num_examples"], row["truncated"]) == (0.6, 5, 0)
    assert row["standard_error"] == pytest.approx((0.6 * 0.4 / 4) ** 0.5)
    assert row["details"] == {"found": {"marked": 3, "last": 1, "none": 1}, "correct": {"marked": 2, "last": 1}}
    assert stored_scores(run) == [row]


def test_replies_that_were_cut_are_counted(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes on to ask itself a question had ended before."""
    texts = iter(["cut", "#### 4", "8\nQ: and", "cut", "done"])
    ScriptedModel(monkeypatch, lambda prompt: Reply(text := next(texts), text != "done"))
    (row,) = evaluation(run, sets).at(2)
    assert row["truncated"] == 3


def test_a_real_model_moves_from_snapshot_to_snapshot(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = RestoredRun.load
    monkeypatch.setattr(RestoredRun, "load", lambda self, step: (loaded.append(step), load(self, step))[1])
    asked = evaluation(run, sets)
    rows = [row for step in (0, 2) for row in asked.at(step)]
    assert loaded == [0, 2]
    assert [row["step"] for row in stored_scores(run)] == [0, 2]
    assert rows[0]["id"] != rows[1]["id"]
    # Nothing is loaded for what is known.
    again = evaluation(run, sets)
    assert [row["value"] for step in (0, 2) for row in again.at(step)] == [row["value"] for row in rows]
    assert loaded == [0, 2]


def transcript(run: Run) -> Path:
    (path,) = run.analysis_dir.glob("evaluation-*.jsonl")
    return path


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_an_interrupted_evaluation_goes_on(
    store: Path, run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """It ends where an uninterrupted one does, samples included, and writes no reply twice."""
    metric, more = "gsm8k", {}
    if temperature:
        metric, more = "humaneval", {"allow_code_execution": True, "samples": 3, "temperature": temperature}
    whole = evaluation(run, sets, metric, **more).at(2)
    path = transcript(run)
    expected = path.read_bytes()
    path.unlink()
    write, calls = Generator.write, itertools.count()

    def interrupted(self: Generator, prompts: list[str], draw: str = "") -> list[Reply]:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return write(self, prompts, draw)

    monkeypatch.setattr(Generator, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluation(run, sets, metric, **more).at(2)
    half = path.read_bytes()
    assert expected.startswith(half)
    path.write_bytes(half + b'{"key": "torn')
    problems = 5 if metric == "gsm8k" else 6
    missing = evaluation(run, sets, metric, **more).missing(2)
    assert (missing.replies, missing.verdicts) == (problems - 2, problems)
    rows = evaluation(run, sets, metric, **more).at(2)
    assert path.read_bytes() == expected
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in whole]


def test_more_problems_extend_what_is_known(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel(monkeypatch, WORKED)
    evaluation(run, sets, limit=3).at(2)
    (row,) = evaluation(run, sets).at(2)
    assert len(model.prompts) == 5
    assert row["num_examples"] == 5
    assert stored_scores(run) == [row]


def test_other_settings_are_another_evaluation(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedModel(monkeypatch, WORKED)
    evaluation(run, sets).at(2)
    evaluation(run, sets, batch_size=5).at(2)  # greedy replies do not depend on their company
    assert len(stored_scores(run)) == 1
    evaluation(run, sets, max_new_tokens=9).at(2)
    assert len(stored_scores(run)) == 2
    assert len(list(run.analysis_dir.glob("evaluation-*.jsonl"))) == 2


def test_a_damaged_line_is_named(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedModel(monkeypatch, WORKED)
    evaluation(run, sets).at(2)
    path = transcript(run)
    path.write_bytes(path.read_bytes().replace(b"so 4", b"so 5"))
    with pytest.raises(StoreError, match=r"evaluation-gsm8k-step2-\w+\.jsonl, line 3: damaged"):
        evaluation(run, sets).at(2)


def test_humaneval_runs_what_was_written(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedModel(monkeypatch, {"def add": "    return a + b", "def first": "    while True: pass"})
    (row,) = evaluation(run, sets, "humaneval", allow_code_execution=True, time_limit=1).at(2)
    assert (row["name"], row["value"], row["num_examples"]) == ("pass@1", 0.5, 2)
    assert row["details"]["outcomes"] == {"passed": 1, "timeout": 1}
    assert {"limits", "interpreter"} <= set(row["details"]["guards"])
    assert (row["settings"]["seconds"], row["settings"]["memory"]) == (1, 1 << 30)


def test_mt_bench_goes_on_where_the_judge_failed(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-secret"
    monkeypatch.setenv("LANDSCAPE_JUDGE_KEY", key)
    model = ScriptedModel(monkeypatch, lambda prompt: Reply(f"reply {prompt.count('Q:')}", False))
    grades = {"81": 6, "111": 3}
    fails = True

    def script(count: int, body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        if "And 2 + 3?" in text and fails:
            return Answer(status=401, body=key.encode())
        return Answer(f"[[{grades['81' if 'line' in text else '111'] + ('reply 2' in text)}]]")

    with judge_server(script) as server:
        judge = {"judge_url": server.url, "judge_model": "gpt"}
        with pytest.raises(JudgeError, match="401"):
            evaluation(run, sets, "mt-bench", **judge).at(2)
        assert len(server.requests) == 4
        fails = False
        rows = evaluation(run, sets, "mt-bench", **judge).at(2)
        assert len(server.requests) == 5
    assert len(model.prompts) == 4
    assert model.prompts[2] == "Q: Write a line.\nA: reply 1\n\nQ: Now a shorter one.\nA:"
    assert {row["name"]: row["value"] for row in rows} == {"first_turn": 4.5, "second_turn": 5.5, "both_turns": 5.0}
    for path in run.path.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes(), path


def test_one_turn_of_mt_bench(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedModel(monkeypatch, lambda prompt: Reply("x", False))
    with judge_server() as server:
        judge = {"judge_url": server.url, "judge_model": "gpt"}
        (row,) = evaluation(run, sets, "mt-bench", turns=1, **judge).at(2)
        assert (row["name"], row["value"]) == ("first_turn", 8.0)
        # The second turn adds to it.
        assert len(evaluation(run, sets, "mt-bench", **judge).at(2)) == 3
        assert len(server.requests) == 4


def test_prompts_too_long_are_found_before_anything_is_written(run: Run, sets: Path) -> None:
    with pytest.raises(UsageError, match="exceeds the model's 512 positions"):
        evaluation(run, sets, max_new_tokens=510).at(2)
    assert not run.analysis_dir.exists()


def test_what_was_asked_is_in_the_file(run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedModel(monkeypatch, WORKED)
    evaluation(run, sets).at(2)
    head, first, *_ = [json.loads(line) for line in transcript(run).read_text().splitlines()]
    assert head["evaluation"]["metric"] == "gsm8k"
    assert head["evaluation"]["snapshot"] == run.snapshots().checksum(2)
    assert (first["key"], first["reply"], first["truncated"]) == ("0", "#### 2", False)


def test_a_problem_given_twice(run: Run, sets: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    row = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "test": ""}
    path.write_text(f"{json.dumps(row)}\n" * 2)
    with pytest.raises(UsageError, match=r"twice\.jsonl holds a problem twice"):
        evaluation(run, path, "humaneval", allow_code_execution=True)
