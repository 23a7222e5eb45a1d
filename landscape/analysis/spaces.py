"""The spaces in which the curvature of a captured run can be measured, and what each reads of the run's folder."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from landscape.analysis.restored import check_steps
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from landscape.config import RunConfig
    from landscape.store import Run, SnapshotReader

SPACES = ("adapter", "merged", "balanced", "preconditioned")
"""``adapter``, ``merged`` and ``balanced`` are those of `landscape.curvature.coordinates`. ``preconditioned`` is
D^½ H D^½ in adapter coordinates with Adam's diagonal D at that step (`landscape.curvature.stability`)."""

MOMENTS = "adam_v"
"""The snapshot stream of Adam's second moments."""


class UndefinedError(Exception):
    """What was asked for is not defined at this snapshot; the message says why."""


def is_balanceable(config: RunConfig) -> bool:
    """Whether a run's adapter has balanced coordinates: s·BA with A and B both free.

    DoRA's, AdaLoRA's and NLoRA's layers are none, and full fine-tuning has no adapter.
    """
    from landscape.methods import recipe

    return recipe(config).adapter.adapter == "lora"


def captured_steps(run: Run, space: str) -> list[int]:
    """Steps at which everything that the space needs was captured, ascending.

    Raises:
        StoreError: the run has no snapshots, or, for ``preconditioned``, no second moments.
    """
    steps = [int(step) for step in run.snapshots().steps]
    if space != "preconditioned":
        return steps
    moments = set(_moments(run).steps.tolist())
    # Adam has no second moments before its first step.
    return [step for step in steps if step in moments and step > 0]


def _moments(run: Run) -> SnapshotReader:
    if MOMENTS not in run.streams():
        raise StoreError(
            f"run {run.id}: Adam's second moments were not captured, and the preconditioned space needs them; "
            "train with capture: {moments: true} (--set capture.moments=true)"
        )
    return run.snapshots(MOMENTS)


class CapturedSpace:
    """A run's snapshots as one of `SPACES` reads them; `StoreError` as `captured_steps`."""

    def __init__(self, run: Run, space: str) -> None:
        self.space = space
        self._run = run
        self._parameters = run.snapshots()
        self._second_moments = _moments(run) if space == "preconditioned" else None

    def choose(self, steps: Iterable[int] | None, every: int | None) -> list[int]:
        """The captured steps among ``steps`` (default: all) that are multiples of ``every``, ascending.

        Raises:
            StoreError: one of the steps was not captured, or none is left.
        """
        available = captured_steps(self._run, self.space)
        chosen = available if steps is None else check_steps(self._run, steps)
        for step in chosen:
            if step not in available:
                raise StoreError(f"run {self._run.id}: no second moments of step {step}; Adam has none before step 1")
        chosen = [step for step in chosen if every is None or step % every == 0]
        if not chosen:
            condition = f" at a multiple of {every} steps" if every else ""
            raise StoreError(f"run {self._run.id}: no snapshot{condition} to measure")
        return chosen

    def checksum(self, step: int) -> str:
        """CRC-32, in hex, of the bytes of everything that is read for this step."""
        import torch

        checksum = 0
        for tensor in self._read(step):
            checksum = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, checksum)
        return f"{checksum:08x}"

    def _read(self, step: int) -> list[Tensor]:
        tensors = list(self._parameters.tensors(step).values())
        return tensors if self._second_moments is None else [*tensors, *self._second_moments.tensors(step).values()]

    @property
    def coordinates(self) -> str:
        """The space as `landscape.curvature` knows it: the preconditioned one lies in adapter coordinates."""
        return "adapter" if self._second_moments is not None else self.space

    def check(self, model: nn.Module) -> None:
        """Refuse a snapshot at which the space is not defined; the model is at it.

        Raises:
            UndefinedError: a balanced adapter of deficient rank, such as B = 0.
            NonFiniteLossError: the parameters have diverged.
        """
        if self.space == "balanced":
            _check_balanced(model)

    def preconditioner(self, model: nn.Module, step: int) -> Tensor | None:
        """Adam's D (n,) at this step, in the order of the model's trainable parameters; None in other spaces.

        Raises:
            StoreError: the learning rate of the step was not logged, or a record is damaged.
            NonFiniteLossError: the moments have diverged.
        """
        if self._second_moments is None:
            return None
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return self._scale(self._second_moments.tensors(step), names, step)

    @property
    def threshold(self) -> float | None:
        """Of the preconditioned Hessian, where Adam becomes unstable; other spaces have none."""
        from landscape.curvature.stability import stability_threshold

        return stability_threshold(self._run.config.adam_beta1) if self._second_moments is not None else None

    def _scale(self, second_moments: Mapping[str, Tensor], names: list[str], step: int) -> Tensor:
        from landscape.curvature.stability import adam_preconditioner

        config = self._run.config
        return adam_preconditioner(
            second_moments,
            names,
            step=step,
            learning_rate={name: self.learning_rate(step, name) for name in names},
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            eps=config.adam_epsilon,
        ).scale

    def learning_rate(self, step: int, parameter: str = "") -> float:
        """Of the optimizer step that led to this state, as the run logged it.

        Args:
            parameter: its name; a group of its own, logged as ``learning_rate_lora_B``, holds every ``….lora_B.…``.

        Raises:
            StoreError: it was not logged.
        """
        groups = [group for group in self._rates if group and f".{group}." in parameter]
        rate = self._rates[groups[0] if groups else ""].get(step)
        if rate is None or math.isnan(rate):
            raise StoreError(f"run {self._run.id}: the learning rate of step {step} was not logged")
        return rate

    @cached_property
    def _rates(self) -> dict[str, dict[int, float]]:
        """By group (the rest: ""), then by step."""
        metrics = self._run.metrics()
        columns = [column for column in metrics if column.startswith("learning_rate")]
        return {
            column.removeprefix("learning_rate").removeprefix("_"): dict(
                zip(metrics["step"].tolist(), metrics[column].tolist(), strict=True)
            )
            for column in columns
        }


def _check_balanced(model: nn.Module) -> None:
    from landscape.curvature.coordinates import coordinates

    try:
        coordinates(model, "balanced")
    except UsageError as error:
        raise UndefinedError(str(error)) from error
