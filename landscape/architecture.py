"""A model's modules without its weights: what target modules, ranks and sizes can be checked against."""

from __future__ import annotations

from typing import Any

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.hub import quiet
from landscape.models import kind_of, model_source


def empty_model(config: RunConfig, *, num_labels: int | None = None) -> Any:
    """The transformers model on the meta device: names and shapes, no memory, nothing read but its config.

    Raises:
        UsageError: the config cannot be found or reached.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    source = model_source(config)
    try:
        with quiet(), torch.device("meta"):
            architecture = AutoConfig.from_pretrained(source.location, **source.options)
            kind = source.kind or kind_of(architecture.to_dict())
            if kind == "classification":
                architecture.num_labels = num_labels or config.model_kwargs.get("num_labels", 2)
            auto = {
                "causal": AutoModelForCausalLM,
                "seq2seq": AutoModelForSeq2SeqLM,
                "classification": AutoModelForSequenceClassification,
            }[kind]
            return auto.from_config(architecture, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"model: the config of {source} cannot be read: {' '.join(str(error).split())[:300]}"
        ) from error
