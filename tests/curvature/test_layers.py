from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from landscape.curvature.layers import BlockOperator, block_of, group_coordinates, layer_eigenvalues, module_of
from landscape.curvature.operators import CurvatureOperator
from landscape.errors import UsageError
from tests.curvature.conftest import Case, ragged, tiny
from tests.curvature.dense import BULK, Dense, with_spectrum
from tests.small_models import KINDS

Cases = Callable[[str], Case]

LLAMA = "base_model.model.model.layers.3"
NAMES = [
    # parameter, module, block
    (f"{LLAMA}.self_attn.q_proj.lora_A.default.weight", f"{LLAMA}.self_attn.q_proj", LLAMA),
    (f"{LLAMA}.self_attn.q_proj.lora_B.0.weight", f"{LLAMA}.self_attn.q_proj", LLAMA),
    (f"{LLAMA}.self_attn.q_proj.lora_magnitude_vector.default.weight", f"{LLAMA}.self_attn.q_proj", LLAMA),  # DoRA
    (f"{LLAMA}.self_attn.q_proj.lora_E.default", f"{LLAMA}.self_attn.q_proj", LLAMA),  # AdaLoRA
    (f"{LLAMA}.mlp.up_proj.vera_lambda_b.default", f"{LLAMA}.mlp.up_proj", LLAMA),
    (f"{LLAMA}.mlp.up_proj.ia3_l.default", f"{LLAMA}.mlp.up_proj", LLAMA),
    (f"{LLAMA}.mlp.up_proj.base_layer.weight", f"{LLAMA}.mlp.up_proj", LLAMA),
    (f"{LLAMA}.mlp.up_proj.weight", f"{LLAMA}.mlp.up_proj", LLAMA),  # merged space, full fine-tuning
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0"),
    ("bert.encoder.layer.11.output.dense.bias", "bert.encoder.layer.11.output.dense", "bert.encoder.layer.11"),
    ("base_model.model.classifier.modules_to_save.default.weight", *2 * ("base_model.model.classifier",)),
    ("base_model.model.head.modules_to_save.default.dense.weight", *2 * ("base_model.model.head",)),
    ("embed_tokens.lora_embedding_A.default", "embed_tokens", "embed_tokens"),
    ("lm_head.weight", "lm_head", "lm_head"),
    ("scale", "scale", "scale"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "block"), NAMES)
def test_the_layer_that_a_parameter_belongs_to(name: str, module: str, block: str) -> None:
    assert module_of(name) == module
    assert block_of(name) == block


def test_coordinates_of_layers_need_not_be_contiguous() -> None:
    names = ["h.0.q.lora_A.x.weight", "h.0.q.lora_B.x.weight", "h.1.q.weight", "h.0.v.bias", "h.0.q.bias"]
    modules = group_coordinates(names, [2, 3, 4, 5, 6])
    assert list(modules) == ["h.0.q", "h.1.q", "h.0.v"]
    assert modules == {"h.0.q": [slice(0, 5), slice(14, 20)], "h.1.q": [slice(5, 9)], "h.0.v": [slice(9, 14)]}
    assert group_coordinates(names, [2, 3, 4, 5, 6], "block") == {
        "h.0": [slice(0, 5), slice(9, 20)],
        "h.1": [slice(5, 9)],
    }


