"""The peers of the slice benchmark, each drawing a 2D slice as its users would, with a watch in place of the loss."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .workload import Batch, bare_loss

Array = np.ndarray


@dataclass
class Watch:
    """Notes when each point of a slice was done and, if asked to, where the parameters then were."""

    model: nn.Module
    batch: Batch
    keep: bool = False
    ended: list[float] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    def __call__(self, model: nn.Module) -> float:
        """The loss of the model as the tool has displaced it."""
        value = bare_loss(model, self.batch)
        self.note(model)
        return value

    def note(self, model: nn.Module) -> None:
        """A point is done."""
        self.ended.append(time.perf_counter())
        if self.keep:
            self.places.append(flat(model))

    @property
    def seconds(self) -> float:
        """A point, from one to the next: displacing the model, and its loss; directions are not counted."""
        return float(np.median(np.diff(self.ended)))


def flat(model: nn.Module) -> Tensor:
    """All parameters, (n,)."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def loss_landscapes(watch: Watch, steps: int, adapter_only: bool) -> Array:
    """loss-landscapes: ``random_plane`` with filter normalization; a ``GeneralModelWrapper`` of the LoRA layers, on a
    deep copy, where only the adapter shall move.
    """
    package: Any = importlib.import_module("loss_landscapes")
    wrappers: Any = importlib.import_module("loss_landscapes.model_interface.model_wrapper")
    metric: Any = importlib.import_module("loss_landscapes.metrics").Metric

    class Loss(metric):
        def __call__(self, wrapper: Any) -> float:
            return watch(wrapper.model if adapter_only else wrapper.modules[0])

    model: Any = watch.model
    if adapter_only:
        layers = [layer for name, layer in model.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))]
        model = wrappers.GeneralModelWrapper(model, layers, lambda inner, x: inner(x))
    return package.random_plane(
        model, Loss(), distance=1, steps=steps, normalization="filter", deepcopy_model=adapter_only
    )


def landscaper(watch: Watch, steps: int, adapter_only: bool) -> Array:
    """landscaper: ``compute_loss_landscape`` along two random directions, of a module that holds nothing but the
    adapter's parameters where only these shall move.
    """
    compute: Any = importlib.import_module("landscaper.compute").compute_loss_landscape
    model = watch.model
    if adapter_only:
        model = nn.ParameterList([parameter for parameter in model.parameters() if parameter.requires_grad])
    directions = [[torch.randn_like(parameter) for parameter in model.parameters()] for _ in range(2)]
    with _silent():
        surface, _ = compute(
            model, None, directions, lambda *_: watch(watch.model), steps=steps, distance=1.0, dim=2, device="cpu"
        )
    return surface


class _Logits(nn.Module):
    """From token ids alone to logits: loss-landscape-3d skips batches that are not a pair."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def loss_landscape_3d(watch: Watch, steps: int, adapter_only: bool) -> Array:
    """loss-landscape-3d: its calculator with filter-normalized directions, of the adapter's tensors alone where only
    these shall move.
    """
    package: Any = importlib.import_module("loss_landscape_3d")
    model, batch = _Logits(watch.model), watch.batch

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        watch.note(watch.model)
        return loss

    directions = package.generate_random_directions(model)
    if adapter_only:
        directions = [{name: d for name, d in direction.items() if "lora_" in name} for direction in directions]
    center = {name: value.clone() for name, value in model.state_dict().items()}
    calculator = package.LossLandscapeCalculator(model, [(batch["input_ids"], batch["labels"])], criterion)
    axis = np.linspace(-1, 1, steps)
    return calculator.calculate(axis, axis, *directions, center)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """It prints, and shows a progress bar."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def snake(steps: int) -> list[tuple[int, int]]:
    """Which element of its result each point of loss-landscapes becomes, in the order in which it visits them."""
    return [(i, j if i % 2 == 0 else steps - 1 - j) for i in range(steps) for j in range(steps)]


def rows(steps: int) -> list[tuple[int, int]]:
    """As `snake`, line by line."""
    return [(i, j) for i in range(steps) for j in range(steps)]


@dataclass(frozen=True)
class Peer:
    """A tool: the module, what to install, how it draws, and in which order it visits its points."""

    module: str
    requirement: str
    draw: Callable[[Watch, int, bool], Array]
    order: Callable[[int], list[tuple[int, int]]]


PEERS: dict[str, Peer] = {
    "loss-landscapes": Peer("loss_landscapes", "loss-landscapes==3.0.6", loss_landscapes, snake),
    "landscaper": Peer(
        "landscaper", "landscaper==1.3.1 nglpy topopy treelib coloraide drawsvg gudhi", landscaper, rows
    ),
    "loss-landscape-3d": Peer("loss_landscape_3d", "loss-landscape-3d==0.1.3", loss_landscape_3d, rows),
}
