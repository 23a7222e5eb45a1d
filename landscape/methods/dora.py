"""DoRA: the magnitude of every row of W' is trained apart from its direction (PEFT's implementation)."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

from landscape.methods.base import METHODS, Arguments, Method


def peft_config(keywords: dict[str, Any], arguments: Arguments) -> LoraConfig:
    """PEFT's DoRA; the norm is a constant of differentiation, as in section 4.3 of the paper."""
    return LoraConfig(**keywords, use_dora=True)


METHODS.add(
    Method(
        name="dora",
        summary="LoRA for the direction of W', and a trained magnitude for each of its rows",
        source="DoRA, arXiv 2402.09353, eq. 5, section 4.3",
        adapter="dora",
        peft=peft_config,
        extra_memory="one number an output row; W + s·BA while it is computed",
    )
)
