"""The commands end to end, on the packaged model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from landscape.config import RunConfig
from landscape.store import Store
from tests.command_line import SETS, SMALL, invoke, payload

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of three steps, by the command itself."""
    path = tmp_path_factory.mktemp("trained") / "store"
    for method in ("lora", "full"):
        result = invoke("train", *SETS, "--set", f"method={method}", "--store", path, "--json")
        assert result.exit_code == 0, result.output
    return path


def test_methods() -> None:
    rows = payload(invoke("methods", "--json"))["methods"]
    names = {row["name"]: row for row in rows}
    assert {"lora", "full", "ggpo", "mgpo", "mgpo-released"} <= set(names)
    assert names["mgpo"]["arguments"]["max_scale"] is None
    assert "dora" in names["mgpo"]["composes_with"]
    assert "mgpo" in names["dora"]["composes_with"]
    assert "ggpo" not in names["dora"]["composes_with"]
    assert names["full"]["adapter"] is None
    printed = "".join(invoke("methods").stdout.split())
    assert "mgpo-released" in printed
    assert "adapter" in printed
    lines = invoke("methods", "--markdown").stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| `adalora`", "| `dora`"]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == len(rows) + 2


def test_a_trained_run(trained: Path) -> None:
    runs = payload(invoke("status", trained, "--where", "method==lora", "--json"))["runs"]
    assert [(row["state"], row["step"], row["max_steps"]) for row in runs] == [("done", 3, 3)]
    again = invoke("train", *SETS, "--set", "method=lora", "--store", trained, "--json")
    answer = payload(again)
    assert answer["run_id"] == runs[0]["run_id"]
    assert answer["state"] == "done"
    assert Path(answer["run_dir"]) == trained / "runs" / answer["run_id"]


