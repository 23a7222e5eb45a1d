"""A finished run whose ``max_steps`` was raised: which runs stay the same run, and that they go on bit for bit."""

import pandas as pd
import pytest

from landscape.config import RunConfig
from landscape.store import Store
from landscape.store.keeping import Policy
from landscape.store.prune import prune
from landscape.store.verify import verify
from landscape.training import identify, train
from tests.training.conftest import QUICK, assert_equal_weights, curve

CONSTANT = {**QUICK, "lr_scheduler_type": "constant", "max_steps": 4, "eval_steps": 2, "save_steps": 4}


@pytest.mark.parametrize("method", ["lora", "mgpo"])
@pytest.mark.parametrize("pruned", [False, True])
def test_under_a_constant_schedule_it_goes_on_bit_for_bit(tmp_path, method, pruned):
    short = RunConfig.parse({**CONSTANT, "method": method})
    long = short.replace(max_steps=8)
    first = train(short, tmp_path / "lengthened")
    run = Store.open(tmp_path / "lengthened").get(first.run_id)
    if pruned:
        prune(run, Policy.parse("last"))
    second, whole = train(long, tmp_path / "lengthened"), train(long, tmp_path / "whole")
    assert first.run_id == second.run_id == whole.run_id
    assert (second.state, second.step, run.config.max_steps, run.status.max_steps) == ("done", 8, 8, 8)
    other = Store.open(tmp_path / "whole").get(whole.run_id)
    pd.testing.assert_frame_equal(curve(run), curve(other), check_exact=True)
    pd.testing.assert_frame_equal(run.evaluations(), other.evaluations(), check_exact=True)
    steps = run.snapshots().steps.tolist()
    assert steps == ([4, 5, 6, 7, 8] if pruned else list(range(9)))
    for step in steps:
        assert_equal_weights(run.snapshots().tensors(step), other.snapshots().tensors(step))
    assert verify(Store.open(tmp_path / "lengthened")).findings == ()


def length_changes_identity(**values):
    config = RunConfig.parse({**CONSTANT, **values})
    return identify(config)[0] != identify(config.replace(max_steps=8))[0]


IDENTITIES = [
    ({}, False, "the rate does not depend on the length"),
    ({"lr_scheduler_type": "cosine"}, True, "the cosine ends with the run"),
    ({"lr_scheduler_type": "linear"}, True, "so does the line"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_steps": 4}, False, "its length is given: the rate stays at its end"),
    ({"method": "flat-lora"}, True, "the noise grows until the run ends"),
    ({"method": "flat-lora", "method_args": {"ramp_steps": 4}}, False, "until a step that is given"),
    ({"method": "adalora", "max_steps": 6}, True, "the rank budget falls until the run ends"),
]


@pytest.mark.parametrize(("values", "another", "why"), IDENTITIES)
def test_a_run_whose_steps_depend_on_its_length_becomes_another_one(values, another, why):
    assert length_changes_identity(**values) == another, why


def test_a_cosine_of_given_length_stays_at_its_end(tmp_path):
    """Lengthened, such a run learns nothing more: the cosine ends at a rate of nothing."""
    short = RunConfig.parse({**CONSTANT, "lr_scheduler_type": "cosine", "lr_scheduler_steps": 4, "warmup_ratio": 0.0})
    first = train(short, tmp_path)
    second = train(short.replace(max_steps=6), tmp_path)
    assert first.run_id == second.run_id
    run = Store.open(tmp_path).get(first.run_id)
    assert run.metrics()["learning_rate"].tolist()[4:] == [0.0, 0.0]
    assert_equal_weights(run.snapshots().tensors(4), run.snapshots().tensors(6))


def test_without_its_checkpoint_a_lengthened_run_starts_over(tmp_path):
    """Dropped by prune, or never written: the result is the same, the time is spent again."""
    short = RunConfig.parse(CONSTANT)
    first = train(short, tmp_path / "a")
    run = Store.open(tmp_path / "a").get(first.run_id)
    prune(run, Policy.parse("last"), keep_checkpoint=False)
    train(short.replace(max_steps=8), tmp_path / "a")
    whole = train(short.replace(max_steps=8), tmp_path / "b")
    other = Store.open(tmp_path / "b").get(whole.run_id)
    pd.testing.assert_frame_equal(curve(run), curve(other), check_exact=True)
    assert run.snapshots().steps.tolist() == list(range(9))
