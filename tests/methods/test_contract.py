"""What every method has to do, whatever it is: one table of rows, and one test for each promise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from landscape.analysis.restored import restore
from landscape.methods import METHODS, load_entry_points
from landscape.store import Store
from landscape.training import estimate_record_bytes, train
from landscape.training.evaluation import evaluate
from tests.methods.conftest import train_row
from tests.methods.contract import CONTRACT, Row
from tests.training.conftest import assert_equal_weights, curve, final_weights

every_method = pytest.mark.parametrize("row", CONTRACT, ids=str)


def test_every_method_has_a_row():
    assert set(METHODS) <= {row.method for row in CONTRACT}


@every_method
def test_trains_on_tiny_and_the_loss_falls(contract_run, row):
    run = contract_run(row).run
    assert run.status.state == "done"
    evaluations = run.evaluations()
    probe = evaluations[evaluations["split"] == "probe"]["loss"].to_numpy()
    assert probe[-1] < probe[0] - 0.02
    assert run.metrics()["loss_clean"].notna().all()


@every_method
def test_begins_with_the_pretrained_models_loss(contract_run, row):
    """Cross-entropies compare across methods: all are of the same function on the same examples at the start."""
    evaluations = [contract_run(r).run.evaluations() for r in (row, CONTRACT[1])]
    starts = [frame[frame["step"] == 0].set_index("split")["loss"] for frame in evaluations]
    for split in ("eval", "probe"):
        # Moving a part of W into BA rounds in float32.
        assert starts[0][split] == pytest.approx(starts[1][split], rel=1e-4)


@every_method
def test_only_what_it_should_train_changes(contract_run, row):
    done = contract_run(row)
    now = dict(done.model.named_parameters())
    kept = done.run.snapshots().base_tensors()
    assert bool(kept) == row.rewrites
    for name, tensor in done.frozen_at_first.items():
        assert torch.equal(now[name].detach(), kept.get(name, tensor)), name
    captured = done.run.snapshots()
    first, last = captured.tensors(0), captured.tensors(6)
    assert set(first) == {name for name, p in now.items() if p.requires_grad} == set(now) - set(done.frozen_at_first)
    states = [captured.tensors(step) for step in range(1, 7)]
    # At some step: AdaLoRA prunes λ back to the zero that it started from.
    assert not [name for name in first if all(torch.equal(first[name], state[name]) for state in states)]
    for name, tensor in last.items():
        assert torch.equal(tensor, now[name].detach())


@every_method
def test_a_snapshot_gives_the_model_back(contract_run, row):
    done = contract_run(row)
    model, data = restore(done.run, 6, device="cpu")
    batch = next(iter(data.probe.batches(8)))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, done.model.eval()(**inputs).logits)
    found = evaluate(model, data.probe, "causal", batch_size=done.run.config.per_device_eval_batch_size)
    logged = done.run.evaluations()
    logged = logged[(logged["step"] == 6) & (logged["split"] == "probe")]
    assert found["loss"] == logged["loss"].item()


@every_method
def test_resumed_equals_uninterrupted(contract_run, row, tmp_path):
    """Two runs of one seed, one of them interrupted: bit for bit the same."""
    whole = contract_run(row).run

    def interrupt(line):
        if line["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_row(row, tmp_path, on_step=interrupt, gradient_accumulation_steps=2)
    (run,) = Store.open(tmp_path).runs()
    result = train(run.config, tmp_path)
    assert (result.state, result.step, run.status.attempt, run.id) == ("done", 6, 2, whole.id)
    pd.testing.assert_frame_equal(curve(run), curve(whole), check_exact=True)
    pd.testing.assert_frame_equal(run.evaluations(), whole.evaluations(), check_exact=True)
    assert run.streams() == whole.streams()
    for stream in whole.streams():
        resumed, uninterrupted = run.snapshots(stream), whole.snapshots(stream)
        assert resumed.steps.tolist() == uninterrupted.steps.tolist() == list(range(7))
        assert_equal_weights(resumed.tensors(6), uninterrupted.tensors(6))
    assert_equal_weights(run.snapshots().base_tensors(), whole.snapshots().base_tensors())


@every_method
def test_accumulation_equals_one_large_batch(tmp_path, row):
    exact = {"dtype": "float64", "lora_dropout": 0.0, "max_steps": 3, "eval_steps": 0, "learning_rate": 1e-4}
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        runs.append(train_row(row, tmp_path / str(accumulation), **exact, **sizes))
    large, small = (run.metrics() for run in runs)
    if row.accumulates:
        assert (large["grad_norm"] != small["grad_norm"]).any(), row.accumulates
        np.testing.assert_allclose(small["loss_clean"], large["loss_clean"], rtol=1e-3)
        return
    # The gradients of the first step are at equal weights. After it Adam's 1/√v magnifies rounding where a gradient is
    # nearly zero, and LoRA-Pro's (BᵀB)⁻¹ does where B is small.
    later = 1e-5 if row.method == "lora-pro" else 1e-7
    for column in ("loss_clean", "loss_perturbed", "grad_norm", "perturbation_norm", "tokens"):
        a, b = large[column].to_numpy(), small[column].to_numpy()
        np.testing.assert_allclose(b[:1], a[:1], rtol=1e-8, atol=1e-12, err_msg=column)
        np.testing.assert_allclose(b, a, rtol=later, atol=1e-12, err_msg=column)


@pytest.mark.parametrize("row", [row for row in CONTRACT if "adapter" not in row.settings], ids=str)
@pytest.mark.parametrize("architecture", ["encoder-decoder", "encoder"])
def test_works_on_other_architectures(tmp_path, request, row, architecture):
    encoder = architecture == "encoder"
    model = request.getfixturevalue("encoder") if encoder else {"model": "tiny-t5"}
    run = train_row(row, tmp_path, max_steps=2, eval_steps=0, save_steps=0, **model)
    assert run.status.state == "done"
    assert np.isfinite(run.metrics()["loss_clean"]).all()
    restored, data = restore(run, 2, device="cpu")
    found = evaluate(restored, data.probe, "classification" if encoder else "seq2seq", batch_size=32)
    logged = run.evaluations()
    assert found["loss"] == logged[(logged["step"] == 2) & (logged["split"] == "probe")]["loss"].item()


@every_method
def test_a_snapshots_size_is_known_without_weights(contract_run, row):
    run = contract_run(row).run
    assert estimate_record_bytes(run.config) == pytest.approx(run.snapshots().layout.record_bytes, rel=1e-2)


def test_adalora_reports_the_cross_entropy_and_differentiates_more(contract_run):
    plain = contract_run(next(row for row in CONTRACT if row.method == "adalora")).run.metrics()
    assert (plain["adalora_penalty"] > 0.01).all()
    assert (plain["loss_perturbed"] == plain["loss_clean"]).all()


def test_ema_is_captured_and_evaluated_beside_the_raw_parameters(contract_run):
    run = contract_run(next(row for row in CONTRACT if row.method == "ema" and not row.settings)).run
    lora = contract_run(CONTRACT[1]).run
    assert_equal_weights(final_weights(run), final_weights(lora))  # training does not see it
    raw, averaged = run.snapshots(), run.snapshots("ema")
    average = raw.tensors(0)
    for step in range(1, 7):
        decay = min(0.999, (1 + step) / (10 + step))
        now = raw.tensors(step)
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
        for name, tensor in averaged.tensors(step).items():
            torch.testing.assert_close(tensor, average[name], rtol=1e-5, atol=1e-7)
    frame = run.evaluations()
    losses = frame[frame["step"] == 6].set_index("split")["loss"]
    assert set(losses.index) == {"eval", "probe", "eval-ema", "probe-ema"}
    model, data = restore(run, 6, device="cpu")
    with torch.no_grad():
        named = dict(model.named_parameters())
        for name, tensor in averaged.tensors(6).items():
            named[name].copy_(tensor)
    found = evaluate(model, data.probe, "causal", batch_size=run.config.per_device_eval_batch_size)
    assert found["loss"] == losses["probe-ema"]


def test_lora_plus_logs_the_learning_rate_of_each_group(contract_run):
    run = contract_run(next(row for row in CONTRACT if row.method == "lora-plus")).run
    frame = run.metrics()
    np.testing.assert_allclose(frame["learning_rate_lora_B"], 16 * frame["learning_rate"], rtol=1e-12)


def test_a_method_from_another_package_obeys_the_contract(contract_run, installed, tmp_path, request):
    load_entry_points()
    row = Row("from-elsewhere")
    for promise in (
        test_trains_on_tiny_and_the_loss_falls,
        test_begins_with_the_pretrained_models_loss,
        test_only_what_it_should_train_changes,
        test_a_snapshot_gives_the_model_back,
        test_a_snapshots_size_is_known_without_weights,
    ):
        promise(contract_run, row)
    test_resumed_equals_uninterrupted(contract_run, row, tmp_path / "resumed")
    test_accumulation_equals_one_large_batch(tmp_path / "accumulated", row)
    for architecture in ("encoder-decoder", "encoder"):
        test_works_on_other_architectures(tmp_path / architecture, request, row, architecture)
