"""Identity: every key either changes the id or is on the list of those that must not."""

from __future__ import annotations

from typing import Any

import pytest

from landscape.config import RunConfig, run_id
from landscape.config.identity import NOT_HASHED

# One value other than the default for each key, so that a new key needs a row here and a decision there.
OTHER_VALUES: dict[str, Any] = {
    "model": "other",
    "model_kwargs": {"gguf_file": "a.gguf"},
    "dtype": "bfloat16",
    "task": "gsm8k",
    "data_dir": "/data",
    "data_files": {"train": "a.jsonl"},
    "columns": {"input": "a", "target": "b"},
    "label_noise": 0.1,
    "train_examples": 10,
    "eval_examples": 10,
    "probe_examples": 10,
    "max_length": 64,
    "method": "mgpo",
    "method_args": {"rho": 0.1},
    "rank": 16,
    "alpha": 32.0,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj"],
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "lr_scheduler_steps": 100,
    "adapter": "dora",
    "adapter_args": {"init": "x"},
    "warmup_ratio": 0.1,
    "max_steps": 100,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1.0,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "weight_decay": 0.1,
    "bf16": True,
    "gradient_checkpointing": True,
    "seed": 1,
    "data_seed": 1,
    "eval_steps": 5,
    "clean_loss_every": 0,
    "base_loss": False,
    "capture": "none",
    "save_steps": 5,
    "report_to": ["tensorboard"],
}
# The model's digest stands for its name, and without an adapter below the method its arguments mean nothing.
KEEPS_ID = NOT_HASHED | {"model", "adapter_args"}
BASE = RunConfig.parse({"alpha": 16.0})


def identity(config: RunConfig, data: str = "d", model: str = "m") -> str:
    return run_id(config, data, model)


def test_every_key_has_a_row() -> None:
    assert set(OTHER_VALUES) == set(RunConfig.model_fields)
    assert set(RunConfig.model_fields) >= NOT_HASHED


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_only_what_changes_the_result_changes_the_id(key: str) -> None:
    other = BASE.replace(**{key: OTHER_VALUES[key]})
    assert getattr(other, key) != getattr(BASE, key)
    assert (identity(other) == identity(BASE)) == (key in KEEPS_ID)


def test_digests_change_the_id() -> None:
    assert len({identity(BASE), identity(BASE, data="e"), identity(BASE, model="n")}) == 3


def test_the_id_is_pinned() -> None:
    """An id that changes between versions would orphan every stored run: raise SCHEMA_VERSION when it has to."""
    config = RunConfig.parse(
        {"alpha": 16.0, "method": "mgpo", "rank": 64, "learning_rate": 5e-4, "method_args": {"a": 1}}
    )
    assert identity(config) == "mgpo-r64-lr0.0005-s0-76f835dd07"


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"rank": 8, "learning_rate": 1e-4}, "lora-r8-lr0.0001-s0-"),
        ({"rank": 8, "learning_rate": 2e-5}, "lora-r8-lr2e-5-s0-"),
        ({"method": "full", "rank": None, "alpha": None, "seed": 3}, "full-lr0.0001-s3-"),
        ({"learning_rate": 1e-10}, "lora-r8-lr1e-10-s0-"),
    ],
)
def test_ids_are_readable(values: dict[str, Any], start: str) -> None:
    assert identity(BASE.replace(**values)).startswith(start)


def test_processes_make_another_run_because_they_make_a_larger_batch():
    config = RunConfig.parse({})
    ids = [run_id(config, "data", "model", processes) for processes in (1, 2, 4)]
    assert len(set(ids)) == 3
    assert ids[0] == run_id(config, "data", "model")
