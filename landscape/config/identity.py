"""The identity of a run: a hash of what changes its result, and of nothing else."""

from __future__ import annotations

import hashlib
import json

from landscape.config.run import RunConfig

SCHEMA_VERSION = 1
"""Of configs and stores together; raised when an old store can no longer be read as it stands."""

NOT_HASHED = frozenset(
    {
        # Where things lie: the data's digest stands for them.
        "data_dir",
        "data_files",
        # What is watched, not what happens.
        "eval_steps",
        "eval_examples",
        "probe_examples",
        "per_device_eval_batch_size",
        "clean_loss_every",
        "base_loss",
        "capture",
        "save_steps",
        "report_to",
        # Lengthening a run keeps its identity; the schedule's own length, lr_scheduler_steps, is hashed.
        "max_steps",
    }
)


def method_name(method: str, adapter: str | None = None) -> str:
    """How a method over an adapter is named wherever runs are: ``mgpo-dora``; without one, the method's own name."""
    return f"{method}-{adapter}" if adapter else method


def run_id(config: RunConfig, data_digest: str, model_digest: str, num_processes: int = 1) -> str:
    """The folder name of a run, e.g. ``mgpo-r64-lr5e-4-s0-1f0c2a9b4d``.

    Args:
        config: a *resolved* config (`landscape.training.resolve`): rules and defaults replaced by values.
        data_digest: of the task's content, so that the same data in two folders is one run.
        model_digest: of the model's content or hub id, likewise.
        num_processes: of a distributed run; each adds a batch to every optimizer step.
    """
    # Most runs have no adapter of their own below the method, and are named as before that key existed.
    unused = set() if config.adapter else {"adapter", "adapter_args"}
    values = config.model_dump(mode="json", exclude=set(NOT_HASHED) | {"model"} | unused)
    values.update(model=model_digest, data=data_digest, schema=SCHEMA_VERSION)
    if num_processes > 1:
        values.update(num_processes=num_processes)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    rank = f"-r{config.rank}" if config.rank else ""
    rate = f"{config.learning_rate:g}".replace("e-0", "e-")
    return f"{method_name(config.method, config.adapter)}{rank}-lr{rate}-s{config.seed}-{digest[:10]}"
