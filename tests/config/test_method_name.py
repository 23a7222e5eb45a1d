"""A method over an adapter has one name, in run ids and wherever runs are shown."""

from __future__ import annotations

import pytest

from landscape.config import RunConfig, method_name, run_id


@pytest.mark.parametrize(
    ("method", "adapter", "name"),
    [("mgpo", None, "mgpo"), ("mgpo", "dora", "mgpo-dora"), ("mgpo-released", "lora-ga", "mgpo-released-lora-ga")],
)
def test_the_name_and_the_run_id(method, adapter, name):
    assert method_name(method, adapter) == name
    config = RunConfig.parse({"method": method, "adapter": adapter, "rank": 8})
    assert run_id(config, "d", "m").startswith(f"{name}-r8-lr0.0001-s0-")
