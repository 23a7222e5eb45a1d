"""Randomly initialized models of a few thousand weights: a decoder, an encoder-decoder and an encoder."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 32
KINDS = ("causal", "seq2seq", "classification")


SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
T5_SHAPE = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}


def base_model(kind: str, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """A small model in eval mode; ``changes`` go to its Hugging Face config."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY}
    if kind == "causal":
        llama = LlamaConfig(**{**common, **SHAPE, "num_key_value_heads": 1, "use_cache": False, **changes})
        model: nn.Module = LlamaForCausalLM(llama)
    elif kind == "seq2seq":
        t5 = T5Config(**{**common, **T5_SHAPE, "decoder_start_token_id": 0, "use_cache": False, **changes})
        model = T5ForConditionalGeneration(t5)
    else:
        model = BertForSequenceClassification(BertConfig(**{**common, **SHAPE, "num_labels": 3, **changes}))
    return model.to(dtype).eval()


def lora_model(
    kind: str, dtype: torch.dtype = torch.float64, *, rank: int = 2, dropout: float = 0.0, **changes: Any
) -> nn.Module:
    """`base_model` with LoRA on all linear layers and a B that is not zero."""
    task = {"causal": TaskType.CAUSAL_LM, "seq2seq": TaskType.SEQ_2_SEQ_LM, "classification": TaskType.SEQ_CLS}[kind]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules="all-linear", task_type=task)
    model = get_peft_model(base_model(kind, dtype, **changes), config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(kind: str, examples: int = 4, length: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """A ragged, right-padded batch; decoders have their prompts masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (examples, length), generator=generator)
    lengths = torch.randint(length // 2 + 1, length + 1, (examples,), generator=generator)
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    if kind == "classification":
        labels = torch.randint(0, 3, (examples,), generator=generator)
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :2] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
