"""What a run leaves behind: metrics with their meaning, divergence as a result, nothing where the input is bad."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape.config import RunConfig
from landscape.data import load_task
from landscape.loss import forward_losses
from landscape.models import load_model
from landscape.store import LeaseHeldError, Store
from landscape.training import estimate_record_bytes, prepare_base_loss, resolve, train
from landscape.training.order import data_order
from tests.training.conftest import QUICK

GOLDEN = Path(__file__).with_name("golden_losses.json")


@pytest.mark.parametrize("method", ["lora", "ggpo", "mgpo", "mgpo-released", "full"])
def test_golden_losses(trained, method):
    found = trained(method=method, lora_dropout=0.0, max_steps=8).metrics()
    expected = json.loads(GOLDEN.read_text())[method]
    np.testing.assert_allclose(found["loss_clean"], expected["loss_clean"], rtol=1e-4)  # other CPUs sum otherwise
    np.testing.assert_allclose(found["loss_perturbed"], expected["loss_perturbed"], rtol=1e-4)


def test_a_step_line_says_what_it_measured(trained):
    run = trained(method="mgpo", base_loss=True)
    config, frame = run.config, run.metrics()
    assert frame["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert frame["epoch"].tolist() == [4 * step / 64 for step in range(1, 7)]
    assert (frame["tokens"].diff().dropna() > 0).all()
    assert (frame["seconds"] > 0).all()
    assert frame["perturbation_norm"].iloc[0] == 0
    radius = 0.05 / frame["mgpo_mean_grad_norm"].iloc[:-1].to_numpy()
    np.testing.assert_allclose(frame["perturbation_norm"].iloc[1:], radius, rtol=1e-5)

    # The first step's clean loss and its base loss are the untouched model's: B is zero.
    config = config.replace(lora_dropout=0.0)
    loaded = load_model(config)
    data = load_task(config, loaded.tokenizer, loaded.kind)
    order = np.load(next((run.path.parents[1] / "orders").glob("*.npy")), allow_pickle=False)
    for step in (0, 3):
        batch = data.train.collate(order[4 * step : 4 * step + 4].tolist())
        with torch.no_grad():
            base = float(forward_losses(loaded.model.eval(), batch).mean)
        assert frame["loss_base"].iloc[step] == pytest.approx(base, rel=1e-5)


def test_evaluations_carry_their_errors_and_metrics(trained):
    frame = trained().evaluations()
    assert sorted(set(zip(frame["step"], frame["split"], strict=True))) == [
        (step, split) for step in (0, 3, 6) for split in ("eval", "probe")
    ]
    assert (frame["standard_error"] > 0).all()
    assert (frame["num_examples"] == 8).all()
    assert frame["token_accuracy"].between(0, 1).all()


def test_data_order_depends_on_the_data_seed_alone(tmp_path):
    for changes in ({}, {"method": "mgpo"}, {"rank": 2}, {"learning_rate": 1e-4}, {"seed": 3, "data_seed": 0}):
        train(RunConfig.parse({**QUICK, "max_steps": 2, **changes}), tmp_path)
    assert len(list((tmp_path / "orders").iterdir())) == 1
    train(RunConfig.parse({**QUICK, "max_steps": 2, "seed": 3}), tmp_path)
    orders = [np.load(path, allow_pickle=False) for path in (tmp_path / "orders").iterdir()]
    assert len(orders) == 2
    for order in orders:
        assert sorted(order[:64].tolist()) == list(range(64))


def test_divergence_is_a_result(trained):
    run = trained(learning_rate=1e18, max_steps=12, warmup_ratio=0.0, method="full", lr_scheduler_type="constant")
    frame = run.metrics()
    assert run.status.state == "diverged"
    assert not math.isfinite(frame["loss_clean"].iloc[-1])
    assert frame["loss_clean"].iloc[:-1].map(math.isfinite).all()
    steps = run.snapshots().steps.tolist()
    assert steps == list(range(len(frame)))
    assert all(torch.isfinite(t).all() for t in run.snapshots().tensors(0).values())


def test_a_finished_run_is_not_trained_again(trained, tmp_path):
    run = trained()
    before = run.status
    result = train(run.config, run.path.parents[1])
    assert (result.state, result.step) == ("done", 6)
    assert run.status == before


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    config = RunConfig.parse({**QUICK, "max_steps": 2, "lr_scheduler_steps": 4})
    result = train(config, tmp_path)
    run = Store.open(tmp_path).get(result.run_id)
    longer = config.replace(max_steps=4)
    with run.claim(), pytest.raises(LeaseHeldError, match=f"is being worked on by process {os.getpid()} on"):
        train(longer, tmp_path)
    assert run.status.state == "done"
    assert train(longer, tmp_path).step == 4


def test_full_fine_tuning_has_no_rank(tmp_path):
    configs = [resolve(RunConfig.parse({**QUICK, "method": "full", "rank": rank})) for rank in (4, 8)]
    assert configs[0] == configs[1]
    assert configs[0].rank is None


def test_record_bytes_are_estimated_without_weights(trained):
    for method in ("lora", "full"):
        run = trained(method=method, max_steps=1)
        assert estimate_record_bytes(run.config) == pytest.approx(run.snapshots().layout.record_bytes, rel=1e-2)


def test_base_losses_do_not_depend_on_who_came_first(tmp_path, monkeypatch):
    import landscape.training.base_loss as module

    for place in (module, sys.modules["landscape.training.run"]):
        monkeypatch.setattr(place, "BLOCK", 8)
    long = RunConfig.parse({**QUICK, "base_loss": True, "max_steps": 12, "lr_scheduler_steps": 12})
    for store, steps in (("a", (3, 12)), ("b", (12,)), ("c", (7, 3, 12))):
        for max_steps in steps:
            path = prepare_base_loss(long.replace(max_steps=max_steps), tmp_path / store)
    tables = [module.load_base_loss(tmp_path / store / "base_loss" / path.name, 64) for store in "abc"]
    assert np.isfinite(tables[0].nll).sum() == len(np.unique(data_order(64, 0, 48)))
    for table in tables[1:]:
        np.testing.assert_array_equal(table.nll, tables[0].nll)
        np.testing.assert_array_equal(table.count, tables[0].count)
    other = prepare_base_loss(long.replace(data_seed=1), tmp_path / "a")
    assert other.name != path.name


def test_base_losses_are_computed_once(tmp_path, monkeypatch):
    import landscape.training.base_loss as module

    config = RunConfig.parse({**QUICK, "base_loss": True, "max_steps": 2})
    path = prepare_base_loss(config, tmp_path)
    assert path is not None
    assert path.exists()
    monkeypatch.setattr(module, "forward_losses", lambda *_: pytest.fail("computed again"))
    train(config, tmp_path)
    train(config.replace(method="mgpo", rank=2), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lroa"}, r"method: 'lroa' is not known; allowed: .*Did you mean 'lora'"),
        ({"method_args": {"rho": 1}}, r"method_args.rho: method 'lora' has no such argument"),
        ({"model": "tini"}, r"model: 'tini'.*Did you mean 'tiny'"),
        ({"task": "arithmetics"}, r"task: 'arithmetics'.*Did you mean 'arithmetic'"),
        ({"rank": 4096}, r"rank: 4096 exceeds the size of layer .*; allowed: 1 to \d+"),
        ({"rank": None}, r"rank, alpha: method 'lora' needs both"),
        ({"target_modules": ["q_prj"]}, r"target_modules: \['q_prj'\] matches no linear layer.*Did you mean 'q_proj'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, message):
    store = tmp_path / "store"
    with pytest.raises(ValueError, match=message):
        train(RunConfig.parse({**QUICK, **changes}), store)
    assert not store.exists()


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_sharded_training_is_refused(tmp_path, monkeypatch, variable, name):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"{name} is not supported"):
        train(RunConfig.parse(QUICK), tmp_path / "store")
