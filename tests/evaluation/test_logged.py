"""What a run logs of a task with classes, for a model of text and for a classifier."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from landscape.config import RunConfig
from landscape.store import Store
from landscape.training import train
from tests.analysis.trained_runs import SETTINGS

NAMES = ("accuracy", "f1", "matthews_correlation")


@pytest.mark.parametrize("model", ["tiny", "tiny-t5"])
def test_metrics_of_classes_from_a_model_of_text(tmp_path: Path, model: str) -> None:
    rows = [{"text": f"{'good' if n % 3 else 'bad'} {n}", "label": int(n % 3 > 0)} for n in range(48)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    files = {"task": "files", "data_files": {"train": str(path)}, "columns": {"text": "text", "label": "label"}}
    config = RunConfig.parse({**SETTINGS, **files, "model": model, "max_steps": 2, "capture": "none"})
    result = train(config, tmp_path / "store")
    table = Store.open(tmp_path / "store").get(result.run_id).evaluations()
    for name in NAMES:
        assert table[name].notna().all(), name
        assert f"{name}_standard_error" in table
    assert table["accuracy"].between(0, 1).all()
    assert table["matthews_correlation"].between(-1, 1).all()
    # Choosing among all tokens cannot be right more often than choosing among the classes.
    assert (table["accuracy"] >= table["exact_match"]).all()
    n = table["num_examples"]
    expected = (table["accuracy"] * (1 - table["accuracy"]) / (n - 1)).map(math.sqrt)
    assert table["accuracy_standard_error"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-12)


def test_texts_have_none_of_them(trained_store: Path) -> None:
    table = Store.open(trained_store).runs()[0].evaluations()
    assert not set(NAMES) & set(table)
    assert "exact_match" in table
