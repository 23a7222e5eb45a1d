"""Runs that W&B 0.31 and MLflow 3.17 wrote themselves (write_data.py), whole, cut off and damaged."""

from __future__ import annotations

import gzip
import math
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.importers import Log, read_log
from tests.importers.write_data import DATA, STEPS, loss

WANDB, MLRUNS = DATA / "wandb", DATA / "mlflow" / "mlruns"
FIRST, SECOND = sorted(WANDB.glob("*/*.wandb"))


def values(log: Log, run: str, column: str) -> tuple[list[float], list[float]]:
    (one,) = [one for one in log.runs if one.name == run]
    curve = one.curve(column)
    return curve.steps.tolist(), curve.values.tolist()


def expected(run: int, steps: range) -> tuple[list[float], list[float]]:
    return list(map(float, steps)), [loss(step, run) for step in steps]


def database(folder: Path) -> Path:
    path = folder / "mlflow.db"
    path.write_bytes(gzip.decompress((DATA / "mlflow" / "mlflow.db.gz").read_bytes()))
    return path


def test_a_wandb_folder() -> None:
    log = read_log(WANDB)
    assert (log.format, log.notes, log.files) == ("W&B runs", (), (FIRST, SECOND))
    assert [run.name for run in log.runs] == ["first run", "first run (bbbb2222)"]
    assert values(log, "first run", "train/loss") == expected(0, range(1, STEPS + 1))
    assert values(log, "first run", "eval/loss") == expected(1, range(10, STEPS + 1, 10))
    config = log.runs[0].config
    assert (config["learning_rate"], config["seed"], config["peft_config"]["default"]["r"]) == (5e-4, 3, 16)
    (run, name), *_ = log.select("loss")
    assert (run.name, name) == ("first run", "train/loss")


def test_a_wandb_run_across_blocks_with_nan_and_media() -> None:
    assert SECOND.stat().st_size > 2 << 15  # so records lie across block boundaries
    log = read_log(SECOND)
    steps, losses = values(log, "first run", "loss")
    wanted = [loss(step, 2) for step in range(STEPS)]
    wanted[30:32] = [math.nan, math.inf]
    assert steps == list(range(STEPS))
    np.testing.assert_equal(losses, wanted)
    assert sorted(log.runs[0].columns) == ["loss", "nested/depth", "note"]  # no histogram
    assert values(log, "first run", "nested/depth") == (steps, steps)


@pytest.mark.parametrize("cut", [1, 7, 500, 20_000, 40_000])
def test_a_wandb_run_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(SECOND.read_bytes()[:-cut])
    log = read_log(path)
    assert log.notes == ("run-x.wandb is cut off: its last record was left out",)
    steps, losses = values(log, "first run", "loss")
    assert steps == list(range(len(steps)))
    assert losses[:30] == [loss(step, 2) for step in range(min(len(steps), 30))]


def test_every_cut_of_a_wandb_run_is_a_log_or_an_error(tmp_path: Path) -> None:
    data, path = FIRST.read_bytes(), tmp_path / "run-x.wandb"
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        try:
            log = read_log(path)
        except UsageError:
            continue
        steps, losses = values(log, log.runs[0].name, "train/loss")
        assert (steps, losses) == expected(0, range(1, len(steps) + 1))


def test_a_damaged_wandb_run_is_an_error(tmp_path: Path) -> None:
    path, data = tmp_path / "run-x.wandb", bytearray(FIRST.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"run-x.wandb: damaged at byte 8[0-9]{3} .its checksum does not match"):
        read_log(path)
    path.write_bytes(b":W&B\xe1\xbe\x07")
    with pytest.raises(UsageError, match="a W&B log of a version that is not known here"):
        read_log(path)
    path.write_bytes(FIRST.read_bytes()[:300])
    with pytest.raises(UsageError, match="no history in it"):
        read_log(path)


def test_an_mlflow_folder_and_its_parts() -> None:
    log = read_log(MLRUNS)
    assert log.format == "MLflow"
    names = sorted(run.name for run in log.runs)
    assert names[0] == "first run"
    assert all(name.startswith("same name (") for name in names[1:])
    assert values(log, "first run", "train/loss") == expected(0, range(1, STEPS + 1))
    steps, losses = values(log, "first run", "eval_loss")
    assert steps == [10, 20, 30, 40]
    np.testing.assert_equal(losses, [loss(10, 5), math.nan, loss(30, 5), loss(40, 5)])
    (run,) = [one for one in log.runs if one.name == "first run"]
    assert dict(run.config) == {"learning_rate": "0.0005", "seed": "0", "optim": "adamw"}
    (folder,) = [path.parent.parent for path in MLRUNS.rglob("mlflow.runName") if path.read_text() == "first run"]
    assert [one.name for one in read_log(folder).runs] == ["first run"]
    assert len(read_log(folder.parent).runs) == len(read_log(MLRUNS.parent).runs) == 3


