"""Methods over other methods' adapters, combinations that mean nothing, and methods from other packages."""

from __future__ import annotations

import importlib
import logging

import pytest

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.methods import METHODS, compositions, load_entry_points, recipe
from landscape.methods.table import method_rows
from landscape.training import identify, resolve, train
from tests.training.conftest import QUICK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pissa", "adapter": "dora"}, r"adapter: 'dora' cannot go below method 'pissa', .* an adapter"),
        ({"method": "lora", "adapter_args": {"x": 1}}, r"adapter_args: method 'lora' takes its arguments in method_"),
        ({"method": "mgpo", "adapter": "doar"}, r"adapter: 'doar' is not known; .*Did you mean 'dora'"),
        ({"method": "mgpo", "adapter": "sam"}, r"'sam' below method 'mgpo': it is no adapter; allowed: adalora, "),
        ({"method": "ggpo", "adapter": "dora"}, r"'dora' below method 'ggpo' means nothing for DoRA, .*allowed: lora"),
        ({"method": "ggpo", "adapter": "full"}, r"'full' below method 'ggpo' means nothing for full fine-tuning"),
        ({"method": "flat-lora", "adapter": "adalora"}, r"below method 'flat-lora' means nothing for AdaLoRA"),
        ({"method": "mgpo-released", "adapter": "nlora"}, r"below method 'mgpo-released' means nothing for NLoRA"),
        ({"method": "mgpo", "adapter": "lora-pro"}, r"below method 'mgpo': its optimizer keeps the momentum of the m"),
        ({"method": "sam", "adapter": "lora-pro"}, r"below method 'sam': its projection takes gradients at A and B"),
        ({"method": "entropy-sgd", "adapter": "lora-pro"}, r"below method 'entropy-sgd': its projection takes the gr"),
        ({"method": "ba-lora", "adapter": "nlora"}, r"'nlora' below method 'ba-lora' means nothing for NLoRA"),
        (
            {"method": "mgpo", "adapter": "lora-plus", "adapter_args": {"ration": 2}},
            r"adapter_args.ration: adapter 'lora-plus' has no such argument; .*Did you mean 'ratio'",
        ),
        ({"method": "lora-pro", "capture": {"moments": True}}, r"capture.moments: the optimizer of 'lora-pro' keeps"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_read(tmp_path, monkeypatch, changes, message):
    def too_early(*args, **kwargs):
        raise AssertionError("the combination has to be refused before this")

    # By their modules: the package has a function of the name `resolve`.
    for module, names in (
        ("resolve", ("check_model", "check_task", "empty_model", "model_digest", "data_digest")),
        ("run", ("load_model", "load_task")),
    ):
        for name in names:
            monkeypatch.setattr(importlib.import_module(f"landscape.training.{module}"), name, too_early)
    store = tmp_path / "store"
    with pytest.raises(UsageError, match=message):
        train(RunConfig.parse({**QUICK, **changes, "model": "an-organization/a-model-of-the-hub"}), store)
    assert not store.exists()


def test_a_rank_that_no_layer_has_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("landscape.training.run.load_model", None)
    message = r"rank: 60, of which lora-ga makes 120, exceeds the size of layer"
    with pytest.raises(UsageError, match=message):
        train(RunConfig.parse({**QUICK, "method": "lora-ga", "rank": 60}), tmp_path / "store")


def test_every_offered_composition_resolves():
    for method in METHODS.values():
        for adapter in compositions(method) if method.composes else ():
            made = recipe(RunConfig(method=method.name, adapter=adapter, max_steps=20))
            assert (made.method.name, made.adapter.name, made.is_composed) == (method.name, adapter, True)


def test_an_adapter_of_its_own_is_part_of_the_identity():
    plain, lora, dora, faster = (
        RunConfig.parse({**QUICK, "method": "mgpo", **changes})
        for changes in (
            {},
            {"adapter": "lora"},
            {"adapter": "dora"},
            {"adapter": "lora-plus", "adapter_args": {"ratio": 4}},
        )
    )
    ids = [identify(config)[0] for config in (plain, lora, dora, faster)]
    assert ids[0] == ids[1]  # lora is what goes below when nothing is said
    assert len(set(ids)) == 3
    assert ids[2].startswith("mgpo-dora-r4-")
    assert resolve(faster).adapter_args == {"ratio": 4.0}
    assert identify(faster.replace(adapter_args={"ratio": 8}))[0] != ids[3]
    assert identify(resolve(faster))[0] == ids[3]


def test_runs_without_that_key_are_named_as_before():
    """Of a run trained before the key existed: stores keep their runs."""
    config = RunConfig.parse({**QUICK, "method": "mgpo"})
    values = config.model_dump()
    del values["adapter"], values["adapter_args"]
    assert identify(RunConfig.parse(values)) == identify(config)


def test_entry_points_register_methods(installed, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert load_entry_points() == ["from-elsewhere"]
        assert load_entry_points() == []
    assert "entry point bad of group landscape.methods cannot be loaded" in caplog.text
    assert compositions(METHODS["from-elsewhere"]) == compositions(METHODS["ggpo"])
    assert any(row["name"] == "from-elsewhere" for row in method_rows())
    with pytest.raises(UsageError, match="'dora' below method 'from-elsewhere' means nothing for DoRA"):
        train(RunConfig.parse({**QUICK, "method": "from-elsewhere", "adapter": "dora"}), tmp_path / "store")
