"""``landscape evaluate``: what it prints, refuses and leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from landscape.store import Run, Store
from tests.analysis.trained_runs import edit_json
from tests.command_line import invoke, payload
from tests.evaluation.benchmarks import ScriptedModel
from tests.evaluation.judge_stub import Answer, judge_server

RIGHT = {f"Tom has {n} apples": f"#### {2 * n}" for n in range(1, 6)}


def gsm8k(sets: Path) -> list[Any]:
    return ["--metric", "gsm8k", "--data", sets, "--max-new-tokens", 8]


def test_results_on_the_screen_in_json_and_on_disk(
    store: Path, run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedModel(monkeypatch, {**RIGHT, "Tom has 3 apples": "5"})
    result = invoke("evaluate", store, *gsm8k(sets))
    assert result.exit_code == 0, result.output
    assert "gsm8k: 5 replies to write, 5 to compare, of 1 runs" in result.stderr
    assert "skipped (no snapshots): lora-r4" in result.stderr
    assert result.stdout.strip() == f"{run.id}: step 2: exact_match 0.8 ± 0.2 (5 problems)"
    answer = payload(invoke("evaluate", store, *gsm8k(sets), "--steps", "0,2", "--json"))
    rows = answer["results"][run.id]
    assert [(row["step"], row["value"]) for row in rows] == [(0, 0.8), (2, 0.8)]
    assert len(answer["skipped"]) == 1
    table = pd.read_parquet(run.analysis_dir / "evaluation.parquet")
    assert table["name"].tolist() == ["exact_match"] * 2


def test_a_dry_run_says_what_there_is_to_do(store: Path, run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedModel(monkeypatch, RIGHT)
    assert invoke("evaluate", store, *gsm8k(sets), "--limit", 2).exit_code == 0
    before = sorted(path.name for path in run.analysis_dir.iterdir())
    result = invoke("evaluate", store, *gsm8k(sets), "--dry-run")
    assert result.stdout.strip() == "3 replies to write, 3 to compare, of 1 runs"
    assert payload(invoke("evaluate", store, *gsm8k(sets), "--dry-run", "--json"))["missing"] == {
        "replies": 3,
        "verdicts": 3,
    }
    assert sorted(path.name for path in run.analysis_dir.iterdir()) == before


JUDGE = ["--metric", "mt-bench", "--judge-model", "gpt", "--judge-url"]
CODE = ["--metric", "humaneval"]
ALLOWED = [*CODE, "--allow-code-execution"]
USAGE: list[tuple[list[Any], str]] = [
    ([], "give either --metric gsm8k, humaneval or mt-bench, or --harness TASKS"),
    (["--metric", "gsm8k", "--harness", "arc"], "give either --metric"),
    (["--metric", "gsm8"], "--metric: 'gsm8' is not known; allowed: gsm8k, humaneval, mt-bench. Did you mean 'gsm8k'?"),
    (["--metric", "gsm8k", "--samples", 3], "--samples: only for --metric humaneval, not gsm8k"),
    (["--metric", "gsm8k", "--judge-url", "x"], "--judge-url: only for --metric mt-bench, not gsm8k"),
    (["--metric", "gsm8k", "--num-fewshot", 3], "--num-fewshot: only with --harness"),
    (["--metric", "gsm8k", "--limit", 0], "--limit: 0; allowed: at least 1"),
    (["--metric", "gsm8k", "--max-new-tokens", -1], "--max-new-tokens: -1; allowed: at least 1"),
    (["--metric", "gsm8k", "--steps", "7"], "no snapshot of step 7; the nearest is 2"),
    (["--metric", "gsm8k", "--steps", "x"], "--steps"),
    (["--metric", "gsm8k", "--where", "rank==4"], "nothing to analyze: all of its 1 runs were skipped (no snapshots)"),
    (["--metric", "gsm8k", "--data", "/nowhere"], "--data: /nowhere does not exist"),
    (["--metric", "gsm8k", "--workers", -1], "workers: -1 is negative"),
    (CODE, "then add --allow-code-execution"),
    ([*ALLOWED, "--samples", 3], "--samples: 3 greedy replies are all the same; give --temperature"),
    ([*ALLOWED, "--temperature", -1], "--temperature: -1 is negative"),
    ([*ALLOWED, "--prompting", "instruct"], "Did you mean 'instruction'?"),
    ([*ALLOWED, "--time-limit", 0], "--time-limit: 0 seconds; allowed: more than 0, at most 600"),
    ([*ALLOWED, "--memory-limit", 64], "--memory-limit: 64 MB; allowed: at least 128"),
    (["--metric", "mt-bench"], "--judge-url: missing; --metric mt-bench needs a judge"),
    (["--metric", "mt-bench", "--judge-url", "https://x/v1"], "--judge-model: missing"),
    ([*JUDGE, "x"], "--judge-url: 'x' is no address"),
    ([*JUDGE, "https://x/v1", "--turns", 3], "--turns: 3; allowed: 1 or 2"),
    (
        [*JUDGE, "https://x/v1", "--judge-key-variable", "sk-1"],
        "takes the name of an environment variable, not the key",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_usage_is_one_line_before_anything_is_loaded(
    trained_store: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[Any], message: str
) -> None:
    monkeypatch.setattr("landscape.evaluation.run.open_run", lambda *_, **__: pytest.fail("loaded"))
    more = [] if "--data" in arguments else ["--data", sets]
    result = invoke("evaluate", trained_store, *more, *arguments)
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1), result.output
    assert message in result.stderr


def test_a_model_that_classifies_is_skipped(store: Path, run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.models.known_kind", lambda config: "classification")
    result = invoke("evaluate", store, *gsm8k(sets))
    assert result.exit_code == 2
    assert "its model classifies and writes no text" in result.stderr


def test_a_judge_that_fails_costs_the_run_and_leaves_what_is_known(
    store: Path, run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-very-secret"
    monkeypatch.setenv("MY_KEY", key)
    with judge_server(lambda count, body: Answer(status=401, body=key.encode())) as server:
        arguments = [*JUDGE, server.url, "--judge-key-variable", "MY_KEY", "--data", sets, "--max-new-tokens", 4]
        result = invoke("evaluate", store, *arguments, "--json")
        assert result.exit_code == 3
        assert server.requests[0][1]["Authorization"] == f"Bearer {key}"
        assert invoke("evaluate", store, *arguments, "--dry-run").stdout.startswith(
            "0 replies to write, 4 to have rated"
        )
    assert "answered 401" in payload(result)["errors"][run.id]
    assert key not in result.output
    for path in store.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes(), path


def test_a_run_that_fails_does_not_stop_the_others(
    store: Path, run: Run, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run.path.with_name("other-run")
    shutil.copytree(run.path, other)
    edit_json(other / "identity.json", lambda values: values["digests"].update(data="other"))
    ScriptedModel(monkeypatch, RIGHT)
    result = invoke("evaluate", store, *gsm8k(sets), "--workers", 0, "--json")
    assert result.exit_code == 3
    answer = payload(result)
    assert answer["results"][run.id][0]["value"] == 1.0
    assert "the data is no longer what it was trained on" in answer["errors"]["other-run"]


@pytest.mark.slow
def test_workers_of_their_own(store: Path, run: Run, sets: Path) -> None:
    """Two runs in fresh processes, so nothing that is passed on may be left behind."""
    other = run.path.with_name("other-run")
    shutil.copytree(run.path, other)
    result = invoke("evaluate", store, *gsm8k(sets), "--limit", 2, "--workers", 1, "--json")
    assert result.exit_code == 0, result.output
    first, second = (answer[0] for answer in payload(result)["results"].values())
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert all(
        (one.analysis_dir / "evaluation.parquet").is_file()
        for one in Store.open(store).runs()[-2:]
        if one.config.rank == 2
    )
