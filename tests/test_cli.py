"""The command line: exit codes, one-line errors, ``--json``, and what it says of a store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from landscape.cli.console import print_json
from landscape.cli.selection import choose_steps
from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.store import Store
from landscape.training import identify, resolve
from tests.command_line import SETS, SMALL, invoke, payload


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Runs in every state, none of which was trained."""
    path = tmp_path / "store"
    made = Store.create(path)
    states = ("queued", "running", "done", "failed", "diverged", "interrupted")
    for seed, state in enumerate(states):
        config = resolve(RunConfig.parse({**SMALL, "seed": seed, "rank": 2**seed, "max_steps": 9}))
        run = made.add(config, *identify(config))
        if state == "queued":
            continue
        attempt = run.begin_attempt()
        for step in (1, 2):
            loss = math.nan if state == "diverged" and step == 2 else 3.0 - step
            attempt.log({"step": step, "loss_clean": None if state == "failed" else loss, "loss_perturbed": loss + 0.5})
        attempt.close()
        run.set_status(state=state, step=2, error="Traceback\nRuntimeError: [no] luck" if state == "failed" else None)
    return path


# --- usage errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--set", "rnk=8"], "error: unknown config key 'rnk'. Did you mean 'rank'?"),
        (["train", "--set", "method=lroa"], "Did you mean 'lora'?"),
        (["train", "--set", "rank"], "--set 'rank': write key=value"),
        (["train", "-c", "no.yaml"], "cannot read no.yaml"),
        (["sweep"], "nothing to sweep"),
        (["sweep", "--rank", "8", "--set", "rank=4"], "--set rank: the grid varies this key"),
        (["sweep", "--rank", "4..2"], "rank: the range '4..2' runs backwards"),
        (["sweep", "--rank", "8", "--method", "lora,mgpoo"], "method: 'mgpoo' is not known"),
        (["sweep", "--rank", "8,0"], "rank: 0: "),
        (["sweep", "--grid", "eval_steps=1,2"], "eval_steps does not change a run's result"),
        (["sweep", "--grid", "rank"], "--grid 'rank': write key=value"),
        (["sweep", "--rank", "8", "--engine", "slurm"], "engine: 'slurm' is not known; allowed: local"),
        (["sweep", "--rank", "8", "--workers", "-1"], "workers: -1 is negative"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_usage_is_one_line_and_writes_nothing(
    tmp_path: Path, arguments: list[str], message: str, as_json: bool
) -> None:
    result = invoke(*arguments, "--store", tmp_path / "store", *(["--json"] if as_json else []))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    if as_json:
        assert message.removeprefix("error: ") in payload(result)["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "{}"],
        ["analyze", "sharpness", "{}"],
        ["analyze", "gap", "{}"],
        ["report", "{}"],
        ["figures", "{}"],
        ["export-adapter", "{}", "lora", "-o", "out"],
    ],
)
def test_commands_that_read_need_a_store(tmp_path: Path, arguments: list[str]) -> None:
    result = invoke(*[item.format(tmp_path / "nowhere") for item in arguments])
    assert result.exit_code == 2
    assert "nowhere does not exist" in result.stderr


