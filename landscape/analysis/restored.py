"""The model of a run as it was at a captured step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from landscape.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from landscape.data import TaskData
    from landscape.store import Run, SnapshotReader


@dataclass(frozen=True)
class RestoredRun:
    """A run's model, in eval mode, and its data; `load` moves the model to another captured step.

    Args:
        model: with the method's adapter attached and the right parameters trainable.
        snapshots: of the trainable parameters.
        batch_size: of evaluations in training.
    """

    model: nn.Module
    data: TaskData
    snapshots: SnapshotReader
    batch_size: int

    def load(self, step: int) -> None:
        """Give the trainable parameters the values that they had after ``step`` optimizer steps.

        Raises:
            StoreError: no such snapshot, a damaged one, or one that does not fit the model.
        """
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        captured = self.snapshots.tensors(step)
        if missing := sorted(trainable.keys() - captured.keys()):
            raise StoreError(
                f"the snapshot of step {step} lacks {len(missing)} trainable tensors, such as {missing[0]}"
            )
        _copy(captured, trainable, f"the snapshot of step {step}")

    def probe(self, num_examples: int | None = None, batch_size: int | None = None) -> list[dict[str, Tensor]]:
        """`examples` of the probe split."""
        return self.examples("probe", num_examples, batch_size)

    def examples(
        self, split: str, num_examples: int | None = None, batch_size: int | None = None
    ) -> list[dict[str, Tensor]]:
        """Batches of a split: of its first ``num_examples``, default all of them.

        Args:
            split: ``probe`` or ``eval``.
            batch_size: default: the config's ``per_device_eval_batch_size``.
        """
        rows = {"probe": self.data.probe, "eval": self.data.eval}[split]
        indices = range(min(num_examples or len(rows), len(rows)))
        return list(rows.batches(batch_size or self.batch_size, indices))


def restore(run: Run, step: int, *, device: str | None = None) -> tuple[nn.Module, TaskData]:
    """The model of a run as it was after ``step`` optimizer steps, in eval mode, and the run's data.

    Args:
        run: a run with snapshots.
        step: a captured step; 0 is the initial state.
        device: default: CUDA where there is one.

    Raises:
        StoreError: there is no such snapshot, it does not fit the model, or model or data are no longer those that the
            run was trained on.
        UsageError: the model or the data cannot be found.
    """
    check_steps(run, [step])
    restored = open_run(run, device=device)
    restored.load(step)
    return restored.model, restored.data


def open_run(run: Run, *, device: str | None = None) -> RestoredRun:
    """Build a run's model and data once, to go through its snapshots; the model's state is that before training.

    Raises:
        StoreError, UsageError: as `restore`.
    """
    import torch

    from landscape.data import data_digest, load_task, num_labels
    from landscape.methods import attach
    from landscape.models import load_model, model_digest

    config, snapshots = run.config, run.snapshots()
    for what, now in (("data", data_digest(config)), ("model", model_digest(config))):
        if run.digests.get(what) != now:
            raise StoreError(f"run {run.id}: the {what} is no longer what it was trained on (its digest is {now})")
    loaded = load_model(config, num_labels=num_labels(config))
    data = load_task(config, loaded.tokenizer, loaded.kind)
    model = attach(loaded.model, config)
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    _copy(snapshots.base_tensors(), tensors, "the stored base model")
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return RestoredRun(model, data, snapshots, config.per_device_eval_batch_size)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copy by name; nothing is copied unless everything fits."""
    import torch

    for name, tensor in source.items():
        if name not in target:
            raise StoreError(f"{what} holds {name}, which the model does not have (or does not train)")
        own = target[name]
        if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
            raise StoreError(
                f"{what}: {name} is {tuple(tensor.shape)} {tensor.dtype}, the model's {tuple(own.shape)} {own.dtype}"
            )
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)


def check_steps(run: Run, steps: Iterable[int]) -> list[int]:
    """The steps, ascending; an unknown one is an error before anything is loaded."""
    available = [int(step) for step in run.snapshots().steps]
    for step in steps:
        if step not in available:
            near = min(available, key=lambda other: (abs(other - step), other), default=None)
            hint = "none was captured" if near is None else f"the nearest is {near}"
            raise StoreError(f"run {run.id}: no snapshot of step {step}; {hint}")
    return sorted(set(steps))