def test_an_mlflow_database(tmp_path: Path) -> None:
    path = database(tmp_path)
    before = path.read_bytes()
    for source in (path, tmp_path):
        log = read_log(source)
        assert values(log, "first run", "train/loss") == expected(0, range(1, STEPS + 1))
        np.testing.assert_equal(values(log, "first run", "eval_loss")[1][1], math.nan)
        (other,) = [run for run in log.runs if "train/loss" in run.columns and run.name != "first run"]
        assert other.curve("train/loss").values[-1] == math.inf
        assert other.config["seed"] == "1"
    assert path.read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mlflow.db"]


def test_deleted_mlflow_runs_are_left_out(tmp_path: Path) -> None:
    with sqlite3.connect(database(tmp_path)) as connection:
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'first run'")
    connection.close()
    log = read_log(tmp_path / "mlflow.db")
    assert log.notes == ("1 deleted runs were left out",)
    assert "first run" not in [run.name for run in log.runs]
    shutil.copytree(MLRUNS, tmp_path / "mlruns")
    for meta in (tmp_path / "mlruns").glob("*/*/meta.yaml"):
        meta.write_text(meta.read_text().replace("stage: active", "stage: deleted"))
    with pytest.raises(UsageError, match="no run with metrics"):
        read_log(tmp_path / "mlruns")


def test_bad_mlflow_files(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE things (x)")
    connection.close()
    with pytest.raises(UsageError, match=r"no database of MLflow's, or a damaged one .no such table: runs"):
        read_log(other)
    path = database(tmp_path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(UsageError, match=r"no database of MLflow's, or a damaged one"):
        read_log(path)
    shutil.copytree(MLRUNS, tmp_path / "mlruns")
    (metric, *_) = (tmp_path / "mlruns").glob("*/*/metrics/train/loss")
    text = metric.read_text()
    metric.write_text(text[:-4])
    assert any("train/loss of" in note and "is cut off" in note for note in read_log(tmp_path / "mlruns").notes)
    metric.write_text(text.replace(" ", " x", 1))
    with pytest.raises(UsageError, match=r"loss: line 1 is not 'timestamp value step': '[0-9]+ x"):
        read_log(tmp_path / "mlruns")
    metric.write_text(text)
    (metric.parents[2] / "meta.yaml").write_text("!!python/object/apply:os.system ['false']")
    with pytest.raises(UsageError, match=r"meta.yaml is not valid YAML"):
        read_log(tmp_path / "mlruns")


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    shutil.copytree(MLRUNS, tmp_path / "mlruns")
    secret = tmp_path / "secret"
    secret.write_text("1700000000000 0.5 1\n")
    (run,) = [path.parents[1] for path in (tmp_path / "mlruns").rglob("mlflow.runName") if "first" in path.read_text()]
    (run / "metrics" / "leak").symlink_to(secret)
    log = read_log(tmp_path / "mlruns")
    assert "leak" not in log.columns()
    assert "1 links out of the folder, first metrics/leak, were not followed" in log.notes
    shutil.copytree(WANDB, tmp_path / "wandb")
    (tmp_path / "wandb" / "latest-run").symlink_to(next((tmp_path / "wandb").iterdir()).name)
    assert len(read_log(tmp_path / "wandb").runs) == 2
    state = tmp_path / "run" / "trainer_state.json"
    state.parent.mkdir()
    state.symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(UsageError, match=r"no trainer_state.json"):
        read_log(state.parent)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_what_is_no_plain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "log.csv"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a plain file"):
            read_log(path)
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(UsageError, match=r"circle: (no such file|cannot be read)"):
        read_log(circle)
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate((1 << 30) + 1)  # a hole: it takes no disk
    with pytest.raises(UsageError, match=r"large.csv: 1.1 GB; logs of up to 1.1 GB are read"):
        read_log(large)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"step": 1, "loss": 1}\n{"step": ' + "9" * 5000 + "}\n", "line 2 is nested too deeply|number"),
        ("a.json", '[{"loss": ' + "9" * 5000 + "}]", "number that is too long"),
        ("a.jsonl", '{"a": 1}\n' + '{"a":' * 100_000 + "\n", "line 2"),
        ("a.csv", 'step,loss\n1,"' + "9" * 200_000 + '"\n', "field larger than field limit"),
    ],
)
def test_hostile_text(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=match) as raised:
        read_log(tmp_path / name)
    assert len(str(raised.value)) < 400
