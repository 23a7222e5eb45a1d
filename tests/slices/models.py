"""Models and batches on which slices are checked against plain references."""

from __future__ import annotations

from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.oracles import in_double
from tests.small_models import base_model, batch, lora_model

TASKS = {"causal": TaskType.CAUSAL_LM, "seq2seq": TaskType.SEQ_2_SEQ_LM, "classification": TaskType.SEQ_CLS}


def double(kind: str, **changes: Any) -> nn.Module:
    """LoRA of rank 2 on every linear layer, float64 throughout."""
    return in_double(lora_model(kind, **changes))


def ragged(kind: str) -> list[dict[str, Tensor]]:
    """Batches of different sizes and lengths, prompts masked."""
    return [batch(kind, 4, 9, seed=0), batch(kind, 2, 5, seed=1)]


def dora(kind: str = "causal") -> nn.Module:
    return _perturbed(LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", use_dora=True, task_type=TASKS[kind]))


def adalora(kind: str = "causal") -> nn.Module:
    config = AdaLoraConfig(init_r=2, target_r=1, total_step=10, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    config.task_type = TASKS[kind]
    return _perturbed(config)


def rank_stabilized(kind: str = "causal") -> nn.Module:
    return _perturbed(LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj", "up_proj"], use_rslora=True))


def with_head(kind: str = "causal") -> nn.Module:
    """LoRA on the output layer, which computes only the counted positions."""
    return _perturbed(LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "lm_head"], task_type=TASKS[kind]))


def gpt2(kind: str = "causal") -> nn.Module:
    """Its Conv1D layers keep W as (in, out)."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=32, use_cache=False))
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type=TASKS[kind])
    return _perturbed(lora, base.double())


def full(kind: str = "causal") -> nn.Module:
    """Without an adapter, everything trained."""
    return in_double(base_model(kind)).requires_grad_(True)


def _perturbed(config: Any, base: nn.Module | None = None) -> nn.Module:
    """Every adapter tensor away from its initial value, so that nothing is zero."""
    model = get_peft_model(base or base_model("causal"), config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return in_double(model).eval()


VARIANTS = {
    "dora": dora,
    "adalora": adalora,
    "rslora": rank_stabilized,
    "lora on the head": with_head,
    "gpt2": gpt2,
    "full": full,
}
