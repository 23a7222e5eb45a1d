"""EMA against a loop over the captured parameters."""

from __future__ import annotations

import pytest
import torch

from landscape.methods.ema import EMA
from tests.methods.quadratic import Quadratic, flat


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.9, True), (0.3, True), (0.0, False)])
def test_equals_a_loop(decay, warmup):
    model = Quadratic()
    ema = EMA(model, decay=decay, warmup=warmup)
    average, generator = model.theta, torch.Generator().manual_seed(0)
    for step in range(12):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        d = min(decay, (2 + step) / (11 + step)) if warmup else decay
        average = d * average + (1 - d) * model.theta
        before = model.theta
        ema.after_step(step)
        assert torch.equal(model.theta, before)
        torch.testing.assert_close(flat(ema.averages()["ema"]), average, rtol=1e-8, atol=1e-12)


def test_state_survives_a_round_trip():
    model = Quadratic()
    ema, other = EMA(model, decay=0.9), EMA(Quadratic(seed=1))
    other.load_state_dict(ema.state_dict())
    assert torch.equal(flat(other.averages()["ema"]), flat(ema.averages()["ema"]))