def test_a_sweep_file_given_to_train(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sweep: {grid: {rank: [8]}}\n")
    result = invoke("train", "-c", path, "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert "start it with `landscape sweep -c" in result.stderr


def test_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    result = invoke("train", *SETS, "--store", tmp_path)
    assert result.exit_code == 2
    assert "is no store" in result.stderr


# --- status ---


def test_status_as_json(store: Path) -> None:
    result = invoke("status", store, "--json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    answer = payload(result)
    assert answer["counts"] == dict.fromkeys(["diverged", "done", "failed", "interrupted", "queued", "running"], 1)
    rows = {row["state"]: row for row in answer["runs"]}
    losses = {state: row["loss"] for state, row in rows.items()}
    assert losses == {"queued": None, "running": 1.0, "done": 1.0, "failed": 1.5, "diverged": 2.0, "interrupted": 1.0}
    assert rows["failed"]["error"].endswith("RuntimeError: [no] luck")
    assert {key: rows["done"][key] for key in ("method", "rank", "learning_rate", "seed", "step", "max_steps")} == {
        "method": "lora", "rank": 4, "learning_rate": 1e-4, "seed": 2, "step": 2, "max_steps": 9,
    }  # fmt: skip


def test_status_on_a_screen(store: Path) -> None:
    result = invoke("status", store)
    assert result.exit_code == 0
    for run in Store.open(store).runs():
        assert run.id in result.stdout
    assert "RuntimeError: [no] luck" in result.stdout
    assert "6 runs: 1 diverged, 1 done, 1 failed, 1 interrupted, 1 queued, 1 running" in result.stdout


def test_status_shows_first_what_needs_a_look(store: Path) -> None:
    result = invoke("status", store, "--limit", 2)
    assert "failed" in result.stdout.splitlines()[-4] + result.stdout.splitlines()[-3]
    assert "and 4 more" in result.stdout
    assert "interrupted" not in "".join(result.stdout.splitlines()[:-1])


def test_status_of_some(store: Path) -> None:
    result = invoke("status", store, "--where", "state in [done, failed] and rank<8", "--json")
    assert [row["state"] for row in payload(result)["runs"]] == ["done"]


def test_status_shows_damage_beside_the_rest(store: Path) -> None:
    runs = Store.open(store).runs()
    (runs[0].path / "status.json").write_text("{")
    (runs[1].path / "attempts" / "1" / "metrics.jsonl").write_text("nonsense\nnonsense\n")
    result = invoke("status", store, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["run_id"]: row for row in payload(result)["runs"]}
    assert rows[runs[0].id]["state"] == "damaged"
    assert "status.json" in rows[runs[0].id]["error"]
    assert "metrics.jsonl" in rows[runs[1].id]["error"]
    assert "damaged" in invoke("status", store).stdout
    assert len(payload(invoke("status", store, "--where", "rank>0", "--json"))["runs"]) == 5


def test_status_of_an_empty_store(tmp_path: Path) -> None:
    Store.create(tmp_path / "store")
    result = invoke("status", tmp_path / "store")
    assert result.exit_code == 0
    assert "0 runs: none yet" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "rank==512"], "none of the 6 runs in"),
        (["--where", "rnk==512"], "unknown key 'rnk'"),
        (["--limit", "-1"], "--limit: -1 is negative"),
    ],
)
def test_bad_selections(store: Path, arguments: list[str], message: str) -> None:
    result = invoke("status", store, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("command", ["sharpness", "gap"])
def test_nothing_to_analyze(tmp_path: Path, command: str) -> None:
    config = resolve(RunConfig.parse(SMALL))
    Store.create(tmp_path / "store").add(config, *identify(config))
    result = invoke("analyze", command, tmp_path / "store")
    assert result.exit_code == 2
    assert "nothing to analyze: all of its 1 runs were skipped" in result.stderr


# --- steps ---


@pytest.mark.parametrize(
    ("available", "every", "wanted", "expected"),
    [
        (range(101), None, None, [0, 14, 29, 43, 57, 71, 86, 100]),
        (range(5), None, None, [0, 1, 2, 3, 4]),
        ([], None, None, []),
        (range(0, 95, 10), 30, None, [0, 30, 60, 90]),
        (range(0, 97, 12), 36, None, [0, 36, 72, 96]),
        (range(10), None, [7, 3, 3], [3, 7]),
    ],
)
def test_steps(available: Any, every: int | None, wanted: list[int] | None, expected: list[int]) -> None:
    assert choose_steps(available, every, wanted, 8) == expected


@pytest.mark.parametrize(
    ("every", "wanted", "message"),
    [(2, [4], "give one"), (None, [7], "no snapshot at step 7; the nearest is 8"), (None, [99], "the nearest is 12")],
)
def test_bad_steps(every: int | None, wanted: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_steps(range(0, 13, 4), every, wanted, 8)


# --- json ---


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    print_json(
        {"a": math.nan, "b": [np.float64(1.5), np.inf], "c": Path("x"), "d": np.arange(2), "e": True, "f": (None,)}
    )
    assert json.loads(capsys.readouterr().out) == {
        "a": None, "b": [1.5, None], "c": "x", "d": [0, 1], "e": True, "f": [None],
    }  # fmt: skip


def test_json_refuses_what_it_cannot_say() -> None:
    with pytest.raises(TypeError, match="object has no place in JSON output"):
        print_json({"a": object()})
