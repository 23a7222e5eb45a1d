"""rsLoRA: LoRA whose scaling does not vanish with the rank."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

from landscape.methods.base import METHODS, Arguments, Method


def peft_config(keywords: dict[str, Any], arguments: Arguments) -> LoraConfig:
    """PEFT's LoRA with s = α/√r."""
    return LoraConfig(**keywords, use_rslora=True)


METHODS.add(
    Method(
        name="rslora",
        summary="LoRA scaled by alpha/√r, so that the update does not shrink with the rank",
        source="rsLoRA, arXiv 2312.03732, theorem 3.2",
        adapter="lora",
        peft=peft_config,
    )
)
