"""From what the user wrote to what will run: rules and defaults become values, and the run gets its identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from landscape.architecture import empty_model
from landscape.config import RunConfig, alpha_value, run_id
from landscape.data import check_task, data_digest, num_labels
from landscape.errors import UsageError
from landscape.methods import Method, attach, check_adapter, recipe
from landscape.models import MODELS, check_model, known_kind, model_digest
from landscape.training.processes import world
from landscape.training.trackers import check_trackers


def resolve(config: RunConfig) -> RunConfig:
    """The canonical config: no rule, no default that depends on another key, nothing that the method ignores.

    Raises:
        UsageError: unknown method, adapter or argument, a combination that means nothing, or LoRA without a rank.
    """
    made = recipe(config)
    plain = made.adapter.name in (config.method, "lora")
    changes: dict[str, Any] = {
        "method_args": made.arguments.model_dump(mode="json"),
        "adapter": None if plain else made.adapter.name,
        "adapter_args": {} if plain else made.adapter_arguments.model_dump(mode="json"),
        "data_seed": config.seed if config.data_seed is None else config.data_seed,
        # The stored config is read from other folders too.
        "model": _absolute(config.model),
        "data_dir": config.data_dir and str(Path(config.data_dir).expanduser().absolute()),
        "data_files": config.data_files and {k: str(Path(v).absolute()) for k, v in config.data_files.items()},
    }
    if config.lr_scheduler_type == "constant":
        changes.update(lr_scheduler_steps=None, warmup_ratio=0.0)
    elif config.lr_scheduler_steps is None:
        changes.update(lr_scheduler_steps=config.max_steps)
    if config.capture.moments and not made.adapter.keeps_moments:
        raise UsageError(
            f"capture.moments: the optimizer of {made.adapter.name!r} keeps no moments of the trained parameters"
        )
    if made.adapter.adapter is None:
        changes.update(rank=None, alpha=None, lora_dropout=None, target_modules=None)
    elif config.rank is None or config.alpha is None:
        raise UsageError(f"rank, alpha: method {config.method!r} needs both; got {config.rank!r} and {config.alpha!r}")
    else:
        changes.update(alpha=alpha_value(config.alpha, config.rank))
    return config.replace(**changes)


def check(config: RunConfig) -> None:
    """Everything that can be refused before a weight is read or a file downloaded.

    Raises:
        UsageError: names the key, its value, what is allowed and the nearest match.
    """
    resolve(config)
    check_model(config)
    check_task(config, known_kind(config))
    check_trackers(config.report_to)


def identify(config: RunConfig) -> tuple[str, dict[str, str]]:
    """The run's id, and the digests of data and model that entered it."""
    resolved = resolve(config)
    digests = {"data": data_digest(resolved), "model": model_digest(resolved)}
    made = recipe(resolved)
    hashed = resolved.model_copy(
        update={
            "method_args": _hashed(resolved.method_args, made.method),
            "adapter_args": _hashed(resolved.adapter_args, made.adapter),
        }
    )
    return run_id(hashed, digests["data"], digests["model"], world().num_processes), digests


def check_shapes(config: RunConfig) -> None:
    """Check target modules and rank against the architecture, without its weights.

    Raises:
        UsageError: as `landscape.methods.check_adapter`.
    """
    check_adapter(_empty(config), resolve(config))


def estimate_record_bytes(config: RunConfig) -> int:
    """Bytes of one snapshot of this run, from the shapes of an empty model."""
    with torch.device("meta"):
        model = attach(_empty(config), resolve(config))
    # PEFT upcasts half-precision adapters to float32.
    return sum(4 * p.numel() if p.dtype.itemsize < 4 and config.rank else p.nbytes for p in _trainable(model))


def _hashed(arguments: dict[str, Any], method: Method) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in method.execution_arguments}


def _absolute(model: str) -> str:
    """A local folder or file by its full path; presets and hub ids as they are."""
    path = Path(model).expanduser()
    return model if model in MODELS or not path.exists() else str(path.absolute())


def _empty(config: RunConfig) -> Any:
    return empty_model(config, num_labels=num_labels(config))


def _trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
