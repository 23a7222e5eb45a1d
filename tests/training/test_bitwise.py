"""What must be equal to the last bit: no perturbation and LoRA, a measured and an unmeasured run, resumed and not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from landscape.config import RunConfig
from landscape.store import Store
from landscape.training import train
from tests.training.conftest import QUICK, assert_equal_weights, curve, final_weights

UNPERTURBED = [
    ("mgpo", {"rho": 0.0}),
    ("ggpo", {"sigma": 0.0, "apply": "swap"}),
    ("ggpo", {"sigma": 0.0, "apply": "regenerate"}),
    ("mgpo-released", {"rho": 0.0}),
    ("flat-lora", {"sigma": 0.0}),
    ("sam", {"rho": 0.0}),
    ("msam", {"rho": 0.0}),
    ("rwp", {"sigma": 0.0}),
    ("lpf-sgd", {"gamma": 0.0}),
    ("ema", {}),
    ("ba-lora", {"consistency": 0.0, "diversity": 0.0, "singular_values": 0.0}),
]
# Ways of drawing and remembering; that every method resumes is held by tests/methods/test_contract.py.
RESUMED = [
    ("lora", {}),
    ("full", {}),
    ("mgpo", {}),
    ("mgpo", {"direction": "random"}),
    ("ggpo", {}),
    ("mgpo-released", {}),
]


@pytest.fixture(scope="module", params=[1, 2])
def plain(request, tmp_path_factory):
    """LoRA with one micro-batch a step, and with two."""
    config = RunConfig.parse({**QUICK, "gradient_accumulation_steps": request.param})
    folder = tmp_path_factory.mktemp("plain")
    run_id = train(config, folder).run_id
    return Store.open(folder).get(run_id)


@pytest.mark.parametrize(("method", "arguments"), UNPERTURBED)
def test_without_perturbation_every_method_is_lora(trained, plain, method, arguments):
    accumulation = plain.config.gradient_accumulation_steps
    other = trained(gradient_accumulation_steps=accumulation, method=method, method_args=arguments)
    found = curve(other)
    assert found["loss_perturbed"].tolist() == found["loss_clean"].tolist() == curve(plain)["loss_clean"].tolist()
    assert found["grad_norm"].tolist() == curve(plain)["grad_norm"].tolist()
    assert_equal_weights(final_weights(plain), final_weights(other))


@pytest.mark.parametrize("method", ["mgpo", "ggpo"])
def test_measuring_the_clean_loss_changes_nothing(trained, method):
    runs = [trained(method=method, clean_loss_every=every) for every in (1, 0, 3)]
    measured = [curve(run)["loss_clean"].notna().tolist() for run in runs]
    assert measured == [[True] * 6, [False] * 6, [False, False, True] * 2]
    for run in runs[1:]:
        assert curve(run)["loss_perturbed"].tolist() == curve(runs[0])["loss_perturbed"].tolist()
        assert_equal_weights(final_weights(run), final_weights(runs[0]))


def test_capturing_and_evaluating_change_nothing(trained):
    dense, sparse = trained(), trained(capture="none", eval_steps=0, save_steps=0, eval_examples=4)
    assert curve(dense)["loss_clean"].tolist() == curve(sparse)["loss_clean"].tolist()


@pytest.mark.parametrize("method", ["lora", "ggpo"])
def test_two_runs_of_one_seed_are_identical(trained, method):
    a, b = trained(method=method), trained(method=method)
    pd.testing.assert_frame_equal(curve(a), curve(b), check_exact=True)
    pd.testing.assert_frame_equal(a.evaluations(), b.evaluations(), check_exact=True)
    assert curve(a)["loss_clean"].tolist() != curve(trained(method=method, seed=1))["loss_clean"].tolist()


@pytest.mark.parametrize(("method", "arguments"), RESUMED)
def test_resumed_equals_uninterrupted(trained, tmp_path, method, arguments):
    changes = {"method": method, "method_args": arguments, "gradient_accumulation_steps": 2}
    whole = trained(**changes)
    store = tmp_path / "interrupted"
    config = RunConfig.parse({**QUICK, **changes})

    def interrupt(line):
        if line["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, store, on_step=interrupt)
    run = Store.open(store).runs()[0]
    assert run.status.state == "interrupted"
    result = train(config, store)
    assert (result.state, result.step, run.status.attempt) == ("done", 6, 2)
    pd.testing.assert_frame_equal(curve(run), curve(whole), check_exact=True)
    pd.testing.assert_frame_equal(run.evaluations(), whole.evaluations(), check_exact=True)
    resumed, uninterrupted = run.snapshots(), whole.snapshots()
    assert resumed.steps.tolist() == uninterrupted.steps.tolist() == list(range(7))
    for step in range(7):
        assert_equal_weights(resumed.tensors(step), uninterrupted.tensors(step))


def test_lengthening_keeps_the_identity_and_continues(tmp_path):
    short = RunConfig.parse({**QUICK, "lr_scheduler_steps": 8, "max_steps": 4})
    long = short.replace(max_steps=8)
    first = train(short, tmp_path / "a")
    second = train(long, tmp_path / "a")
    whole = train(long, tmp_path / "b")
    assert first.run_id == second.run_id == whole.run_id
    a, b = (Store.open(tmp_path / name).get(whole.run_id) for name in "ab")
    pd.testing.assert_frame_equal(curve(a), curve(b), check_exact=True)
    assert a.config.max_steps == 8
    assert train(long, tmp_path / "a").step == 8


def test_learning_rate_stays_at_the_end_of_its_schedule(trained):
    rates = trained(lr_scheduler_steps=3, warmup_ratio=0.0).metrics()["learning_rate"].to_numpy()
    expected = [5e-3 * 0.5 * (1 + np.cos(np.pi * min(t, 3) / 3)) for t in range(6)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("method", ["ggpo", "mgpo-released"])
def test_frozen_weights_are_untouched(tmp_path, method, monkeypatch):
    import landscape.training.run as module

    kept = {}
    original = module.attach

    def attach(model, config):
        adapted = original(model, config)
        kept["model"] = adapted
        kept["before"] = {n: p.detach().clone() for n, p in adapted.named_parameters() if not p.requires_grad}
        return adapted

    monkeypatch.setattr(module, "attach", attach)
    train(RunConfig.parse({**QUICK, "method": method}), Path(tmp_path))
    frozen = {n: p for n, p in kept["model"].named_parameters() if not p.requires_grad}
    assert kept["before"].keys() == frozen.keys()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in kept["before"].items())
