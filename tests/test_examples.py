"""The example scripts: the perturbations and the capture outside our trainer, in three kinds of loop."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from landscape.methods import MGPOCallback
from landscape.store import Store, export_adapter

EXAMPLES = Path(__file__).parent.parent / "experiments" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["mgpo", "ggpo"])
def test_plain_loop(method):
    losses = example("plain_loop").main(8, method)
    assert np.mean(losses[-3:]) < losses[0]


@pytest.fixture
def third_party_warnings():
    """Trainer and TRL warn about their own defaults; what they train is checked below."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("third_party_warnings")
@pytest.mark.parametrize("name", ["hf_trainer", "trl_sft"])
def test_callbacks_in_other_trainers(tmp_path, name):
    trainer = example(name).main(6, str(tmp_path / "store"))
    (run,) = Store.open(tmp_path / "store").runs()
    assert (run.status.state, run.status.step) == ("done", 6)
    snapshots = run.snapshots()
    assert snapshots.steps.tolist() == list(range(7))
    # The last snapshot is what the trainer ended with, not the perturbed weights.
    live = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    last = snapshots.tensors(6)
    assert live.keys() == last.keys()
    assert all(torch.equal(last[key].to(value.dtype), value.cpu()) for key, value in live.items())
    metrics = run.metrics()
    assert metrics["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert metrics["loss_perturbed"].notna().all()
    assert metrics["loss_clean"].isna().all()
    assert (export_adapter(run, 3, tmp_path / "adapter") / "adapter_model.safetensors").exists()


@pytest.mark.usefixtures("third_party_warnings")
def test_a_rebound_planted_by_a_learning_rate_shock_is_noticed(tmp_path):
    trainer, watch = example("watch").main(150, str(tmp_path / "store"))
    event = watch.events[0]
    assert 100 < event.step <= 120
    assert 80 < event.since <= 105
    (run,) = Store.open(tmp_path / "store").runs()
    assert set(range(event.step - 19, event.step + 20)) <= set(run.snapshots().steps.tolist())
    assert run.metrics().set_index("step")["episode_warning"].dropna().to_dict()[event.step] == event.since
    assert [e["step"] for e in trainer.state.log_history if "episode_warning" in e] == [e.step for e in watch.events]


@pytest.mark.usefixtures("third_party_warnings")
@pytest.mark.parametrize("watched", [True, False])
def test_clipping_hides_the_gradient_norm_unless_the_callback_watches(tmp_path, caplog, watched):
    from transformers import Trainer, TrainingArguments

    from tests.small_models import batch, lora_model

    callback = MGPOCallback(rho=0.05)
    rows = [{key: value[0] for key, value in batch("causal", 1, seed=i).items()} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, max_grad_norm=1e-3, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(lora_model("causal", torch.float32), arguments, train_dataset=rows, callbacks=[callback])
    if watched:
        callback.watch(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert ("gradient norms after clipping" in caplog.text) is not watched
    assert callback.perturbation is not None
    norm = callback.perturbation.mean_grad_norm
    assert norm > 2e-3 if watched else norm == pytest.approx(1e-3, rel=1e-2)