def test_export(trained: Path, tmp_path: Path) -> None:
    result = invoke("export-adapter", trained, "lora", "-o", tmp_path / "adapter", "--json")
    assert result.exit_code == 0, result.output
    assert payload(result)["step"] == 3
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {
        "adapter_model.safetensors", "adapter_config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora", "--step", "77"], "77"),
        (["lorra"], "no run 'lorra'"),
        (["full"], "method 'full' trains the base weights"),
    ],
)
def test_bad_exports(trained: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke("export-adapter", trained, *arguments, "-o", tmp_path / "adapter")
    assert result.exit_code == 2
    assert message in result.stderr


def test_sharpness_of_what_was_captured(trained: Path) -> None:
    arguments = ["analyze", "sharpness", trained, "--where", "method==lora", "--steps", "0,3", "--max-matvecs", "4"]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    (rows,) = payload(result)["results"].values()
    assert [(row["step"], row["num_matvecs"], row["converged"]) for row in rows] == [(0, 4, False), (3, 4, False)]
    assert "λ_max at step 0: " in invoke(*arguments).stdout


def test_gap_of_every_run(trained: Path) -> None:
    answer = payload(invoke("analyze", "gap", trained, "--json"))
    assert len(answer["results"]) == 2
    for rows in answer["results"].values():
        assert [row["step"] for row in rows] == [0, 3]
        assert all(row["gap"] == pytest.approx(row["eval_loss"] - row["train_loss"]) for row in rows)
    assert "at step 3 (2 evaluations)" in invoke("analyze", "gap", trained).stdout


def test_an_analysis_that_fails_for_one_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "store")
    damaged = next(run for run in Store.open(tmp_path / "store").runs() if run.config.method == "full")
    (damaged.path / "metrics.parquet").unlink()
    (damaged.path / "attempts" / "1" / "metrics.jsonl").write_text("nonsense\nnonsense\n")
    result = invoke("analyze", "gap", tmp_path / "store", "--json")
    assert result.exit_code == 3
    answer = payload(result)
    assert len(answer["results"]) == 1
    assert list(answer["errors"]) == [damaged.id]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0,9"], "no snapshot at step 9; the nearest is 3"),
        (["--steps", "0", "--every", "2"], "give one"),
        (["--steps", "last"], "'last' is not a whole number"),
        (["--space", "adaptor"], "Did you mean 'adapter'?"),
        (["--workers", "-2"], "workers: -2 is negative"),
    ],
)
def test_bad_analyses(trained: Path, arguments: list[str], message: str) -> None:
    result = invoke("analyze", "sharpness", trained, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_figures(trained: Path, tmp_path: Path) -> None:
    result = invoke("figures", trained, "--figure", "mgpo1", "-o", tmp_path, "--format", "svg,csv", "--json")
    assert result.exit_code == 0, result.output
    assert [Path(path).name for path in payload(result)["files"]] == ["mgpo1.svg", "mgpo1.csv"]
    assert all(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure", "mgpo11"], "Did you mean 'mgpo1'?"),
        (["--figure", "mgpo1", "--format", "gif"], "format: 'gif' is not known"),
        (["--figure", ","], "no name given"),
        (["--figure", "mgpo1", "--where", "rank==77"], "none of the 2 runs"),
    ],
)
def test_bad_figures(trained: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke("figures", trained, *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_report(trained: Path, tmp_path: Path) -> None:
    result = invoke("report", trained, "-o", tmp_path / "report.html", "--title", "What was seen", "--json")
    assert result.exit_code == 0, result.output
    assert Path(payload(result)["report"]) == tmp_path / "report.html"
    assert "What was seen" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr("landscape.training.run.load_task", fail)
    result = invoke("train", *SETS, "--store", tmp_path / "store", "--json")
    assert result.exit_code == 3
    assert "failed: RuntimeError: no memory (more in" in result.stderr
    assert payload(result)["state"] == "failed"


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    sets = [*SETS, "--set", "lr=1e30", "--set", "warmup_ratio=0"]
    result = invoke("train", *sets, "--store", tmp_path / "store", "--json")
    assert result.exit_code == 0, result.output
    assert payload(result)["state"] == "diverged"


def test_a_dry_run(tmp_path: Path) -> None:
    arguments = ["sweep", "--method", "lora,full", "--rank", "2,4", "--store", tmp_path / "store", "--dry-run"]
    answer = payload(invoke(*arguments, "--json"))
    assert (answer["cells"], answer["duplicates"], answer["finished"], answer["steps"]) == (3, 1, 0, 600)
    assert answer["free_bytes"] > 1e6
    assert answer["snapshot_bytes"] > 1e6
    text = invoke(*arguments).stdout
    assert "3 runs (0 finished, 1 duplicate cells dropped)" in text
    assert "600 optimizer steps" in text
    assert not (tmp_path / "store").exists()


def sweep_file(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    values = {**SMALL, **changes}
    del values["rank"]
    path.write_text(json.dumps({**values, "sweep": {"grid": {"method": ["lora", "full"], "rank": [2, 4]}}}))
    return path


def test_a_sweep_from_the_console(tmp_path: Path) -> None:
    """The real thing: console entry, spawned worker, run folders; and a second call that finds nothing to do."""
    store = tmp_path / "store"
    command = [sys.executable, "-m", "landscape", "sweep", "-c", str(sweep_file(tmp_path, base_loss=True))]
    command += ["--store", str(store), "--workers", "1", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["counts"] == {"done": 3}
    assert answer["preparation_errors"] == []
    for run in Store.open(store).runs():
        metrics = run.metrics()
        assert list(metrics["step"]) == [1, 2, 3]
        assert metrics["loss_base"].notna().all()
        assert run.status.environment["threads"] == 1
    again = payload(invoke("sweep", "-c", tmp_path / "sweep.yaml", "--store", store, "--json"))
    assert (again["finished_before"], again["counts"]) == (3, {"done": 3})


def test_a_sweep_with_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape.training import run as training_run

    original = training_run.load_task

    def fail_sometimes(config: RunConfig, *arguments: Any) -> Any:
        if config.method == "full":
            raise RuntimeError("no memory")
        return original(config, *arguments)

    monkeypatch.setattr(training_run, "load_task", fail_sometimes)
    arguments = ["sweep", "-c", sweep_file(tmp_path), "--store", tmp_path / "store", "--workers", 0]
    result = invoke(*arguments)
    assert result.exit_code == 3
    assert "3 runs: 2 done, 1 failed" in result.stdout
    assert "RuntimeError: no memory" in result.stderr
    monkeypatch.undo()
    again = invoke(*arguments)
    assert again.exit_code == 0
    assert "3 runs: 3 done (2 finished before, 1 duplicate cells dropped)" in again.stdout
