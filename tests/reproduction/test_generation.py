"""Tables whose scores are of what a model writes: taken at the last snapshot, or read from ``landscape evaluate``."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from landscape.config import parse_model, read_yaml
from landscape.evaluation.base import Reply
from landscape.reproduction import Experiment
from landscape.reproduction.reproduce import Outcome, reproduce
from landscape.resources import folder
from tests.command_line import invoke
from tests.evaluation.benchmarks import WORD_PROBLEMS, ScriptedModel, write_benchmarks

ONE_OF_FIVE = Reply("#### 2", False)


def table2(**smoke: object) -> Experiment:
    """MGPO's Table 2 on a stand-in of GSM8K, by the tiny model."""
    plain = copy.deepcopy(read_yaml(folder("experiments") / "reproduce" / "mgpo-table2.yaml"))
    changed = plain["scales"]["smoke"]
    changed["config"] |= {"max_steps": 2, "eval_steps": 0, "max_length": 64, "train_examples": None}
    changed["config"] |= {"capture": {"every": 2}}
    changed |= {"grid": {"task": ["gsm8k"], "seed": [0]}, **smoke}
    return parse_model(Experiment, {"name": "mine", **plain})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    place = write_benchmarks(tmp_path / "data")
    table = pa.table({name: values * 4 for name, values in WORD_PROBLEMS.items()})
    pq.write_table(table, place / "gsm8k" / "train.parquet")
    return place


def scores(outcome: Outcome) -> dict[str, float]:
    assert outcome.result is not None
    assert not outcome.errors
    return {record.variant: record.score for record in outcome.result.runs}


def test_the_last_snapshot_is_scored_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel(monkeypatch, lambda prompt: ONE_OF_FIVE)
    asked = table2(analyses={"generation": {"max_new_tokens": 8}})
    for _ in range(2):
        done = reproduce(asked, "smoke", tmp_path / "store", data_dir=data, workers=0, formats=("csv",))
        assert scores(done) == {"LoRA": pytest.approx(20.0), "LoRA-MGPO": pytest.approx(20.0)}
        assert len(model.prompts) == 2 * len(WORD_PROBLEMS["question"])


def test_what_was_evaluated_by_hand_is_read(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedModel(monkeypatch, lambda prompt: ONE_OF_FIVE)
    store = tmp_path / "store"
    unscored = reproduce(table2(), "smoke", store, data_dir=data, workers=0, formats=("csv",))
    assert all(math.isnan(score) for score in scores(unscored).values())
    by_hand = ("evaluate", store, "--metric", "gsm8k", "--data", data, "--max-new-tokens", 8, "--workers", 0)
    assert invoke(*by_hand).exit_code == 0
    scored = reproduce(table2(), "smoke", store, data_dir=data, workers=0, formats=("csv",))
    assert list(scores(scored).values()) == [pytest.approx(20.0)] * 2


def test_a_run_without_snapshots_is_named(data: Path, tmp_path: Path) -> None:
    experiment = table2(analyses={"generation": {}})
    experiment.scales["smoke"].config["capture"] = "none"
    done = reproduce(experiment, "smoke", tmp_path / "store", data_dir=data, workers=0, formats=("csv",))
    assert len(done.errors) == 2
    assert all("no snapshots" in error for error in done.errors.values())
