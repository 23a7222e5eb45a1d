"""Whether several runs train on one loss surface, so that one picture can hold them all."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from landscape.analysis.restored import RestoredRun, open_run
from landscape.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from landscape.store import Run

SHARED_KEYS = ("model_kwargs", "dtype", "max_length", "probe_examples", "rank", "alpha", "target_modules")
"""Config keys in which such runs agree. Model and task do so by the digests of what they mean."""


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in model, task, adapter or the shapes of their snapshots; nothing is loaded.

    Raises:
        UsageError: names the first difference.
        StoreError: a run without snapshots, or a damaged one.
    """
    _refuse_difference(runs[0], runs[1:], [_described(run) for run in runs])


def check_same_surface(runs: Sequence[Run], first: RestoredRun, split: str) -> None:
    """Refuse runs whose frozen weights, scalings or examples differ; every other run is built for a moment.

    Args:
        first: the first of the runs.
        split: whose examples; ``probe`` or ``eval``.

    Raises:
        UsageError: names the first difference.
        StoreError: changed model or data.
    """
    own = _surface(first, split)
    for other in runs[1:]:
        _refuse_difference(runs[0], [other], [own, _surface(open_run(other, device="cpu"), split)])


Fact = tuple[Any, str]
"""What is compared, and how an error shows it."""


def _refuse_difference(first: Run, others: Sequence[Run], facts: Sequence[Mapping[str, Fact]]) -> None:
    absent: Fact = (None, "absent")
    for other, theirs in zip(others, facts[1:], strict=True):
        for key in {**facts[0], **theirs}:
            (own, shown), (value, also) = facts[0].get(key, absent), theirs.get(key, absent)
            if own != value:
                raise UsageError(
                    f"{key}: {shown} in run {first.id}, {also} in run {other.id}; runs on one plane share model, task, "
                    "examples and adapter"
                )


def _described(run: Run) -> dict[str, Fact]:
    config, digests, layout = run.config, run.digests, run.snapshots().layout
    facts: dict[str, Fact] = {
        "model": (digests.get("model"), repr(config.model)),
        "task": (digests.get("data"), repr(config.task)),
    }
    for key in SHARED_KEYS:
        value = getattr(config, key)
        facts[key] = (value, repr(value))
    for name, shape, dtype in zip(layout.names, layout.shapes, layout.dtypes, strict=True):
        facts[name] = ((shape, dtype), f"{shape} {dtype}")
    return facts


def _surface(restored: RestoredRun, split: str) -> dict[str, Fact]:
    found = getattr(restored.data, split).fingerprint
    facts: dict[str, Fact] = {split: (found, f"examples {found[:8]}")}
    for name, module in restored.model.named_modules():
        # A scaling by adapter name is LoRA's; attention has one of its own that is a number.
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            facts[f"{name}.scaling"] = (scaling, str(scaling))
    for name, tensor in _frozen(restored.model):
        checksum = zlib.crc32(_bytes(tensor))
        facts[name] = (checksum, f"frozen at values of checksum {checksum:08x}")
    return facts


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # PEFT keeps an untrained head beside the trained one, and never uses it.
        if not tensor.requires_grad and ".original_module." not in name:
            yield name, tensor


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
