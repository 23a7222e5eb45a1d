"""How much memory training a run takes, estimated from shapes alone: to decide how many fit beside each other."""

from __future__ import annotations

from typing import Any

import torch

from landscape.architecture import empty_model
from landscape.config import RunConfig
from landscape.data import num_labels
from landscape.methods import attach
from landscape.training.resolve import resolve

PROCESS_BYTES = 700 << 20
"""Interpreter and libraries, or a CUDA context, before the first tensor."""
_STATE_BYTES = 16
"""Of each trained parameter: itself, its gradient and Adam's two moments, in float32."""
_LAYER_COPIES = 34
"""Hidden states that a transformer layer keeps for its backward pass, in halves of a float32 (Korthikanti et al. 2022,
arXiv 2205.05198, equation 1: 34 s·b·h bytes at two bytes a value, without the attention matrix)."""
_LOGIT_COPIES = 3
"""Logits, their float32 copy and their gradient."""


def estimate_memory(config: RunConfig) -> int:
    """Bytes at the peak of training this run, of the process on a CPU or of its device; within a factor of two or so.

    Raises:
        UsageError: as `landscape.training.check_shapes`.
    """
    resolved = resolve(config)
    with torch.device("meta"):
        model = attach(empty_model(config, num_labels=num_labels(config)), resolved)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return PROCESS_BYTES + weights + _STATE_BYTES * trained + _activations(resolved, model.config)


def _activations(config: RunConfig, shape: Any) -> int:
    tokens = config.per_device_train_batch_size * config.max_length
    layers = int(getattr(shape, "num_hidden_layers", None) or 0) + int(getattr(shape, "num_decoder_layers", None) or 0)
    hidden = int(getattr(shape, "hidden_size", None) or 0)
    heads = int(getattr(shape, "num_attention_heads", None) or 0)
    value = 2 if config.bf16 or config.dtype in ("bfloat16", "float16") else 4
    kept = 1 if config.gradient_checkpointing else layers
    block = _LAYER_COPIES * hidden + 5 * heads * config.max_length
    logits = _LOGIT_COPIES * 4 * int(getattr(shape, "vocab_size", None) or 0)
    return tokens * (kept * block * value // 2 + layers * hidden * value + logits)
