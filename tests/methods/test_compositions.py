"""Every perturbation and rule over every adapter that it is offered for, trained."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from landscape.analysis.restored import restore
from landscape.methods import METHODS, adapters, compositions
from landscape.store import Store
from landscape.training import train
from landscape.training.evaluation import evaluate
from tests.methods.conftest import train_row
from tests.methods.contract import CONTRACT, Row
from tests.training.conftest import assert_equal_weights, curve

ARGUMENTS = {row.method: row.settings.get("method_args", {}) for row in reversed(CONTRACT)}
"""What makes a method cheap or small enough here, as the contract has it."""


def pairs() -> list[tuple[str, str]]:
    """(method, adapter), all that are offered beside plain LoRA."""
    above = [method for method in METHODS.values() if method.composes]
    return [(method.name, name) for method in above for name in compositions(method) if name != "lora"]


def covering() -> set[tuple[str, str]]:
    """Pairs in which every method and every adapter is met, each of them as rarely as can be."""
    met: set[str] = set()
    chosen = set()
    for wanted in (2, 1):  # first pairs of which neither was met
        for pair in pairs():
            if len(set(pair) - met) >= wanted:
                chosen.add(pair)
                met |= set(pair)
    return chosen


COVERING = covering()
EVERY_PAIR = [
    pytest.param(*pair, id="-".join(pair), marks=() if pair in COVERING else pytest.mark.slow) for pair in pairs()
]


def test_the_ordinary_run_meets_every_method_and_every_adapter():
    above = {method.name for method in METHODS.values() if method.composes}
    assert {method for method, _ in COVERING} == above
    assert {adapter for _, adapter in COVERING} == set(adapters()) - {"lora"}


@pytest.mark.parametrize(("method", "adapter"), EVERY_PAIR)
def test_resumes_bit_for_bit_and_reloads(tmp_path, method, adapter):
    settings = {"adapter": adapter, "method_args": ARGUMENTS[method], "max_steps": 4, "eval_steps": 4, "save_steps": 2}
    row = Row(method, settings)
    whole = train_row(row, tmp_path / "whole", gradient_accumulation_steps=2)
    assert whole.status.state == "done"
    assert np.isfinite(whole.metrics()["loss_clean"]).all()

    def interrupt(line):
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_row(row, tmp_path / "cut", on_step=interrupt, gradient_accumulation_steps=2)
    (run,) = Store.open(tmp_path / "cut").runs()
    assert train(run.config, tmp_path / "cut").state == "done"
    pd.testing.assert_frame_equal(curve(run), curve(whole), check_exact=True)
    assert_equal_weights(run.snapshots().tensors(4), whole.snapshots().tensors(4))
    model, data = restore(run, 4, device="cpu")
    found = evaluate(model, data.probe, "causal", batch_size=run.config.per_device_eval_batch_size)
    logged = run.evaluations()
    assert found["loss"] == logged[(logged["step"] == 4) & (logged["split"] == "probe")]["loss"].item()
