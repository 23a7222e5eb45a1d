"""The released algorithm written out on materialized matrices in float64."""

from __future__ import annotations

import pytest
import torch

from landscape.loss import forward_losses
from landscape.methods import ReleasedMGPO
from tests.small_models import batch, lora_model


@pytest.mark.parametrize("offload", [False, True])
def test_equals_the_released_code_written_out(offload):
    model = lora_model("causal")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    mgpo = ReleasedMGPO(model, optimizer, rho=0.05, beta=0.9, max_scale=2.0, offload=offload)
    originals = [layer.base.weight.detach().clone() for layer in mgpo.layers]
    means: list[float | None] = [None] * len(originals)
    clamped = 0
    for t in range(4):
        expected = []
        for layer, weight, mean in zip(mgpo.layers, originals, means, strict=True):
            if mean is None:
                expected.append(weight)
                continue
            m_a, m_b = (optimizer.state[p]["exp_avg"] for p in (layer.A, layer.B))
            v = layer.scaling * (m_b @ layer.A.detach() + layer.B.detach() @ m_a)
            scale = min(1 / (mean + 1e-12), 2.0)
            clamped += scale == 2.0
            expected.append(weight - 0.05 * scale * v / v.norm())
        mgpo.perturb()
        for layer, weight in zip(mgpo.layers, expected, strict=True):
            torch.testing.assert_close(layer.base.weight.detach(), weight, rtol=1e-8, atol=1e-14)
        forward_losses(model, batch("causal", seed=t)).mean.backward()
        for i, layer in enumerate(mgpo.layers):
            length = float((layer.scaling * (layer.B.grad @ layer.A + layer.B @ layer.A.grad)).detach().norm())
            mean = means[i]
            means[i] = length if mean is None else 0.9 * mean + 0.1 * length
        mgpo.restore()
        assert all(torch.equal(layer.base.weight, w) for layer, w in zip(mgpo.layers, originals, strict=True))
        optimizer.step()
        optimizer.zero_grad()
    assert clamped > 0
    assert mgpo.mean_grad_norms == pytest.approx(means, rel=1e-8)
    assert 0 < mgpo.metrics()["mgpo_clamped"] <= 1

    other = ReleasedMGPO(model, optimizer)
    other.load_state_dict(mgpo.state_dict())
    assert other.mean_grad_norms == mgpo.mean_grad_norms
