"""Where benchmarks are looked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.evaluation.base import HubSet
from landscape.evaluation.problems import read_problems
from tests.evaluation.benchmarks import WORD_PROBLEMS

HUB = HubSet("openai/gsm8k", "main", "test")


def read(data: Path | None, name: str = "gsm8k", **config: Any) -> tuple[int, str]:
    table, split = read_problems(name, HUB, None if data is None else str(data), RunConfig.parse(config))
    return len(table), split


def test_files_and_folders(sets: Path, tmp_path: Path) -> None:
    assert read(sets) == (5, "test")
    assert read(sets / "gsm8k") == (5, "test")
    assert read(sets / "gsm8k" / "test.parquet") == (5, "test")
    assert read(sets, "mt-bench") == (2, "test")
    path = tmp_path / "mine.jsonl"
    rows = [dict(zip(WORD_PROBLEMS, row, strict=True)) for row in zip(*WORD_PROBLEMS.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, rows[:2])))
    assert read(path) == (2, "mine")


def test_the_run_s_own_folder_comes_before_the_hub(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.evaluation.problems.unreachable", lambda: "HF_HUB_OFFLINE is set")
    assert read(None, task="gsm8k", data_dir=str(sets)) == (5, "test")
    assert read(None, task="gsm8k", data_dir=str(sets / "gsm8k")) == (5, "test")
    # A file of that name in the folder of another task is not the benchmark.
    with pytest.raises(UsageError, match="humaneval cannot be loaded from the hub set 'openai/gsm8k'"):
        read(None, "humaneval", task="gsm8k", data_dir=str(sets / "gsm8k"))


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.evaluation.problems.unreachable", lambda: "huggingface.co does not resolve")
    with pytest.raises(UsageError, match=r"\(huggingface.co does not resolve\); give a Parquet or JSONL file"):
        read(None)


def test_a_set_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_dict(WORD_PROBLEMS)

    monkeypatch.setattr("landscape.evaluation.problems.unreachable", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read(None) == (5, "test")
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]


def test_what_is_not_there(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data: .*none does not exist"):
        read(tmp_path / "none")
    shutil.rmtree(sets / "gsm8k")
    with pytest.raises(UsageError, match=r"holds neither .* nor gsm8k/test\.parquet .*: humaneval, mt_bench"):
        read(sets)
