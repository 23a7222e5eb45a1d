"""Real Parquet sets where there are some on this machine, else small stand-ins with the same columns."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from landscape.config import RunConfig
from landscape.models import ASSETS

REAL_DATA = Path(os.environ.get("LANDSCAPE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

# Columns of each set as published, and the number of its classes (0: text targets).
SETS: dict[str, tuple[tuple[str, ...], int]] = {
    "sst2": (("sentence", "label", "idx"), 2),
    "cola": (("sentence", "label", "idx"), 2),
    "mrpc": (("sentence1", "sentence2", "label", "idx"), 2),
    "qnli": (("question", "sentence", "label", "idx"), 2),
    "mnli": (("premise", "hypothesis", "label", "idx"), 3),
    "wikiqa": (("question_id", "question", "document_title", "answer", "label"), 2),
    "gsm8k": (("question", "answer"), 0),
    "math_instruct": (("instruction", "input", "output", "answer"), 0),
    "alpaca_demo": (("instruction", "input", "output"), 0),
}


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def stand_in(name: str, split: str, count: int) -> dict[str, list[Any]]:
    """A set's columns filled with numbered texts; every third context of Alpaca's is empty."""
    names, classes = SETS[name]
    columns: dict[str, list[Any]] = {}
    for column in names:
        if column == "label":
            hidden = name == "cola" and split == "test"
            columns[column] = [-1 if hidden else i % classes for i in range(count)]
        elif column == "idx":
            columns[column] = list(range(count))
        else:
            columns[column] = [f"The {column} no. {i} of {split}." for i in range(count)]
            if column == "input":
                columns[column] = [text if i % 3 else "" for i, text in enumerate(columns[column])]
    return columns


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a subfolder of Parquet files for each set: the real ones if they are here."""
    if REAL_DATA.is_dir() and all((REAL_DATA / name / "train.parquet").is_file() for name in SETS):
        return REAL_DATA
    folder = tmp_path_factory.mktemp("sets")
    for name in SETS:
        splits = {"train": 300}
        if name == "gsm8k":
            splits |= {"test": 40}
        elif name not in ("math_instruct", "alpaca_demo"):
            splits |= {"validation": 40, "test": 40}
        for split, count in splits.items():
            write_parquet(folder / name / f"{split}.parquet", stand_in(name, split, count))
    return folder


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    """By kind; the decoder's serves classification too, since its head needs no special tokens."""
    causal = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    return {
        "causal": causal,
        "seq2seq": AutoTokenizer.from_pretrained(ASSETS / "tiny-t5"),
        "classification": causal,
    }


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    def make(**values: Any) -> RunConfig:
        return RunConfig.parse({"model": "tiny", **values})

    return make
