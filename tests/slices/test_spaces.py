"""Slices against direct evaluation at materialized weights in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from landscape.errors import UsageError
from landscape.slices import loss_slice, merged_space
from landscape.slices.layers import adapted_layers
from landscape.slices.merged_space import gaussian
from tests.oracles import reference_loss
from tests.slices.models import VARIANTS, adalora, dora, double, ragged
from tests.small_models import KINDS, base_model

NORMALIZATIONS = ("filter", "layer", "none")


def some_points(size: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, size, (count, 2))


def materialized(model: nn.Module, batches: list[dict[str, Tensor]], displacement: dict[str, Tensor]) -> float:
    """The loss with tensors of the model displaced."""
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        return float(
            reference_loss(model, batches, {name: tensors[name] + value for name, value in displacement.items()})
        )


def drawn(shape: tuple[int, ...], *key: int) -> Tensor:
    """The documented draw: float32, keyed by numbers through NumPy's SeedSequence."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def scaled(direction: Tensor, weight: Tensor, normalization: str) -> Tensor:
    """By the definition, a row at a time."""
    if normalization == "filter":
        rows = [d * (w.norm() / d.norm()) for d, w in zip(direction, weight, strict=True)]
        return torch.stack(rows)
    return direction * (weight.norm() / direction.norm()) if normalization == "layer" else direction


@pytest.mark.parametrize("evaluation", ["in_place", "merged", "stacked", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapter_slice(kind: str, evaluation: str) -> None:
    model, batches = double(kind), ragged(kind)
    result = loss_slice(model, batches, points=5, radius=0.7, seed=3, evaluation=evaluation)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert result.directions is not None
    for i, j in some_points(5):
        x, y = result.coordinates[i], result.coordinates[j]
        flat = x * result.directions[0] + y * result.directions[1]
        parts = flat.split([p.numel() for p in names.values()])
        displacement = {name: part.view_as(names[name]) for name, part in zip(names, parts, strict=True)}
        assert result.loss[i, j] == pytest.approx(materialized(model, batches, displacement), rel=1e-8)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_adapter_directions_are_the_documented_draw(normalization: str) -> None:
    model = double("classification")  # with a trained head, biases among it
    result = loss_slice(model, ragged("classification"), points=2, normalization=normalization, seed=4, draw=2)
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in trained]
    assert any(p.ndim == 1 for p in trained)
    assert result.directions is not None
    for axis, direction in enumerate(result.directions):
        parts = drawn((sum(sizes),), 4, 2, axis).split(sizes)
        expected = [
            torch.zeros_like(p) if p.ndim == 1 and normalization != "none" else scaled(d.view_as(p), p, normalization)
            for d, p in zip(parts, trained, strict=True)
        ]
        torch.testing.assert_close(direction, parameters_to_vector(expected))
    cosine = torch.nn.functional.cosine_similarity(*result.directions, dim=0)
    assert result.cosine == pytest.approx(float(cosine))


def merged_model(model: Any) -> nn.Module:
    """PEFT's own merge."""
    return copy.deepcopy(model).merge_and_unload()


def test_merging_is_what_the_oracle_does() -> None:
    model = double("causal")
    layer = adapted_layers(model)[3]
    merged = dict(merged_model(model).named_parameters())[f"{layer.name.removeprefix('base_model.model.')}.weight"]
    A, B = layer.module.lora_A["default"].weight, layer.module.lora_B["default"].weight
    torch.testing.assert_close(merged, layer.module.base_layer.weight + 2 * B @ A)


LINEAR = [name for name in VARIANTS if name != "full"]
DENSE = [(kind, double(kind)) for kind in KINDS] + [("causal", VARIANTS[name]()) for name in LINEAR]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("kind", "model"), DENSE, ids=[*KINDS, *LINEAR])
def test_merged_slice(kind: str, model: nn.Module, normalization: str) -> None:
    radius = 0.02 if normalization == "none" else 0.7
    batches, plain = ragged(kind), merged_model(model)
    weights = {name: p.detach() for name, p in plain.named_parameters()}
    result = loss_slice(model, batches, points=5, radius=radius, normalization=normalization, space="merged", seed=1)
    layers = [f"{layer.name.removeprefix('base_model.model.')}.weight" for layer in adapted_layers(model)]
    assert result.num_parameters == sum(weights[name].numel() for name in layers)
    for i, j in some_points(5):
        displacement = {}
        for position, name in enumerate(layers):
            weight = weights[name].T if "transformer.h" in name else weights[name]  # GPT-2's are (in, out)
            d1, d2 = (
                scaled(drawn(tuple(weight.shape), 1, 0, axis, position), weight, normalization) for axis in (0, 1)
            )
            moved = result.coordinates[i] * d1 + result.coordinates[j] * d2
            displacement[name] = moved.T if "transformer.h" in name else moved
        assert result.loss[i, j] == pytest.approx(materialized(plain, batches, displacement), rel=1e-8)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_tangent_slice(kind: str, normalization: str) -> None:
    radius = 0.05 if normalization == "none" else 0.7
    model, batches = double(kind), ragged(kind)
    plain = merged_model(model)
    weights = {name: p.detach() for name, p in plain.named_parameters()}
    result = loss_slice(model, batches, points=5, radius=radius, normalization=normalization, space="tangent", seed=2)
    for i, j in some_points(5):
        displacement = {}
        for position, layer in enumerate(adapted_layers(model)):
            name = f"{layer.name.removeprefix('base_model.model.')}.weight"
            d1, d2 = (
                scaled(
                    tangent_part(layer.module, drawn(layer.shape, 2, 0, axis, position)), weights[name], normalization
                )
                for axis in (0, 1)
            )
            displacement[name] = result.coordinates[i] * d1 + result.coordinates[j] * d2
        assert result.loss[i, j] == pytest.approx(materialized(plain, batches, displacement), rel=1e-8)


