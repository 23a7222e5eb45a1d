"""``landscape analyze episodes``: tables, sentences and JSON from a store."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from landscape.cli.episodes import _line
from landscape.store import Store
from tests.command_line import invoke, payload
from tests.synthetic_runs import run, write


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"alpha": "r", "learning_rate": 1e-3}
    runs = [run(method=method, rank=rank, seed=seed, **settings) for method in ("lora", "mgpo") for rank in (16, 64)
            for seed in range(3)]  # fmt: skip
    return write(runs, tmp_path_factory.mktemp("episodes") / "store").path


def test_tables_and_sentences(store: Path) -> None:
    result = invoke("analyze", "episodes", store, "--resamples", 199)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum(line.startswith("lora-r64") and "episode from step " in line for line in lines) == 3
    assert "tiny, arithmetic: 12 runs" in lines
    assert any(line.startswith("mgpo lowers") or "3 seeds cannot give a p-value below 0.25" in line for line in lines)
    assert any(line.startswith("lora: ") and "runs rebound (q ≤ 0.05)" in line for line in lines)
    table = pd.read_parquet(Store.open(store).runs()[0].analysis_dir / "episodes.parquet")
    assert (table["q_runs"] == 12).all()


def test_json(store: Path) -> None:
    answer = payload(invoke("analyze", "episodes", store, "--where", "rank==64", "--resamples", 199, "--json"))
    assert answer["settings"] == {
        "column": "loss_clean", "adjust": "none", "resamples": 199, "seed": 0, "logarithm": None,
    }  # fmt: skip
    assert len(answer["results"]) == 6
    assert {row["q_runs"] for rows in answer["results"].values() for row in rows} == {6}
    [together] = answer["sweeps"]
    assert [(c["method"], c["rank"], c["runs"]) for c in together["cells"]] == [("lora", 64, 3), ("mgpo", 64, 3)]
    assert {c["result"]["pairs"] for c in together["comparisons"]} == {3}
    assert all(c["verdict"].endswith(".") for c in together["comparisons"])


def test_adjusted_by_siblings(store: Path) -> None:
    arguments = ["--adjust", "siblings", "--resamples", 199, "--json"]
    answer = payload(invoke("analyze", "episodes", store, *arguments))
    rows = [row for rows in answer["results"].values() for row in rows]
    assert {row["tested_curve"] for row in rows} == {"adjusted by sibling"}


def test_settings_apart_from_the_grid_are_kept_apart(store: Path, tmp_path: Path) -> None:
    runs = [run(rank=16, seed=seed, per_device_train_batch_size=size) for size in (4, 8) for seed in range(2)]
    for number, data in enumerate(runs):
        object.__setattr__(data, "run_id", f"{data.run_id}{number}")
    other = write(runs, tmp_path / "store").path
    answer = payload(invoke("analyze", "episodes", other, "--resamples", 99, "--json"))
    assert [one["runs"] for one in answer["sweeps"]] == [2, 2]


def test_one_run_that_fails_does_not_stop_the_others(store: Path, tmp_path: Path) -> None:
    other = write([run(seed=0), run(seed=1)], tmp_path / "store")
    damaged = other.runs()[0]
    (damaged.path / "metrics.parquet").write_bytes(b"nonsense")
    result = invoke("analyze", "episodes", other.path, "--resamples", 99, "--json")
    assert result.exit_code == 3
    answer = payload(result)
    assert list(answer["errors"]) == [damaged.id]
    assert list(answer["results"]) == [other.runs()[1].id]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "los"], "column: 'los' is not known"),
        (["--adjust", "bse"], "adjust: 'bse' is not known; allowed: base, none, siblings. Did you mean 'base'"),
        (["--alpha", "0"], "--alpha: 0.0 must lie between 0 and 1"),
        (["--adjust", "base", "--column", "eval"], "is for loss_clean and loss_perturbed"),
        (["--where", "rank==7"], "none of the 12 runs"),
    ],
)
def test_bad_usage_is_one_line(store: Path, arguments: list[str], message: str) -> None:
    result = invoke("analyze", "episodes", store, *arguments)
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.stderr.strip().splitlines() if line.startswith("error: ")]
    assert message in line


def test_other_peoples_runs(tmp_path: Path) -> None:
    """Losses at every second step of the log, and neither seed nor rate: tested, but compared with nobody."""
    lines = [f"{step},{2 - step / 400},1" if step % 2 else f"{step},,1" for step in range(1, 301)]
    (tmp_path / "log.csv").write_text("\n".join(["step,loss,grad_norm", *lines]))
    assert invoke("import", tmp_path / "log.csv", "--store", tmp_path / "store").exit_code == 0
    result = invoke("analyze", "episodes", tmp_path / "store", "--resamples", 99, "--json")
    assert result.exit_code == 0, result.output
    answer = payload(result)
    [[row, *_]] = answer["results"].values()
    assert row["points"] == 150
    assert answer["sweeps"] == []


def test_sizes_of_the_training_set_are_told_apart_and_are_an_axis(tmp_path: Path) -> None:
    runs = [run(rank=16, seed=seed, train_examples=size) for size in (8, 16, 32, 64) for seed in range(3)]
    for number, data in enumerate(runs):
        object.__setattr__(data, "run_id", f"{data.run_id}{number}")
    lines = invoke("analyze", "episodes", write(runs, tmp_path / "store").path).stdout.splitlines()
    head = next(line for line in lines if line.startswith("method"))
    assert head.split()[:5] == ["method", "rank", "learning", "rate", "examples"]
    cells = [line.split()[3] for line in lines if line.startswith("lora ") and line.split()[1] == "16"]
    assert cells == ["8", "16", "32", "64"]
    assert any(line.startswith("lora along number of training examples (rank 16, ") for line in lines)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["non_finite"], "; not finite from step 40 until step 60"),
        (["non_finite,right_censored"], "; not finite from step 40 to 60, the end"),
        (["non_finite"] * 5, "until step 60, and in 2 more stretches"),
    ],
)
def test_where_the_loss_was_not_finite(flags: list[str], expected: str) -> None:
    shared = {"rise": 0.1, "run_p_value": 0.5, "q_value": 0.6}
    rows = [
        {"kind": "divergence", "p_value": 0.0, "onset": 40.0, "recovery": 60.0, "flags": f, **shared} for f in flags
    ]
    line = _line(rows, 0.05)
    assert line.startswith("no rebound (p = 0.5, q = 0.6; largest rise 0.1); not finite")
    assert line.endswith(expected)
