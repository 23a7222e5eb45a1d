"""Accumulating k micro-batches is one batch k times the size, for every architecture (stock Trainer misses two)."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from landscape.config import RunConfig
from landscape.store import Store
from landscape.training import train
from tests.small_models import base_model
from tests.training.conftest import QUICK, final_weights

EXACT = {"dtype": "float64", "lora_dropout": 0.0, "max_steps": 4, "learning_rate": 1e-3}


@pytest.fixture
def encoder(tmp_path):
    """A BERT classifier in a local folder and a table of labeled sentences."""
    from landscape.models import load_model

    folder = tmp_path / "bert"
    tokenizer = load_model(RunConfig(model="tiny")).tokenizer
    base_model(
        "classification",
        torch.float32,
        num_labels=2,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"text": f"{'good' if i % 3 else 'bad'} film number {i}", "label": int(i % 3 > 0)} for i in range(60)]
    pd.DataFrame(rows).to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    files = {"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl")}
    columns = {"text": "text", "label": "label"}
    return {"model": str(folder), "task": "files", "data_files": files, "columns": columns, "max_length": 48}


@pytest.fixture(params=["decoder", "encoder-decoder", "encoder"])
def architecture(request):
    if request.param == "encoder":
        return request.getfixturevalue("encoder")
    return {"model": {"decoder": "tiny", "encoder-decoder": "tiny-t5"}[request.param]}


@pytest.mark.parametrize("method", ["lora", "mgpo", "ggpo"])
def test_accumulation_equals_one_large_batch(tmp_path, architecture, method):
    runs = []
    for name, batch, accumulation in (("large", 8, 1), ("accumulated", 2, 4)):
        changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "method": method}
        result = train(RunConfig.parse({**QUICK, **EXACT, **architecture, **changes}), tmp_path / name)
        runs.append(Store.open(tmp_path / name).get(result.run_id))
    large, accumulated = runs
    for column in ("loss_clean", "loss_perturbed", "grad_norm", "perturbation_norm", "adapter_norm", "tokens"):
        a, b = large.metrics()[column].to_numpy(), accumulated.metrics()[column].to_numpy()
        torch.testing.assert_close(torch.tensor(b), torch.tensor(a), rtol=1e-8, atol=1e-12)
    expected = final_weights(large)
    for key, value in final_weights(accumulated).items():
        # Adam divides by √v: where a gradient is rounding noise (1e-17), so is the direction of its step.
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["mgpo", "ggpo"])
def test_gradient_checkpointing_changes_no_loss(trained, method):
    plain, checkpointed = (trained(gradient_checkpointing=on, lora_dropout=0.0, method=method) for on in (False, True))
    a, b = plain.metrics()["loss_perturbed"].to_numpy(), checkpointed.metrics()["loss_perturbed"].to_numpy()
    torch.testing.assert_close(torch.tensor(b), torch.tensor(a), rtol=1e-5, atol=0)


def test_bfloat16_autocast_stays_near_float32(trained):
    plain, mixed = (trained(bf16=on, method="mgpo") for on in (False, True))
    a, b = plain.metrics()["loss_clean"].to_numpy(), mixed.metrics()["loss_clean"].to_numpy()
    assert (a != b).all()
    # bfloat16 keeps 8 bits: 2⁻⁸ a product, less over a mean of many.
    torch.testing.assert_close(torch.tensor(b), torch.tensor(a), rtol=2e-2, atol=0)
