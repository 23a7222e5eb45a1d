"""The small runs that contract tests look at, trained once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch

import landscape.training.run as training_run
from landscape.config import RunConfig
from landscape.store import Run, Store
from landscape.training import train
from tests.methods.contract import Row
from tests.small_models import base_model
from tests.training.conftest import QUICK


@dataclass(frozen=True)
class ContractRun:
    """A finished run, the model as training left it, and its frozen tensors as they were when it was built."""

    run: Run
    model: torch.nn.Module
    frozen_at_first: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def contract_run(tmp_path_factory):
    """row → `ContractRun`: six steps of two micro-batches on `tiny`, with dropout."""
    done: dict[str, ContractRun] = {}

    def run(row: Row) -> ContractRun:
        if str(row) in done:
            return done[str(row)]
        kept: dict[str, Any] = {}
        original = training_run.attach

        def attach(model, config):
            kept["model"] = original(model, config)
            named = kept["model"].named_parameters()
            kept["frozen"] = {key: p.detach().clone() for key, p in named if not p.requires_grad}
            return kept["model"]

        training_run.attach = attach
        try:
            found = train_row(row, tmp_path_factory.mktemp("contract"), gradient_accumulation_steps=2)
        finally:
            training_run.attach = original
        done[str(row)] = ContractRun(found, kept["model"], kept["frozen"])
        return done[str(row)]

    return run


def train_row(row: Row, folder, *, on_step=None, **changes: Any) -> Run:
    """Train the row's method with the quick settings into a store in this folder."""
    config = RunConfig.parse({**QUICK, "method": row.method, **row.settings, **changes})
    result = train(config, folder, on_step=on_step)
    return Store.open(folder).get(result.run_id)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """Settings for a BERT classifier in a local folder and a table of labeled sentences."""
    from landscape.models import load_model

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = load_model(RunConfig(model="tiny")).tokenizer
    still = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    base_model("classification", torch.float32, num_labels=2, **still, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"text": f"{'good' if i % 3 else 'bad'} film number {i}", "label": int(i % 3 > 0)} for i in range(60)]
    pd.DataFrame(rows).to_json(folder / "rows.jsonl", orient="records", lines=True)
    files = {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")}
    columns = {"text": "text", "label": "label"}
    return {"model": str(folder), "task": "files", "data_files": files, "columns": columns, "max_length": 48}
