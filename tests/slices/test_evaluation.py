from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError, UsageError
from landscape.slices import Coordinates, loss_slice
from landscape.slices import evaluation as module
from landscape.slices.grid import prepare_slice
from landscape.slices.spaces import Way
from tests.curvature.conftest import SHAPES
from tests.curvature.workload import workload
from tests.slices.models import double, ragged
from tests.small_models import batch


def test_ways_are_compared_and_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = double("causal", **SHAPES["causal"]), ragged("causal")
    clock = iter(np.arange(10_000) * 1.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    result = loss_slice(model, batches, points=(3, 32), radius=0.5)
    # Every pass takes one second of this clock, so the largest stack is the fastest way.
    assert result.seconds_a_point == {"stacked x16": 1 / 16, "merged": 1, "stacked x4": 1 / 4, "in_place": 1}
    assert result.evaluation == "stacked x16"
    fixed = loss_slice(model, batches, points=(3, 32), radius=0.5, evaluation="in_place")
    np.testing.assert_allclose(result.loss, fixed.loss, rtol=1e-10)


def test_few_points_take_the_first_way() -> None:
    result = loss_slice(double("causal", **SHAPES["causal"]), ragged("causal"), points=5)
    assert set(result.seconds_a_point) == {"stacked x16"}


def test_large_batches_are_not_stacked() -> None:
    result = loss_slice(double("causal", **SHAPES["causal"]), batch("causal", 70, 20), points=8, radius=0.5)
    assert "stacked" in result.seconds_a_point
    assert not any("x" in name for name in result.seconds_a_point)


def test_the_output_layer_sees_the_counted_positions_alone() -> None:
    model, batches = double("causal", **SHAPES["causal"]), [batch("causal")]
    shapes: list[torch.Size] = []
    model.get_base_model().lm_head.register_forward_hook(lambda layer, inputs, output: shapes.append(output.shape))
    loss_slice(model, batches, dims=1, points=5, evaluation="in_place")
    count = int((batches[0]["labels"][:, 1:] != -100).sum())
    assert shapes[0] == (4, 9, 32)  # the reference
    assert set(shapes[1:]) == {(1, count, 32)}


class LengthReader(nn.Module):
    """Mixes the examples of a batch, so that stacked points see one another."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.layer(*args, **kwargs)
        return output + output.mean(dim=0, keepdim=True)


def mixing() -> nn.Module:
    model = double("causal", **SHAPES["causal"])
    decoder = model.get_base_model().model.layers[0]
    decoder.mlp = LengthReader(decoder.mlp)
    return model


def test_a_model_that_mixes_examples_is_not_stacked() -> None:
    result = loss_slice(mixing(), ragged("causal"), points=9, radius=0.5)
    assert not any("x" in name for name in result.seconds_a_point)
    fixed = loss_slice(mixing(), ragged("causal"), points=9, radius=0.5, evaluation="in_place")
    np.testing.assert_allclose(result.loss, fixed.loss, rtol=1e-10)
    with pytest.raises(UsageError, match=r"two evaluations of the same point \(stacked x16\) differ by"):
        loss_slice(mixing(), ragged("causal"), points=9, evaluation="stacked")


class OneShape(LengthReader):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if len(args[0]) > 4:
            raise RuntimeError("compiled for 4 examples")
        return self.layer(*args, **kwargs)


def test_a_model_that_refuses_other_shapes_is_not_stacked() -> None:
    model = double("causal", **SHAPES["causal"])
    decoder = model.get_base_model().model.layers[0]
    decoder.mlp = OneShape(decoder.mlp)
    result = loss_slice(model, ragged("causal"), points=3)
    assert result.evaluation in ("merged", "in_place")


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    model = double("causal", **SHAPES["causal"])
    norm = model.get_base_model().model.norm
    norm.register_forward_hook(lambda layer, inputs, output: output * (1 + 0.1 * torch.rand_like(output)))
    with pytest.raises(UsageError, match=r"two evaluations of the same point .* differ by .* remove what draws random"):
        loss_slice(model, ragged("causal"), points=3)


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that a call holds at once on the CPU, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


@pytest.mark.parametrize("space", ["adapter", "tangent"])
def test_a_stacked_point_takes_at_most_two_adapters(space: str) -> None:
    model = double("causal", **SHAPES["causal"])
    prepared = prepare_slice(model, ragged("causal")[1], 2, 3, 0.5, None, space, 0)
    data, adapter = prepared.data, 8 * Coordinates(model).size
    for way in prepared.evaluator._ways:
        points = torch.linspace(-0.5, 0.5, 2 * way.stack, dtype=torch.float64).view(way.stack, 2)

        def displaced(way: Way = way, points: torch.Tensor = points) -> None:
            with way.at(points):
                data.sums(way.stack)

        with module.evaluating(model):
            displaced()  # fills what is kept from pass to pass
            # The same batch as often, so that what is left is what displacing it takes.
            extra = peak_bytes(displaced) - peak_bytes(lambda way=way: data.sums(way.stack))
        if way.kind == "stacked":
            assert extra <= 2 * way.stack * adapter
            # Displaced adapters are there for the whole pass; tangent factors for one layer, which is not the peak.
            assert space == "tangent" or extra > 0.05 * way.stack * adapter


def test_out_of_memory_is_one_line_of_advice() -> None:
    model = double("causal", **SHAPES["causal"])

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.get_base_model().model.norm.register_forward_pre_hook(fail)
    with pytest.raises(LandscapeError, match="out of memory during a forward pass; use smaller batches"):
        loss_slice(model, ragged("causal"), points=3)


@pytest.mark.parametrize("space", ["adapter", "merged", "tangent"])
def test_float32_agrees_with_float64(space: str) -> None:
    model, whole = workload()
    small = {key: value[:2, :16] for key, value in whole.items()}
    options: dict[str, Any] = {"points": 3, "space": space, "normalization": "filter"}
    single = loss_slice(model, small, **options)
    exact = loss_slice(model.double(), small, **options)
    np.testing.assert_allclose(single.loss, exact.loss, rtol=1e-5)
    assert np.ptp(exact.loss) > 1e-3
