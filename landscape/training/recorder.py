"""Writes a run while it trains: a metric line a step, evaluations, snapshots, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from landscape.config import RunConfig
from landscape.data import TaskData
from landscape.methods.base import global_norm
from landscape.store import Attempt, CapturePlan, Run
from landscape.store.attempts import CHECKPOINT_FOLDER
from landscape.training.base_loss import BaseLoss
from landscape.training.capture import Capture
from landscape.training.checkpoint import save_checkpoint
from landscape.training.evaluation import evaluate
from landscape.training.rng import RngState
from landscape.training.rules import rule_states, shown
from landscape.training.watch import TAG, EventWatch

if TYPE_CHECKING:
    from landscape.training.trainer import LandscapeTrainer


class Recorder(TrainerCallback):
    """The shared trainer's hand on the run folder; of several processes only the first writes.

    Args:
        attempt: None on processes that do not write.
        order: (steps · examples a step,) indices into the training split.
        on_step: called with each metric record, e.g. to move a progress bar.
    """

    def __init__(
        self,
        trainer: LandscapeTrainer,
        config: RunConfig,
        data: TaskData,
        order: np.ndarray,
        *,
        run: Run,
        attempt: Attempt | None,
        plan: CapturePlan,
        base_loss: BaseLoss | None,
        tokens: int = 0,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.trainer = trainer
        self.config = config
        self.data = data
        self.order = order
        self.run = run
        self.attempt = attempt
        self.plan = plan
        self.base_loss = base_loss
        self.tokens = tokens
        self.on_step = on_step
        self.diverged = False
        self.capture: Capture | None = None
        schedule = config.lr_scheduler_steps or config.max_steps
        self.watch = EventWatch(math.ceil(config.warmup_ratio * schedule))
        self.examples_per_step = len(order) // config.max_steps
        self._mark = time.perf_counter()
        self._told = 0.0

    # Trainer's events, in the order in which they come

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The state before the first step is evaluated and captured too, unless resumed."""
        if state.global_step == 0:
            self._evaluate(0)
        if self.attempt is not None and self.plan.policy != "none":
            # Adam has no moments before its first step; the stream is laid out like the parameters.
            streams = self._streams()
            self.capture = Capture(self.attempt, self.plan, streams)
            if state.global_step == 0:
                self.capture.take(0, {name: tensors for name, tensors in streams.items() if name != "adam_v"})
        if self.attempt is not None and state.global_step:
            column = "loss_clean" if self._watches_clean() else "loss_perturbed"
            self.watch.replay(self.run.metrics()[["step", column]].itertuples(index=False, name=None))
        self._mark = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Comes after the perturbation's callback, so the weights are the clean ones again."""
        self.trainer.measure_clean_loss()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Record the step; stop where the loss is not finite."""
        step, record = state.global_step, self.trainer.record
        self.tokens += record.tokens
        loss = record.loss_clean if self._watches_clean() else record.loss
        event = self.watch.update(step, math.nan if loss is None else loss)
        line = self._line(step) | ({TAG: event.since} if event else {})
        if self.attempt is not None:
            self.attempt.log(line)
        if self.on_step is not None:
            self.on_step(line)
        self.diverged = not math.isfinite(record.loss)
        if self.diverged:
            control.should_training_stop = True
            return control
        if self.capture is not None:
            self.capture.take(step, self._streams(), event is not None)
        if step == args.max_steps or (self.config.eval_steps and step % self.config.eval_steps == 0):
            self._evaluate(step)
        if self.config.save_steps and (step % self.config.save_steps == 0 or step == args.max_steps):
            self._save(state)
        self._tell_progress(step)
        self._report_to_trackers(line)
        self._mark = time.perf_counter()
        return control

    def close(self) -> None:
        """Finish writing; also after an exception."""
        if self.capture is not None:
            self.capture.close()

    # What is written

    def _watches_clean(self) -> bool:
        """The watched curve is one of the two losses throughout, never a mixture."""
        return self.trainer.perturbation_callback is None or self.config.clean_loss_every == 1

    def _line(self, step: int) -> dict[str, Any]:
        record, callback = self.trainer.record, self.trainer.perturbation_callback
        perturbation = callback.perturbation if callback else None
        rules = self.trainer.rules
        window = self.order[(step - 1) * self.examples_per_step : step * self.examples_per_step]
        return {
            "step": step,
            "epoch": step * self.examples_per_step / len(self.data.train),
            "tokens": self.tokens,
            "learning_rate": record.learning_rate,
            **{f"learning_rate_{name}": rate for name, rate in record.group_rates.items()},
            "loss_clean": record.loss_clean,
            "loss_perturbed": record.loss,
            "loss_base": self.base_loss.of(window) if self.base_loss else None,
            "grad_norm": record.grad_norm,
            "perturbation_norm": perturbation.norm if perturbation else max([rule.norm for rule in rules], default=0.0),
            "adapter_norm": float(global_norm([p.detach() for p in self.trainer.trainable])),
            **(perturbation.metrics() if perturbation else {}),
            **{key: value for rule in rules for key, value in rule.metrics().items()},
            "seconds": time.perf_counter() - self._mark,
        }

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.trainer.module.named_parameters() if p.requires_grad}

    def _streams(self) -> dict[str, dict[str, Tensor]]:
        streams = {"params": self._parameters()}
        if self.config.capture.moments:
            state = self.trainer.optimizer.state  # type: ignore[union-attr]
            named = self.trainer.module.named_parameters()
            streams["adam_v"] = {
                name: state[p]["exp_avg_sq"] if "exp_avg_sq" in state.get(p, {}) else torch.zeros_like(p)
                for name, p in named
                if p.requires_grad
            }
        for average, values in self._averages().items():
            streams[average] = dict(zip(streams["params"], values, strict=True))
        return streams

    def _averages(self) -> dict[str, list[Tensor]]:
        return {name: values for rule in self.trainer.rules for name, values in rule.averages().items()}

    def _evaluate(self, step: int) -> None:
        """At the present parameters, and at each average of them as splits of their own: ``eval-ema``."""
        self._evaluate_as(step, "")
        for average, values in self._averages().items():
            with shown(self.trainer.trainable, values):
                self._evaluate_as(step, f"-{average}")

    def _evaluate_as(self, step: int, suffix: str) -> None:
        accelerator = self.trainer.accelerator
        for name, split in (("eval", self.data.eval), ("probe", self.data.probe)):
            values = evaluate(
                self.trainer.module,
                split,
                self.trainer.kind,
                batch_size=self.config.per_device_eval_batch_size,
                process=accelerator.process_index,
                num_processes=accelerator.num_processes,
            )
            if self.attempt is not None:
                self.attempt.log({"step": step, "split": f"{name}{suffix}", **values})

    def _save(self, state: Any) -> None:
        accelerator, trainer = self.trainer.accelerator, self.trainer
        states: list[Any] = [RngState.capture(trainer.args.device).tensors()]
        if accelerator.num_processes > 1:
            states = [None] * accelerator.num_processes
            torch.distributed.all_gather_object(states, RngState.capture(trainer.args.device).tensors())
        if self.attempt is None:
            return
        # What a resumed run continues from must not be behind the checkpoint.
        self.attempt.sync()
        callback = trainer.perturbation_callback
        save_checkpoint(
            self.attempt.path / CHECKPOINT_FOLDER,
            model=trainer.module,
            optimizer=trainer.optimizer,  # type: ignore[arg-type]
            scheduler=trainer.lr_scheduler,
            state=state,
            rng=dict(enumerate(states)),
            perturbation={
                **(callback.perturbation.state_dict() if callback and callback.perturbation else {}),
                **rule_states(trainer.rules),
            },
            counters={"tokens": self.tokens},
        )
        self.run.set_status(step=state.global_step)

    def _tell_progress(self, step: int) -> None:
        """Every two seconds at most: whoever watches a sweep reads it from the run's status."""
        if self.attempt is not None and time.monotonic() - self._told > 2:
            self.run.set_status(step=step)
            self._told = time.monotonic()

    def _report_to_trackers(self, line: dict[str, Any]) -> None:
        if self.config.report_to:
            self.trainer.log({key: value for key, value in line.items() if isinstance(value, (int, float))})