def indices(slices: list[slice]) -> torch.Tensor:
    return torch.cat([torch.arange(part.start, part.stop) for part in slices])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "slices", [[slice(0, 60)], [slice(3, 4)], [slice(10, 20), slice(40, 60)], [slice(40, 60), slice(0, 7)]], ids=str
)
def test_a_block_is_the_matrix_at_its_coordinates(slices: list[slice], dtype: torch.dtype) -> None:
    matrix = with_spectrum(BULK).to(dtype)
    block = BlockOperator(Dense(matrix), slices)
    kept = indices(slices)
    expected = matrix[kept][:, kept]
    assert (block.size, block.dtype, block.device) == (len(kept), dtype, matrix.device)
    found = torch.stack([block @ unit for unit in torch.eye(len(kept), dtype=dtype)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slices", [[], [slice(0, 0)], [slice(0, 5), slice(4, 6)], [slice(55, 61)], [slice(-1, 3)]])
def test_coordinates_that_are_no_block(slices: list[slice]) -> None:
    with pytest.raises(UsageError, match=r"slices: .*; needed: not empty, disjoint and within 0 to 60"):
        BlockOperator(Dense(with_spectrum(BULK)), slices)


@pytest.mark.parametrize(("kind", "group"), [*((kind, "block") for kind in KINDS), ("causal", "module")])
def test_sharpness_of_layers_is_that_of_the_dense_blocks(case: Cases, kind: str, group: str) -> None:
    tried = case(kind)
    result = layer_eigenvalues(tried.model, tried.batches, tol=1e-2, group=group)
    operator = CurvatureOperator(tried.model, tried.batches)
    layers = group_coordinates(operator.names, operator.sizes, group)
    assert result.names == tuple(layers)
    for position, slices in enumerate(layers.values()):
        kept = indices(slices)
        expected = float(torch.linalg.eigvalsh(tried.hessian[kept][:, kept])[-1])
        # The error is at most the residual, and its square over the gap to the next eigenvalue.
        assert result.values[position] == pytest.approx(expected, rel=1e-3)
        assert result.layer_parameters[position] == len(kept)
    assert result.converged.all()
    assert (result.residuals <= 1e-2).all()
    assert (result.values <= float(tried.eigenvalues[0]) * (1 + 1e-9)).all()  # Cauchy's interlacing
    assert result.layer_parameters.sum() == result.num_parameters == operator.size


def test_layers_of_the_models_here(case: Cases) -> None:
    """7 adapted layers in each of 2 blocks."""
    operator = CurvatureOperator(case("causal").model, case("causal").batches)
    modules = group_coordinates(operator.names, operator.sizes)
    assert len(modules) == 14
    assert next(iter(modules)) == "base_model.model.model.layers.0.self_attn.q_proj"
    assert list(group_coordinates(operator.names, operator.sizes, "block")) == [
        "base_model.model.model.layers.0",
        "base_model.model.model.layers.1",
    ]


def test_the_result_says_what_it_is(case: Cases, capsys: pytest.CaptureFixture[str]) -> None:
    tried = case("causal")
    result = layer_eigenvalues(
        tried.model,
        iter(tried.batches),
        tol=1e-6,
        max_matvecs=3,
        seed=5,
        group="block",
        product="rebuild",
        progress=True,
    )
    operator = CurvatureOperator(tried.model, tried.batches)
    assert (result.group, result.tol, result.seed, result.space) == ("block", 1e-6, 5, "adapter")
    assert (result.num_examples, result.num_labels, result.num_parameters) == (6, operator.num_labels, 232)
    assert result.loss == operator.loss
    assert result.num_matvecs.tolist() == [3, 3]
    assert not result.converged.any()
    assert (result.residuals > 1e-6).all()
    assert result.values.dtype == result.residuals.dtype == np.float64
    assert result.seconds > 0
    assert "layers" in capsys.readouterr().err
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 6  # type: ignore[misc]


def test_a_layer_without_curvature_has_sharpness_zero() -> None:
    """The loss does not depend on a parameter that the forward pass never uses."""
    model = tiny("causal")
    model.unused = torch.nn.Linear(2, 2).double()
    result = layer_eigenvalues(model, ragged("causal"), group="block", tol=0.1)
    position = result.names.index("unused")
    assert (result.values[position], result.residuals[position], result.converged[position]) == (0.0, 0.0, True)


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"group": "layer"}, "group: 'layer' is not known; allowed: block, module"),
    ({"tol": 0.0}, "tol: 0.0; allowed: greater than 0 and less than 1"),
    ({"max_matvecs": 0}, "max_matvecs: 0; allowed: at least k = 1"),
    ({"space": "adaptor"}, "space: 'adaptor' is not known"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_out_of_range(case: Cases, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layer_eigenvalues(case("causal").model, case("causal").batches, **arguments)