def tangent_part(module: Any, dense: Tensor) -> Tensor:
    """The nearest s(B·dA + dB·A) to a dense matrix, by least squares over dA and dB."""
    A, B = module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach()
    out, width = len(B), A.shape[1]
    columns = [
        torch.kron(B, torch.eye(width, dtype=B.dtype)),
        torch.kron(torch.eye(out, dtype=B.dtype), A.T.contiguous()),
    ]
    system = torch.cat(columns, dim=1)
    solution = torch.linalg.lstsq(system, dense.reshape(-1, 1), driver="gelsd").solution
    return (system @ solution).view(out, width)


@pytest.mark.parametrize("evaluation", ["merged", "stacked"])
@pytest.mark.parametrize("space", ["merged", "tangent"])
def test_ways_of_merged_weights_agree(space: str, evaluation: str) -> None:
    model, batches = double("causal"), ragged("causal")
    options: dict[str, Any] = {"points": 4, "radius": 0.7, "space": space}
    expected = loss_slice(model, batches, **options)
    found = loss_slice(model, batches, evaluation=evaluation, **options)
    assert found.evaluation.startswith(evaluation)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-10)
    rough = loss_slice(model.float(), batches, evaluation=evaluation, autocast=torch.bfloat16, **options)
    np.testing.assert_allclose(rough.loss, expected.loss, rtol=2e-2)  # 8 bits


def test_directions_that_do_not_fit_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = double("causal"), ragged("causal")
    expected = loss_slice(model, batches, points=3, space="merged")
    monkeypatch.setattr(merged_space, "free_bytes", lambda device: 0)
    drawn_again: list[int] = []
    monkeypatch.setattr(merged_space, "gaussian", lambda *args: drawn_again.append(1) or gaussian(*args))
    found = loss_slice(model, batches, points=3, space="merged")
    assert len(drawn_again) > 2 * len(adapted_layers(model))
    assert np.array_equal(found.loss, expected.loss)


def test_tangent_slice_where_B_is_zero_moves_B_alone() -> None:
    model, batches = double("causal"), ragged("causal")
    with torch.no_grad():
        for layer in adapted_layers(model):
            layer.module.lora_B["default"].weight.zero_()
    # No rows of W' are needed, so s·dB·A can be reached in the adapter space.
    result = loss_slice(model, batches, dims=1, points=3, radius=0.1, normalization="none", space="tangent")
    displacement = {}
    for position, layer in enumerate(adapted_layers(model)):
        A = layer.module.lora_A["default"].weight
        dense = drawn(layer.shape, 0, 0, 0, position)
        displacement[f"{layer.name}.lora_B.default.weight"] = 0.1 * dense @ torch.linalg.pinv(A) / 2
    assert result.loss[2] == pytest.approx(materialized(model, batches, displacement), rel=1e-8)


