"""Dense capture for anyone's ``transformers.Trainer`` or TRL ``SFTTrainer``.

>>> trainer = Trainer(model=peft_model, ..., callbacks=[SnapshotCallback("store"), EpisodeWatchCallback()])

The run then stands in a store like our own: ``landscape status``, ``report``, ``figures`` and ``export-adapter`` work
on it, and `landscape.store.Run.snapshots` gives every captured adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from landscape.config import Capture as CaptureConfig
from landscape.config import RunConfig, parse_model
from landscape.store import Attempt, Run, SnapshotLayout, Store, plan_capture
from landscape.training.capture import Capture
from landscape.training.watch import TAG, EpisodeWatchCallback


class SnapshotCallback(TrainerCallback):
    """Captures the trainable parameters after every optimizer step, and logs what the Trainer logs.

    Args:
        store: folder of the store; created if it does not exist.
        run_id: folder name of the run; by default made of the adapter's kind and the settings.
        capture: as in a config: ``"auto"``, ``{"every": 10}``, ``{"policy": "log"}``. A sparse capture keeps the steps
            around events too where a `landscape.training.EpisodeWatchCallback` in the same Trainer notices them.
        perturbed: the logged loss is taken at perturbed weights (GGPO, MGPO, SAM), so it is not stored as clean.

    Raises:
        UsageError: unknown capture policy.
        StoreError: the store cannot be written.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        run_id: str | None = None,
        capture: str | dict[str, Any] = "auto",
        perturbed: bool = False,
    ) -> None:
        self.store_path = Path(store)
        self.run_id = run_id
        self.capture = parse_model(CaptureConfig, capture if isinstance(capture, dict) else {"policy": capture})
        self.perturbed = perturbed
        self.run: Run | None = None
        self._attempt: Attempt | None = None
        self._capture: Capture | None = None
        self._line: dict[str, Any] | None = None
        self._read = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the run and capture the initial state."""
        if not state.is_world_process_zero:
            return
        model: nn.Module = kwargs["model"]
        parameters = _trainable(model)
        plan = plan_capture(self.capture, state.max_steps, SnapshotLayout.from_tensors(parameters).record_bytes)
        config = _describe(args, state, model)
        self.run = Store.create(self.store_path).add(config, self.run_id or _identity(config), {})
        resumed = state.global_step if self.run.status.attempt else 0
        self._attempt = self.run.begin_attempt(resumed)
        self._capture = Capture(self._attempt, plan, {"params": parameters})
        self._line, self._read = None, len(state.log_history)
        if hasattr(model, "peft_config"):
            model.peft_config["default"].save_pretrained(str(self.run.path))  # type: ignore[index,union-attr]
        self.run.set_status(state="running", max_steps=state.max_steps, host=socket.gethostname(), pid=os.getpid())
        if state.global_step == 0:
            self._capture.take(0, {"params": parameters})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the metrics of the step before."""
        self._write_line(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Capture the state after this optimizer step."""
        if self._capture is not None:
            self._capture.watched = _is_watched(state)
            event = self._sees_event(state)
            self._capture.take(state.global_step, {"params": _trainable(kwargs["model"])}, event)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Store the logged losses, gradient norm and learning rate under their names in the metric table."""
        logs = logs or {}
        if self._attempt is None:
            return
        self._write_line(state)
        if "loss" in logs:
            self._line = {
                "step": state.global_step,
                "epoch": state.epoch,
                "learning_rate": logs.get("learning_rate"),
                "loss_clean": None if self.perturbed else logs["loss"],
                "loss_perturbed": logs["loss"],
                "grad_norm": logs.get("grad_norm"),
            }
            if not _is_watched(state):
                self._write_line(state)
        elif "eval_loss" in logs:
            self._attempt.log({"step": state.global_step, "split": "eval", "loss": logs["eval_loss"]})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish writing."""
        if self.run is None or self._attempt is None:
            return
        self._write_line(state)
        if self._capture is not None and self._sees_event(state):  # the watch may have stopped the run
            self._capture.keep()
        self.close()
        self.run.compact()
        self.run.set_status(state="done", step=state.global_step)

    def close(self) -> None:
        """Write what is queued; what was captured so far is readable also without this call."""
        if self._capture is not None:
            self._capture.close()
        if self._attempt is not None:
            self._attempt.close()

    def _write_line(self, state: Any) -> None:
        """Write the line that was held back until every callback, in whatever order, had seen its log entry."""
        if self._line is not None and self._attempt is not None:
            tags = [e[TAG] for e in state.log_history[-3:] if TAG in e and e["step"] == self._line["step"]]
            self._attempt.log({**self._line, **({TAG: tags[-1]} if tags else {})})
        self._line = None

    def _sees_event(self, state: Any) -> bool:
        """Whether a warning has been logged since this was asked last."""
        new = state.log_history[self._read :]
        self._read = len(state.log_history)
        return any(TAG in entry for entry in new)


def _is_watched(state: Any) -> bool:
    """Whether an `EpisodeWatchCallback` is in the same Trainer: it is one of those whose state is saved."""
    return EpisodeWatchCallback.__name__ in state.stateful_callbacks


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _describe(args: Any, state: Any, model: nn.Module) -> RunConfig:
    """The run's config as far as a foreign Trainer's arguments tell; its task is ``external``."""
    adapter = getattr(model, "peft_config", {}).get("default")
    config = getattr(model, "config", None)
    return RunConfig.parse(
        {
            "model": str(getattr(config, "_name_or_path", "") or type(model).__name__),
            "task": "external",
            "method": "lora" if adapter is not None else "full",
            "rank": getattr(adapter, "r", None),
            "alpha": getattr(adapter, "lora_alpha", None),
            "lora_dropout": getattr(adapter, "lora_dropout", None),
            "target_modules": sorted(getattr(adapter, "target_modules", None) or []) or None,
            "learning_rate": args.learning_rate or 1e-12,
            "max_steps": state.max_steps,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "max_grad_norm": args.max_grad_norm or 0.0,
            "seed": args.seed,
        }
    )


def _identity(config: RunConfig) -> str:
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    return f"external-{config.method}-s{config.seed}-{digest[:10]}"
