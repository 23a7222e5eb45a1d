"""Packed runs without any training behind them."""

from __future__ import annotations

from typing import Any

from landscape.reproduction import Record


def record(variant: str = "LoRA", seed: int = 0, **changes: Any) -> Record:
    place = {key: changes[key] for key in ("rank", "learning_rate", "task") if key in changes}
    values: dict[str, Any] = {
        "run_id": f"{variant}-{seed}-{sorted(place.items())}", "variant": variant, "method": "lora", "task": "cola",
        "seed": seed, "learning_rate": 1e-3, "rank": 8, "place": place, "state": "done", "step": 100,
    }  # fmt: skip
    return Record(**{**values, **changes})


def series(variant: str, measure: str, values: list[float], **changes: Any) -> list[Record]:
    """One run a seed."""
    return [record(variant, seed, **{measure: value}, **changes) for seed, value in enumerate(values)]
