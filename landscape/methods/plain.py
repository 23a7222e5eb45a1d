"""The two unperturbed methods: full fine-tuning and LoRA."""

from landscape.methods.base import METHODS, Method

METHODS.add(
    Method(
        name="full",
        summary="full fine-tuning: every weight of the base model is trained",
        source="-",
        adapter=None,
        extra_memory="gradients and two moments of every weight",
    )
)
METHODS.add(
    Method(
        name="lora",
        summary="LoRA: W + (alpha/r)·BA with W frozen, A Kaiming-uniform, B zero",
        source="LoRA, arXiv 2106.09685, eq. 3",
        adapter="lora",
    )
)
