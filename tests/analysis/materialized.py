"""Losses at points of a slice, slowly: the adapter written to a copy of the model and merged into its weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape.analysis import RestoredRun, open_run
from landscape.loss import forward_losses, mean_loss
from landscape.store import Run
from tests.oracles import in_double

OPENED_IN = ("slices", "slice_joint", "slice_comparable")


def opened_in_double(monkeypatch: pytest.MonkeyPatch) -> list[RestoredRun]:
    """From here on the slices' models are in float64 throughout, norms included; they are listed as they are opened."""
    opened: list[RestoredRun] = []

    def in_float64(run: Run, **options: Any) -> RestoredRun:
        found = open_run(run, **options)
        opened.append(dataclasses.replace(found, model=in_double(found.model)))
        return opened[-1]

    for module in OPENED_IN:
        monkeypatch.setattr(f"landscape.analysis.{module}.open_run", in_float64)
    return opened


def flat(run: Run, step: int) -> Tensor:
    """The parameters of a snapshot as one vector."""
    return torch.cat([tensor.flatten() for tensor in run.snapshots().tensors(step).values()])


def materialized_loss(model: nn.Module, point: Tensor, batches: list[dict[str, Tensor]]) -> float:
    """The loss of a plain model without adapters whose weights are W + sBA at the point."""
    moved: Any = copy.deepcopy(model)
    with torch.no_grad():
        trained = [parameter for parameter in moved.parameters() if parameter.requires_grad]
        for parameter, part in zip(trained, point.split([p.numel() for p in trained]), strict=True):
            parameter.copy_(part.view_as(parameter))
        plain = moved.merge_and_unload()
        assert not any("lora" in name for name, _ in plain.named_parameters())
        return mean_loss(forward_losses(plain, batch) for batch in batches).value
