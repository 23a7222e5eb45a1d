import json

import pytest
import torch

from landscape.errors import StoreError
from landscape.store import SnapshotLayout


def mixed_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.lora_A.default.weight": torch.randn(2, 5, generator=generator),
        "layer.lora_B.default.weight": torch.randn(3, 2, generator=generator, dtype=torch.float64),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "scalar": torch.randn((), generator=generator).half(),
        "empty": torch.zeros(0, 4),
    }


def test_every_tensor_keeps_its_dtype_and_starts_at_a_multiple_of_16_bytes():
    layout = SnapshotLayout.from_tensors(mixed_tensors())
    assert layout.dtypes == ("float32", "float64", "bfloat16", "float16", "float32")
    assert layout.shapes == ((2, 5), (3, 2), (7,), (), (0, 4))
    assert layout.offsets == (0, 48, 96, 112, 128)  # 40 → 48, 48, 14 → 16, 2 → 16, 0
    assert layout.record_bytes == 128


def test_copies_come_back_bit_for_bit():
    tensors = mixed_tensors()
    layout = SnapshotLayout.from_tensors(tensors)
    buffer = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    layout.copy_into(list(tensors.values()), buffer)
    views = layout.views(buffer)
    assert views.keys() == tensors.keys()
    assert all(
        torch.equal(views[name], tensor) and views[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_special_values_and_strides_survive():
    tensors = {
        "special": torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-45]),
        "transposed": torch.arange(6.0).view(2, 3).T,
    }
    layout = SnapshotLayout.from_tensors(tensors)
    buffer = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    layout.copy_into(tensors, buffer)
    views = layout.views(buffer)
    assert torch.equal(views["special"].view(torch.int32), tensors["special"].view(torch.int32))
    assert torch.equal(views["transposed"], tensors["transposed"])


def test_tied_tensors_are_stored_once():
    shared = torch.randn(4, 3)
    tensors = {"embedding": shared, "other": torch.randn(2), "head": shared, "part": shared[:2], "turned": shared.T}
    layout = SnapshotLayout.from_tensors(tensors)
    assert layout.names == ("embedding", "other", "part", "turned")
    assert layout.aliases == {"head": "embedding"}
    buffer = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    layout.copy_into(tensors, buffer)
    views = layout.views(buffer)
    assert all(torch.equal(views[name], tensor) for name, tensor in tensors.items())
    assert views["head"] is views["embedding"]


def test_json_round_trip():
    shared = torch.randn(4)
    layout = SnapshotLayout.from_tensors({**mixed_tensors(), "one": shared, "two": shared})
    assert SnapshotLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record_bytes": 64}, "contradict"),
        ({"tensors": [{"name": "a", "shape": [4], "dtype": "float32", "offset": 16}]}, "contradict"),
        ({"tensors": [{"name": "a", "shape": [-4], "dtype": "float32", "offset": 0}]}, "contradict"),
        (
            {"tensors": [{"name": "a", "shape": [4], "dtype": "int8", "offset": 0}]},
            "a has dtype 'int8'; allowed: float64",
        ),
        ({"tensors": [{"name": "a", "shape": 4, "dtype": "float32", "offset": 0}]}, "malformed"),
        ({"tensors": None}, "malformed"),
        ({"aliases": {"b": "c"}}, "contradict"),
        ({"tensors": []}, "no tensors"),
    ],
)
def test_layouts_that_contradict_themselves_are_refused(change, message):
    value = SnapshotLayout.from_tensors({"a": torch.zeros(4)}).to_json()
    with pytest.raises(StoreError, match=message):
        SnapshotLayout.from_json({**value, **change})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no tensors to capture"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "a has dtype 'int64'"),
        ({"a": torch.zeros(2, device="meta")}, "a is on the meta device"),
    ],
)
def test_tensors_that_cannot_be_captured_are_refused(tensors, message):
    with pytest.raises(StoreError, match=message):
        SnapshotLayout.from_tensors(tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([torch.zeros(2)], "1 tensors, but the layout has 2"),
        ([torch.zeros(2), torch.zeros(1, 3)], r"b is float32 \(1, 3\), but the layout has float32 \(3,\)"),
        ([torch.zeros(2), torch.zeros(3).double()], r"b is float64 \(3,\), but the layout has float32 \(3,\)"),
        ([torch.zeros(2), torch.zeros(1)], "b is float32"),
        ({"a": torch.zeros(2)}, "no tensor 'b'"),
    ],
)
def test_tensors_that_would_be_broadcast_or_rounded_are_refused(tensors, message):
    layout = SnapshotLayout.from_tensors({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(StoreError, match=message):
        layout.copy_into(tensors, torch.zeros(layout.record_bytes, dtype=torch.uint8))
