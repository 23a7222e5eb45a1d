"""A small Llama with LoRA and random targets on which the float64 spectrum is known (scipy's eigsh, residual < 2e-7).

Its Hessian over 156,160 LoRA parameters is strongly indefinite: the eigenvalue of largest magnitude is negative.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

TOP = {(4, 32): 3.07977, (16, 64): 0.661266}
"""Largest algebraic eigenvalue by (rows, columns) of the batch."""


def workload() -> tuple[nn.Module, dict[str, Tensor]]:
    """The model in eval mode and the whole batch of 16 x 64 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, intermediate_size=688,
        vocab_size=2048, max_position_embeddings=256, attn_implementation="eager", use_cache=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=targets)
    model = get_peft_model(LlamaForCausalLM(config), lora)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    ids = torch.randint(0, 2048, (16, 64), generator=torch.Generator().manual_seed(2))
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
