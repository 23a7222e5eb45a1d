"""The state in which a model is measured, and the promise that afterwards it is exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_FUSED_KERNELS = ("flash", "flex", "paged")
_PAGED_KERNELS = ("paged",)
"""They need a cache."""


@contextmanager
def measuring(model: nn.Module, *, differentiable: bool = True) -> Iterator[None]:
    """Inside: evaluation mode, twice differentiable attention, no checkpointing, no cache, no autocast, gradients on.

    Without ``differentiable``, for forward passes alone, gradients are off and attention keeps its kernel.

    Scaled-dot-product attention keeps its name but runs on the math backend, because no fused kernel has a second
    derivative (pytorch #116350); flash, flex and paged attention, which that switch does not reach, become eager.
    Modes are set module by module, since some modules override ``train()``. On the way out, also after an exception or
    a KeyboardInterrupt, each module's mode, the attention implementation, the buffers and the random number
    generators of torch are what they were; ``requires_grad`` and ``.grad`` are never touched.
    """
    undo: list[tuple[object, str, Any]] = []
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def set_attribute(owner: object, name: str, value: object) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        _prepare(model, set_attribute, _FUSED_KERNELS if differentiable else _PAGED_KERNELS)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
            stack.enter_context(differentiating(model))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH) if differentiable else torch.no_grad())
            yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)
        for module, name, buffer, saved in buffers:
            _restore_buffer(module, name, buffer, saved)


@contextmanager
def differentiating(model: nn.Module) -> Iterator[None]:
    """Inside: gradients are recorded in the model's own precision, whatever modes the caller has switched on.

    A backward pass, too, follows the caller's autocast.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in {parameter.device.type for parameter in model.parameters()}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def _prepare(model: nn.Module, set_attribute: Any, replaced_kernels: tuple[str, ...]) -> None:
    configs: dict[int, Any] = {}
    for module in model.modules():
        if module.training:
            set_attribute(module, "training", False)
        if getattr(module, "gradient_checkpointing", False) is True:
            set_attribute(module, "gradient_checkpointing", False)
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
    for config in configs.values():
        kernel = str(config._attn_implementation)
        # A kernel of the hub is named user/repository.
        if kernel.startswith(replaced_kernels) or ("/" in kernel and replaced_kernels is _FUSED_KERNELS):
            set_attribute(config, "_attn_implementation_internal", "eager")
        # A cache of keys and values would be kept alive by the graph and used by nobody.
        if getattr(config, "use_cache", False):
            set_attribute(config, "use_cache", False)


def _restore_buffer(module: nn.Module, name: str, buffer: Tensor, saved: Tensor) -> None:
    """Some rotary embeddings rewrite their frequencies by sequence length."""
    if module._buffers.get(name) is not buffer:
        module._buffers[name] = buffer
    if not torch.equal(buffer, saved):
        with torch.no_grad():
            buffer.copy_(saved)


def _cuda_devices(model: nn.Module) -> list[int]:
    indices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    return sorted(index for index in indices if index is not None)
