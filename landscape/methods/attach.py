"""Turning a base model into what a method trains: the adapter attached, the right parameters trainable."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

from landscape.errors import UsageError, nearest
from landscape.loss import loss_kind
from landscape.methods.base import Method
from landscape.methods.composition import recipe

if TYPE_CHECKING:
    from landscape.config import RunConfig

_TASK_TYPES = {
    "causal": TaskType.CAUSAL_LM,
    "seq2seq": TaskType.SEQ_2_SEQ_LM,
    "classification": TaskType.SEQ_CLS,
}


def attach(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model that the run trains, with exactly the method's parameters requiring gradients.

    The adapter's initialization depends on ``config.seed`` alone, so that methods of one seed start at one point, and
    leaves the global random generator as it was.

    Args:
        model: a transformers model; it is modified (PEFT wraps its layers in place).
        config: resolved (`landscape.training.resolve`): alpha is a number.

    Raises:
        UsageError: target modules that match nothing, or a rank above a layer's size.
    """
    made = recipe(config)
    method = made.adapter
    if method.adapter is None:
        model.requires_grad_(True)
        return model
    check_adapter(model, config)
    keywords: dict[str, Any] = {
        "r": config.rank or 0,
        "lora_alpha": config.alpha,  # PEFT divides it by r; fractions are fine
        "lora_dropout": config.lora_dropout or 0.0,
        "target_modules": config.target_modules,
        "task_type": _TASK_TYPES[loss_kind(model)],
    }
    adapter = method.peft(keywords, made.adapter_arguments) if method.peft else LoraConfig(**keywords)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT remarks on ranks and tied weights, and uses names that transformers deprecates; checked above.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(config.seed)
        adapted = get_peft_model(model, adapter)  # type: ignore[arg-type]
        if method.prepare is not None:
            method.prepare(adapted, config.seed)
        return adapted


def check_adapter(model: nn.Module, config: RunConfig) -> None:
    """Refuse target modules that match nothing and ranks that a layer cannot have; meta tensors are enough.

    Raises:
        UsageError: names the key, its value and what is allowed.
    """
    made = recipe(config)
    if made.adapter.adapter is None:
        return
    targets = dict(target_linears(model, config.target_modules))
    if not targets:
        names = sorted({name.rpartition(".")[2] for name, _ in target_linears(model, "all-linear")})
        value = config.target_modules
        first = value if isinstance(value, str) else (value or [""])[0]
        there = ", ".join(names)
        message = f"target_modules: {value!r} matches no linear layer of {config.model!r}; there are {there}."
        raise UsageError(message + nearest(first, names))
    name, smallest = min(targets.items(), key=lambda item: min(_shape(item[1])))
    limit = min(_shape(smallest))
    if config.rank is not None and (rank := _allocated(config.rank, made.adapter, made.adapter_arguments)) > limit:
        shape = "x".join(map(str, _shape(smallest)))
        value = config.rank if rank == config.rank else f"{config.rank}, of which {made.adapter.name} makes {rank},"
        largest = max(
            (r for r in range(1, limit + 1) if _allocated(r, made.adapter, made.adapter_arguments) <= limit), default=0
        )
        raise UsageError(f"rank: {value} exceeds the size of layer {name} ({shape}); allowed: 1 to {largest}")


def _allocated(rank: int, method: Method, arguments: Any) -> int:
    return method.largest_rank(rank, arguments) if method.largest_rank else rank


def target_linears(model: nn.Module, target_modules: str | list[str] | None) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers that PEFT's ``target_modules`` selects: all but the output head, by suffix, or by regex."""
    import re

    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        if not _is_linear(module):
            continue
        if target_modules in ("all-linear", None):
            classifier = name.rpartition(".")[2] in ("classifier", "score")
            if module is not head and not classifier:
                yield name, module
        elif isinstance(target_modules, str):
            if re.fullmatch(target_modules, name):
                yield name, module
        elif any(name == target or name.endswith(f".{target}") for target in target_modules or []):
            yield name, module


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D)) or (hasattr(module, "in_features") and hasattr(module, "weight"))


def _shape(module: Any) -> tuple[int, int]:
    if hasattr(module, "in_features"):
        return module.out_features, module.in_features
    return module.weight.shape[1], module.weight.shape[0]
