"""What is read from a finished run of these methods elsewhere: PEFT folders, and Adam's preconditioner."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from landscape.analysis.restored import restore
from landscape.analysis.spaces import CapturedSpace
from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.models import load_model
from landscape.store import Store
from landscape.store.export import export_adapter
from landscape.training import train
from tests.training.conftest import QUICK


def trained(folder, **changes):
    config = RunConfig.parse({**QUICK, "max_steps": 3, "eval_steps": 0, **changes})
    run_id = train(config, folder).run_id
    return Store.open(folder).get(run_id)


@pytest.mark.parametrize("method", ["rslora", "dora", "adalora"])
def test_peft_loads_what_is_exported(tmp_path, method):
    run = trained(tmp_path / "store", method=method)
    base = load_model(run.config)
    exported = PeftModel.from_pretrained(base.model, str(export_adapter(run, 3, tmp_path / "adapter"))).eval()
    restored, data = restore(run, 3, device="cpu")
    batch = next(iter(data.probe.batches(4)))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        assert torch.equal(exported(**inputs).logits, restored(**inputs).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pissa"}, r"method 'pissa' rewrote \d+ base weights"),
        ({"method": "nlora", "method_args": {"residual": False}}, r"method 'nlora' trains .*lora_N.*, which PEFT does"),
    ],
)
def test_what_peft_cannot_hold_is_not_exported(tmp_path, changes, message):
    run = trained(tmp_path / "store", **changes, learning_rate=1e-4)
    with pytest.raises(StoreError, match=message):
        export_adapter(run, 3, tmp_path / "adapter")


def test_the_preconditioner_has_each_groups_own_learning_rate(tmp_path):
    run = trained(tmp_path, method="lora-plus", capture={"every": 1, "moments": True})
    model, _ = restore(run, 3, device="cpu")
    found = CapturedSpace(run, "preconditioned").preconditioner(model, 3)
    rate = float(run.metrics()["learning_rate"].iloc[2])
    assert rate > 0
    moments, parts = run.snapshots("adam_v").tensors(3), []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            corrected = (moments[name].double().flatten() / (1 - 0.999**3)).sqrt() + 1e-8
            own = rate * (16 if "lora_B" in name else 1)
            parts.append(torch.where(moments[name].flatten() > 0, own / ((1 - 0.9**3) * corrected), 0.0))
    torch.testing.assert_close(found, torch.cat(parts), rtol=1e-8, atol=0)
