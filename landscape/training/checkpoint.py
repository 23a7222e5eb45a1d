"""The newest resumable state of a run, in safetensors and JSON: nothing is ever unpickled.

``attempts/<n>/checkpoint/step-000050/`` holds the state after 50 optimizer steps. It is written beside the previous one
and takes its place by a rename, so that there is a whole one at any moment.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerState

from landscape.errors import StoreError
from landscape.store.manifest import seal
from landscape.training.rng import RngState

_STATE = "trainer_state.json"


def latest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint and its step, or None."""
    found = sorted(path for path in folder.glob("step-*") if path.is_dir() and (path / _STATE).is_file())
    return (found[-1], step_of(found[-1])) if found else None


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done at a checkpoint, which its name says."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Any,
    state: TrainerState,
    rng: Mapping[int, Mapping[str, Tensor]],
    perturbation: Mapping[str, Tensor],
    counters: Mapping[str, int],
) -> Path:
    """Write the state after ``state.global_step`` steps, then remove older ones.

    Args:
        rng: random states by process.
        counters: running totals of the metrics, e.g. tokens seen.

    Raises:
        StoreError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    target = folder / f"step-{state.global_step:06d}"
    partial = folder / f".{target.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_trainable(model), partial / "parameters.safetensors")
        _save_optimizer(partial, optimizer)
        for process, tensors in rng.items():
            save_file(dict(tensors), partial / f"rng-{process}.safetensors")
        save_file(
            {key: value.contiguous().cpu() for key, value in perturbation.items()}, partial / "perturbation.safetensors"
        )
        (partial / "scheduler.json").write_text(json.dumps(_plain(scheduler.state_dict())))
        (partial / "counters.json").write_text(json.dumps(dict(counters)))
        state.save_to_json(str(partial / _STATE))
        seal(partial)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(f"cannot write the checkpoint {target}: {error.strerror or error}") from error
    for older in folder.glob("step-*"):
        if older != target:
            shutil.rmtree(older, ignore_errors=True)
    return target


def load_parameters(checkpoint: Path, model: nn.Module) -> None:
    """Copy the saved trainable parameters into the model.

    Raises:
        StoreError: names or shapes are not those of this model.
    """
    saved = load_file(checkpoint / "parameters.safetensors")
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        raise StoreError(f"{checkpoint} does not fit this model: other trainable parameters")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def load_optimizer(checkpoint: Path, optimizer: Optimizer) -> None:
    """Moments, step counts and parameter groups."""
    tensors = load_file(checkpoint / "optimizer.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = json.loads((checkpoint / "optimizer.json").read_text())
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_scheduler(checkpoint: Path, scheduler: Any) -> None:
    """The schedule's position."""
    scheduler.load_state_dict(json.loads((checkpoint / "scheduler.json").read_text()))


def load_rng(checkpoint: Path, process: int, device: torch.device) -> None:
    """Random states of this process."""
    path = checkpoint / f"rng-{process}.safetensors"
    if not path.exists():
        raise StoreError(f"{checkpoint} was written with fewer processes: no random state for process {process}")
    RngState.restore_tensors(load_file(path), device)


def load_perturbation(checkpoint: Path) -> dict[str, Tensor]:
    """The perturbation's ``state_dict``."""
    return load_file(checkpoint / "perturbation.safetensors")


def load_counters(checkpoint: Path) -> dict[str, int]:
    """Running totals at the checkpoint."""
    return json.loads((checkpoint / "counters.json").read_text())


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous().cpu() for name, p in model.named_parameters() if p.requires_grad}


def _save_optimizer(folder: Path, optimizer: Optimizer) -> None:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().contiguous().cpu()
        for index, entries in state["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps(_plain(state["param_groups"])))


def _plain(value: Any) -> Any:
    """JSON-ready: tensors become numbers; functions, which state dicts may hold, None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else None
