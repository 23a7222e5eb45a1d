"""The small runs that the analyses are tested on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landscape.store import Run, Store

SETTINGS: dict[str, Any] = {
    "model": "tiny", "task": "arithmetic", "rank": 2, "learning_rate": 5e-3, "max_steps": 4,
    "per_device_train_batch_size": 4, "train_examples": 32, "eval_examples": 6, "probe_examples": 6, "eval_steps": 2,
    "save_steps": 0, "base_loss": False, "capture": {"every": 1},
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "mgpo": {"method": "mgpo", "rank": 4, "alpha": "r"},
    "full": {"method": "full", "model": "tiny-t5", "learning_rate": 1e-3},
    "moments": {"capture": {"every": 1, "moments": True}, "warmup_ratio": 0.0},
    **{f"double {method}": {"method": method, "dtype": "float64"} for method in ("lora", "ggpo", "mgpo")},
}
FAST: dict[str, Any] = {"tol": 1e-2, "num_examples": 3, "device": "cpu"}

Stores = Callable[[str], Path]


def only_run(store: Path) -> Run:
    return Store.open(store).runs()[0]


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file as somebody would who removes its checksum, too."""
    values = json.loads(path.read_text())
    values.pop("crc", None)
    change(values)
    path.write_text(json.dumps(values))


def edit_config(run: Run, old: str, new: str) -> None:
    """Replace a line's beginning in the run's config, and remove the checksum, which is its last line."""
    path = run.path / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    text = "".join(lines[:-1] if lines[-1].startswith("# crc32") else lines)
    assert f"\n{old}" in text
    path.write_text(text.replace(f"\n{old}", f"\n{new}"))
