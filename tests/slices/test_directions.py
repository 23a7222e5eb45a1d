from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from landscape.errors import UsageError
from landscape.slices import Coordinates, balanced, loss_gradient, loss_slice, random_direction, update_direction
from landscape.slices.layers import adapted_layers
from tests.oracles import flat_loss
from tests.slices.models import VARIANTS, dora, double, ragged
from tests.slices.test_spaces import regauge
from tests.small_models import KINDS, base_model


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient(kind: str) -> None:
    model, batches = double(kind), ragged(kind)
    loss, theta = flat_loss(model, batches)
    torch.testing.assert_close(loss_gradient(model, batches), torch.func.grad(loss)(theta))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_slice_along_the_gradient_starts_with_its_slope() -> None:
    model, batches = double("causal"), ragged("causal")
    gradient = loss_gradient(model, batches)
    result = loss_slice(model, batches, dims=1, points=3, radius=1e-5, directions=[gradient])
    slope = (result.loss[2] - result.loss[0]) / 2e-5
    assert slope == pytest.approx(float(gradient @ gradient), rel=1e-6)  # a difference quotient
    assert (result.normalization, result.seed, result.draw) == ("none", None, None)


def test_given_directions_are_normalized_on_request() -> None:
    model, batches = double("causal"), ragged("causal")
    given = loss_gradient(model, batches)
    result = loss_slice(model, batches, dims=1, points=3, directions=[given], normalization="filter")
    coordinates = Coordinates(model)
    assert result.directions is not None
    for part, weight in zip(coordinates.split(result.directions[0]), coordinates.parameters, strict=True):
        torch.testing.assert_close(part.norm(dim=1), weight.detach().norm(dim=1))


def test_the_update_is_the_difference_of_snapshots() -> None:
    model = double("causal")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    after = {name: value + 0.5 for name, value in before.items()}
    expected = torch.full((Coordinates(model).size,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(update_direction(model, before, after), expected)
    with pytest.raises(UsageError, match="after: equal to before"):
        update_direction(model, before, before)


def test_draws_are_independent_and_repeatable() -> None:
    model = double("causal")
    draws = [random_direction(model, "none", seed=s, draw=d, axis=a) for s in (0, 1) for d in (0, 1) for a in (0, 1)]
    correlation = np.corrcoef(torch.stack(draws).numpy()) - np.eye(8)
    # 28 cosines of n independent numbers; 4 standard errors of 1/√n.
    assert np.abs(correlation).max() < 4 / np.sqrt(Coordinates(model).size)
    assert torch.equal(draws[5], random_direction(model, "none", seed=1, draw=0, axis=1))


def test_a_draw_is_the_same_in_every_precision() -> None:
    model = double("causal")
    single = random_direction(double("causal").float())
    torch.testing.assert_close(random_direction(model).float(), single)


def test_rows_of_zeros_stay_zeros() -> None:
    model = double("causal")
    weight = adapted_layers(model)[0].module.lora_B["default"].weight
    with torch.no_grad():
        weight[1] = 0
    parts = dict(zip(Coordinates(model).names, Coordinates(model).split(random_direction(model)), strict=True))
    direction = next(value for name, value in parts.items() if "lora_B" in name)
    assert not direction[1].any()
    assert direction[0].any()


def test_balancing_keeps_the_function_and_forgets_the_gauge() -> None:
    model, batches = double("causal"), ragged("causal")
    loss, _ = flat_loss(model, batches)
    origin = balanced(model)
    assert float(loss(origin)) == pytest.approx(float(loss(parameters_to_vector(trained(model)))), rel=1e-10)
    parts = dict(zip(Coordinates(model).names, Coordinates(model).split(origin), strict=True))
    for name, B in parts.items():
        if "lora_B" in name:
            A = parts[name.replace("lora_B", "lora_A")]
            torch.testing.assert_close(B.T @ B, A @ A.T)
    expected = loss_slice(model, batches, points=5, origin=origin)
    plain = loss_slice(model, batches, points=5)
    regauge(model)
    torch.testing.assert_close(balanced(model), origin, rtol=1e-8, atol=1e-10)
    again = loss_slice(model, batches, points=5, origin=balanced(model))
    np.testing.assert_allclose(again.loss, expected.loss, rtol=1e-8)
    assert not np.allclose(loss_slice(model, batches, points=5).loss, plain.loss, rtol=1e-3)


def trained(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters() if p.requires_grad]


def test_what_cannot_be_balanced() -> None:
    model = double("causal")
    with torch.no_grad():
        adapted_layers(model)[0].module.lora_B["default"].weight.zero_()
    with pytest.raises(UsageError, match="q_proj has a rank below 2"):
        balanced(model)
    with pytest.raises(UsageError, match="not plain, unmerged, enabled LoRA"):
        balanced(dora())
    frozen = double("causal")
    adapted_layers(frozen)[1].module.lora_A["default"].weight.requires_grad_(False)
    with pytest.raises(UsageError, match="k_proj trains only one of A and B"):
        balanced(frozen)


def test_vectors_of_another_adapter() -> None:
    model, batches = double("causal"), ragged("causal")
    size = Coordinates(model).size
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    first = next(iter(named))
    wrong = {
        rf"directions\[0\]: shape \({size + 1},\); the model has {size} trainable": torch.ones(size + 1),
        r"directions\[0\]: of another adapter: it lacks 1 tensors, such as": dict(list(named.items())[1:]),
        r"directions\[0\]: of another adapter: the model does not train extra": {**named, "extra": torch.ones(1)},
        r"directions\[0\]: of another adapter: .* is \(1, 1\), the model's is": {**named, first: torch.ones(1, 1)},
        r"directions\[0\]: NaN or infinite": torch.full((size,), torch.nan),
        r"directions\[0\]: zero": torch.zeros(size),
    }
    for match, direction in wrong.items():
        with pytest.raises(UsageError, match=match):
            loss_slice(model, batches, dims=1, directions=[direction])


def test_nothing_to_move() -> None:
    with pytest.raises(UsageError, match="no parameter requires a gradient"):
        loss_slice(base_model("causal").requires_grad_(False), ragged("causal"))


def test_unknown_normalizations() -> None:
    with pytest.raises(UsageError, match=r"normalization: 'filters' is not known.*Did you mean 'filter'\?"):
        random_direction(VARIANTS["full"](), "filters")


@pytest.mark.parametrize("space", ["adapter", "tangent"])
def test_an_adapter_that_does_nothing_is_an_error_and_not_a_flat_picture(space: str) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(base_model("causal"), config)  # type: ignore[arg-type]
    if space == "adapter":
        with pytest.raises(UsageError, match=r"they do not change the loss; .* every B is zero"):
            loss_slice(model, ragged("causal"), points=5)
    moved = loss_slice(model, ragged("causal"), points=5, space="merged" if space == "adapter" else space)
    assert np.ptp(moved.loss) > 0