WAYS = [(name, "auto") for name in VARIANTS] + [("gpt2", "in_place"), ("gpt2", "merged"), ("rslora", "merged")]


@pytest.mark.parametrize(("name", "evaluation"), WAYS)
def test_adapter_slice_of_other_adapters(name: str, evaluation: str) -> None:
    model, batches = VARIANTS[name](), ragged("causal")
    result = loss_slice(model, batches, dims=1, points=5, radius=0.5, evaluation=evaluation)
    names = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert result.directions is not None
    for x, value in zip(result.coordinates, result.loss, strict=True):
        parts = (x * result.directions[0]).split([p.numel() for p in names.values()])
        displacement = {key: part.view_as(names[key]) for key, part in zip(names, parts, strict=True)}
        assert value == pytest.approx(materialized(model, batches, displacement), rel=1e-8)


def test_a_cached_norm_of_dora_is_not_used() -> None:
    from peft.helpers import DoraCaching

    model, batches = dora(), ragged("causal")
    expected = loss_slice(model, batches, dims=1, points=3)
    with DoraCaching(), torch.no_grad():
        model(**batches[0])
        assert np.array_equal(loss_slice(model, batches, dims=1, points=3).loss, expected.loss)


@pytest.mark.parametrize("space", ["adapter", "merged", "tangent"])
@pytest.mark.parametrize("c", [4.0, 0.37])
def test_per_layer_scaling_changes_nothing(space: str, c: float) -> None:
    model, batches = double("causal"), ragged("causal")
    expected = loss_slice(model, batches, points=5, space=space)
    with torch.no_grad():
        for position, layer in enumerate(adapted_layers(model)):
            layer.module.lora_A["default"].weight.mul_(c ** (position % 3))
            layer.module.lora_B["default"].weight.div_(c ** (position % 3))
    np.testing.assert_allclose(loss_slice(model, batches, points=5, space=space).loss, expected.loss, rtol=1e-8)
    if space == "adapter":
        unscaled = loss_slice(model, batches, points=5, normalization="none", radius=0.1)
        assert not np.allclose(unscaled.loss, expected.loss, rtol=1e-3)


@pytest.mark.parametrize("space", ["merged", "tangent"])
def test_no_gauge_changes_slices_of_merged_weights(space: str) -> None:
    model, batches = double("causal"), ragged("causal")
    expected = loss_slice(model, batches, points=5, space=space)
    regauge(model)
    np.testing.assert_allclose(loss_slice(model, batches, points=5, space=space).loss, expected.loss, rtol=1e-8)


def regauge(model: nn.Module) -> None:
    """(B, A) → (BR⁻¹, RA) with a random R in every layer."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer in adapted_layers(model):
            A, B = layer.module.lora_A["default"].weight, layer.module.lora_B["default"].weight
            R = torch.eye(2, dtype=A.dtype) + 0.5 * torch.randn(2, 2, generator=generator, dtype=A.dtype)
            A.copy_(R @ A)
            B.copy_(B @ torch.linalg.inv(R))


def test_half_precision_keeps_the_adapter() -> None:
    """W + s·BA rounded to bfloat16 is another model; the slice's origin is this one."""
    model, batches = double("causal").bfloat16(), ragged("causal")
    result = loss_slice(model, batches, points=3, space="merged")
    with torch.no_grad():
        expected = float(reference_loss(model, batches, {}))
    assert result.loss[1, 1] == pytest.approx(expected, rel=1e-2)  # bfloat16 has 8 bits
    assert result.precision == "bfloat16"
    with pytest.raises(UsageError, match="evaluation: 'merged' is not possible here; this model and space allow"):
        loss_slice(model, batches, evaluation="merged")


@pytest.mark.parametrize(
    ("model", "space", "match"),
    [
        (base_model("causal"), "merged", "has no linear layer with an active adapter; allowed: 'adapter'"),
        (dora(), "tangent", "is not plain, unmerged, enabled LoRA"),
        (adalora(), "tangent", "is not plain, unmerged, enabled LoRA"),
    ],
    ids=["no adapter", "dora", "adalora"],
)
def test_spaces_that_a_model_does_not_have(model: nn.Module, space: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        loss_slice(model, ragged("causal"), space=space)
