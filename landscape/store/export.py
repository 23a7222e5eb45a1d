"""From a snapshot to a folder that `peft.PeftModel.from_pretrained` loads."""

from __future__ import annotations

import re
from pathlib import Path

from landscape.config.identity import method_name
from landscape.errors import StoreError
from landscape.store.atomic import read_json, write_bytes
from landscape.store.runs import Run
from landscape.store.snapshots import write_safetensors

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

_ADAPTER = "default"
_SAVED_NAMES = (
    # DoRA's magnitudes were once plain parameters; their saved name still is one.
    (re.compile(rf"(\.lora_magnitude_vector)\.{_ADAPTER}\.weight$"), r"\1"),
    (re.compile(rf"(\.lora_[A-Za-z_]+)\.{_ADAPTER}(?=\.|$)"), r"\1"),
    (re.compile(rf"\.modules_to_save\.{_ADAPTER}(?=\.)"), ""),
)


def export_adapter(run: Run, step: int, out_dir: str | Path) -> Path:
    """Write the adapter after ``step`` optimizer steps as PEFT saves it; returns the folder.

    Raises:
        StoreError: the run trained no adapter, its method rewrote base weights, it is no snapshot step (the nearest is
            named), or a trained tensor is none that PEFT would load.
    """
    method, out_dir = method_name(run.config.method, run.config.adapter), Path(out_dir)
    if "full" in (run.config.method, run.config.adapter):
        raise StoreError(f"run {run.id}: method {method!r} trains the base weights, there is no adapter to export")
    adapter_config = read_json(run.path / ADAPTER_CONFIG_FILE)
    reader = run.snapshots()
    if rewritten := reader.base_tensors():
        raise StoreError(
            f"run {run.id}: method {method!r} rewrote {len(rewritten)} base weights ({min(rewritten)}, ...), "
            "and a PEFT folder holds the adapter alone: on the original base model it would be another function"
        )
    if middle := [name for name in reader.layout.names if ".lora_N." in name]:
        raise StoreError(
            f"run {run.id}: method {method!r} trains {middle[0]}, which PEFT does not know and would not load"
        )
    has_biases = adapter_config.get("bias", "none") != "none"
    tensors = {saved_name(name, has_biases): tensor for name, tensor in reader.tensors(step).items()}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create {out_dir}: {error.strerror}") from error
    write_safetensors(out_dir / ADAPTER_WEIGHTS_FILE, tensors)
    write_bytes(out_dir / ADAPTER_CONFIG_FILE, (run.path / ADAPTER_CONFIG_FILE).read_bytes())
    return out_dir


def saved_name(name: str, has_biases: bool = False) -> str:
    """The name under which PEFT saves a parameter of a live model: without the adapter's own name.

    ``….lora_A.default.weight`` → ``….lora_A.weight``, ``….score.modules_to_save.default.weight`` → ``….score.weight``,
    ``….lora_magnitude_vector.default.weight`` → ``….lora_magnitude_vector``.

    Args:
        name: as in ``model.named_parameters()`` of a `peft.PeftModel`.
        has_biases: the adapter's config trains biases of the base model, which keep their names.

    Raises:
        StoreError: the parameter is no adapter's.
    """
    for pattern, replacement in _SAVED_NAMES:
        saved, replaced = pattern.subn(replacement, name)
        if replaced:
            return saved
    if has_biases and name.endswith(".bias"):
        return name
    raise StoreError(f"export: {name} is no parameter of a PEFT adapter called {_ADAPTER!r}, so PEFT would not load it")
