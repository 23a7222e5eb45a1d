"""The small runs that contract tests look at, trained once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch

import landscape.training.run as training_run
from landscape.config import RunConfig
from landscape.methods import METHODS
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


def labeled_sentences(folder) -> dict[str, Any]:
    """Settings for a table of sentences with two labels, written into this folder."""
    rows = [{"text": f"{'good' if i % 3 else 'bad'} film number {i}", "label": int(i % 3 > 0)} for i in range(60)]
    pd.DataFrame(rows).to_json(folder / "rows.jsonl", orient="records", lines=True)
    files = {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")}
    columns = {"text": "text", "label": "label"}
    return {"task": "files", "data_files": files, "columns": columns, "max_length": 48}


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
    return {"model": str(folder), **labeled_sentences(folder)}


PLUGIN = """
import torch
from landscape.methods import Arguments, Method


class SignNoiseArguments(Arguments):
    size: float = 0.001


class SignNoise:
    def __init__(self, model, size, seed):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.size, self.norm, self.saved = size, 0.0, []
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def perturb(self):
        self.saved = [p.detach().clone() for p in self.weights]
        for p in self.weights:
            p += self.size * torch.randn(p.shape, generator=self.generator, dtype=p.dtype).sign()
        self.norm = self.size * sum(p.numel() for p in self.weights) ** 0.5

    @torch.no_grad()
    def restore(self, grad_norm=None):
        for p, value in zip(self.weights, self.saved):
            p.copy_(value)
        self.saved = []

    def metrics(self):
        return {}

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])

    def close(self):
        self.restore()


METHOD = Method(
    name="from-elsewhere",
    summary="signs as noise, from another package",
    source="a test",
    adapter="lora",
    arguments=SignNoiseArguments,
    perturbation=lambda model, optimizer, arguments, seed: SignNoise(model, arguments.size, seed),
    perturbs="trained parameters",
)
"""


@pytest.fixture
def installed(tmp_path_factory, monkeypatch):
    """A package with two entry points, one of which fails, as an installer leaves it on the path."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "elsewhere_plugin.py").write_text(PLUGIN)
    info = folder / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[landscape.methods]\ngood = elsewhere_plugin:METHOD\nbad = elsewhere_plugin:MISSING\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield
    METHODS.pop("from-elsewhere", None)
    sys.modules.pop("elsewhere_plugin", None)
