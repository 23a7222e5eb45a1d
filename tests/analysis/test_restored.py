"""The model as it was at a captured step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from landscape.analysis import open_run, restore
from landscape.errors import StoreError
from landscape.loss import forward_losses, mean_loss
from landscape.store import Run
from landscape.store.snapshots import write_base_tensors
from tests.analysis.trained_runs import Stores, edit_config, edit_json, only_run


@pytest.mark.parametrize("name", ["lora", "mgpo", "full"])
def test_a_restored_model_has_the_losses_that_were_measured_in_training(stores: Stores, name: str) -> None:
    run = only_run(stores(name))
    measured = run.evaluations().set_index(["split", "step"])["loss"]
    restored = open_run(run, device="cpu")
    for step in (4, 0, 2):
        restored.load(step)
        for split in ("eval", "probe"):
            batches = getattr(restored.data, split).batches(4)
            with torch.no_grad():
                loss = mean_loss(forward_losses(restored.model, batch) for batch in batches)
            assert loss.value == pytest.approx(measured[split, step], rel=1e-5)


def test_restore_gives_the_captured_parameters(run: Run) -> None:
    model, data = restore(run, 3, device="cpu")
    captured = run.snapshots().tensors(3)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == captured.keys()
    assert all(torch.equal(trainable[name], captured[name]) for name in captured)
    assert not any(module.training for module in model.modules())
    assert len(data.probe) == 6


def test_base_tensors_that_the_method_rewrote_are_loaded(run: Run) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    write_base_tensors(run.path / "attempts" / "1", {name: torch.full((96, 96), 0.5)})
    model, _ = restore(run, 4, device="cpu")
    assert torch.equal(model.get_parameter(name), torch.full((96, 96), 0.5))


def rename_first_tensor(run: Run) -> None:
    def change(values: dict[str, Any]) -> None:
        values["streams"]["params"]["tensors"][0]["name"] = "somewhere.else"

    edit_json(run.path / "attempts" / "1" / "snapshots.json", change)


def rewrite_unknown_base(run: Run) -> None:
    write_base_tensors(run.path / "attempts" / "1", {"somewhere.else": torch.zeros(2)})


def forget_digest(what: str) -> Callable[[Run], None]:
    return lambda run: edit_json(run.path / "identity.json", lambda values: values["digests"].update({what: "other"}))


def set_rank(run: Run) -> None:
    edit_config(run, "rank: 2", "rank: 3")


UNFIT: dict[str, tuple[Callable[[Run], None], str]] = {
    "renamed": (rename_first_tensor, "the snapshot of step 1 lacks 1 trainable tensors, such as base_model"),
    "foreign base": (rewrite_unknown_base, "the stored base model holds somewhere.else, which the model does not have"),
    "other rank": (
        set_rank,
        r"the snapshot of step 1: base_model\S* is \(2, 96\) torch.float32, the model's \(3, 96\)",
    ),
    "other data": (forget_digest("data"), "the data is no longer what it was trained on"),
    "other model": (forget_digest("model"), "the model is no longer what it was trained on"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(run: Run, name: str) -> None:
    damage, message = UNFIT[name]
    damage(run)
    with pytest.raises(StoreError, match=message):
        restore(run, 1, device="cpu")


def test_a_step_that_was_not_captured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.analysis.restored.open_run", None)  # nothing is loaded
    with pytest.raises(StoreError, match="no snapshot of step 9; the nearest is 4"):
        restore(run, 9)
